"""Vectors and scores of `mlxr serve` against those of sentence-transformers (golden/embeddings).

usage: check.py MLXR MINILM, with the server's address in MLXR_URL
"""

import asyncio
import base64
import json
import os
import pathlib
import subprocess
import sys
import time

import cohere
import numpy
import ollama
import openai

URL = os.environ["MLXR_URL"]
GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden" / "embeddings"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def unpack(text):
    return numpy.frombuffer(base64.b64decode(text), "<f4")


MINILM = golden("minilm")
TEXTS = MINILM["texts"]
EXPECTED = numpy.stack([unpack(v) for v in MINILM["vectors"]])


def same(found, expected):
    """Bit for bit, as 32-bit floats, whatever they came as."""
    return numpy.array_equal(numpy.asarray(found, "f4"), numpy.asarray(expected, "f4"))


def worst_cosine(found, expected):
    found = numpy.asarray(found, dtype="f8")
    assert found.shape == expected.shape, (found.shape, expected.shape)
    lengths = numpy.linalg.norm(found, axis=1)
    assert numpy.abs(lengths - 1).max() < 1e-6, lengths
    return float((found * expected).sum(axis=1).min())


def check_openai():
    api = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    together = api.embeddings.create(model="minilm", input=TEXTS)  # the package asks for base64 by itself
    vectors = [item.embedding for item in together.data]
    cosine = worst_cosine(vectors, EXPECTED)
    assert cosine > 0.9999, cosine
    assert together.usage.prompt_tokens == sum(len(ids) for ids in MINILM["ids"]), together.usage
    for i, text in enumerate(TEXTS):
        for given in (text, MINILM["ids"][i]):
            alone = api.embeddings.create(model="minilm", input=given, encoding_format="float")
            assert same(alone.data[0].embedding, vectors[i]), f"{text!r} alone is not the same"
    try:
        api.embeddings.create(model="minilm", input=MINILM["long"]["text"])
        raise AssertionError("a text that is too long was taken")
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded" and "256" in error.message, error
    cut = api.embeddings.create(model="minilm", input=MINILM["long"]["text"], extra_body={"truncate": True})
    assert worst_cosine([cut.data[0].embedding], unpack(MINILM["long"]["vector"])[None]) > 0.9999
    assert cut.usage.prompt_tokens == 256, cut.usage
    try:
        api.embeddings.create(model="minilm", input="a", dimensions=64)
        raise AssertionError("a part of a vector that means nothing was given")
    except openai.BadRequestError as error:
        assert error.param == "dimensions" and "384" in error.message, error
    return cosine, vectors


async def check_many(vectors):
    api = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)

    async def some(i):
        picked = [(i + 5 * j) % len(TEXTS) for j in range(1 + i % 5)]
        found = await api.embeddings.create(model="minilm", input=[TEXTS[k] for k in picked])
        return same([item.embedding for item in found.data], [vectors[k] for k in picked])

    assert all(await asyncio.gather(*(some(i) for i in range(32)))), "company changes a vector"
    texts = [text for text in TEXTS for _ in range(16)]
    began = time.monotonic()
    found = await api.embeddings.create(model="minilm", input=texts)
    seconds = time.monotonic() - began
    await api.close()
    return len(texts) / seconds, found.usage.prompt_tokens / seconds


def check_ollama(vectors):
    api = ollama.Client(URL)
    found = api.embed("minilm", TEXTS, keep_alive="10m")
    assert worst_cosine(found.embeddings, EXPECTED) > 0.9999
    assert found.prompt_eval_count == sum(len(ids) for ids in MINILM["ids"]) and found.total_duration > 0, found
    assert same(api.embed("minilm", TEXTS[1]).embeddings[0], vectors[1])
    assert same(api.embeddings("minilm", TEXTS[1]).embedding, vectors[1])
    try:
        api.embed("minilm", MINILM["long"]["text"])
        raise AssertionError("a text that is too long was taken")
    except ollama.ResponseError as error:
        assert error.status_code == 400 and "256" in error.error, error
    assert api.embed("minilm", MINILM["long"]["text"], truncate=True).prompt_eval_count == 256
    assert "minilm" in [model.model for model in api.ps().models]


def check_cohere():
    expected = golden("bert_rank")
    for kind in (cohere.Client, cohere.ClientV2):
        api = kind(api_key="none", base_url=URL)
        for (query, document), score in zip(expected["pairs"], expected["scores"]):
            (found,) = api.rerank(model="ranker", query=query, documents=[document]).results
            assert found.index == 0 and abs(found.relevance_score - score) < 1e-4, (found, score)
        query = expected["pairs"][0][0]
        documents = [document for _, document in expected["pairs"][:2]]
        best = max(range(2), key=lambda i: expected["scores"][i])
        ranked = api.rerank(model="ranker", query=query, documents=documents, top_n=1)
        assert [result.index for result in ranked.results] == [best], ranked


def check_command(mlxr, folder, vectors):
    lines = subprocess.run([mlxr, "embed", folder, "--json", "--", *TEXTS], check=True, capture_output=True).stdout
    found = [item["embedding"] for item in json.loads(lines)["embeddings"]]
    assert same(found, vectors), "the command's vectors differ"


def main():
    mlxr, folder = sys.argv[1:]
    cosine, vectors = check_openai()
    texts_per_s, tokens_per_s = asyncio.run(check_many(vectors))
    check_ollama(vectors)
    check_cohere()
    check_command(mlxr, folder, vectors)
    print(f"ok: worst cosine {cosine:.7f} over {len(TEXTS)} texts; {texts_per_s:.0f} texts/s, {tokens_per_s:.0f} tokens/s")


main()
