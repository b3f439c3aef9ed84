"""LiteLLM's library against `mlxr serve`: one program, four ways to speak to it."""

import asyncio
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch a list of prices otherwise

import litellm

litellm.suppress_debug_info = True
URL = os.environ["MLXR_URL"]
MODEL = "mlxr-27m"
MESSAGES = [{"role": "user", "content": "Tell me a story about a cat."}]
# Its own names for the dialects, and where each wants the server to be.
CHAT = {
    f"openai/{MODEL}": f"{URL}/v1",
    f"ollama_chat/{MODEL}": URL,
    f"anthropic/{MODEL}": URL,
}


def ask(name, base, **more):
    settings = dict(model=name, api_base=base, api_key="none", temperature=0, max_tokens=40, num_retries=0)
    if name.startswith("ollama"):
        settings["repeat_penalty"] = 1  # Ollama's own default is not neutral
    return {**settings, "messages": MESSAGES, **more}


def check_chat(name, base):
    whole = litellm.completion(**ask(name, base))
    text = whole.choices[0].message.content
    assert len(text) > 20 and whole.choices[0].finish_reason in ("stop", "length"), whole
    assert 0 < whole.usage.completion_tokens <= 40 and whole.usage.prompt_tokens > 0, whole.usage
    streamed = litellm.completion(**ask(name, base, stream=True, stream_options={"include_usage": True}))
    chunks = list(streamed)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    rebuilt = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert rebuilt.choices[0].message.content == text and rebuilt.choices[0].finish_reason
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens, (rebuilt.usage, whole.usage)
    stopped = litellm.completion(**ask(name, base, stop=["."]))
    assert stopped.choices[0].message.content == text.split(".")[0] and stopped.choices[0].finish_reason == "stop"
    return text


def check_completions():
    ask = dict(prompt="Once upon a time", temperature=0, max_tokens=16, api_key="none")
    plain = litellm.text_completion(model=f"text-completion-openai/{MODEL}", api_base=f"{URL}/v1", **ask)
    assert plain.choices[0].text and plain.usage.completion_tokens == 16, plain
    parts = litellm.text_completion(model=f"text-completion-openai/{MODEL}", api_base=f"{URL}/v1", stream=True, **ask)
    assert "".join(part.choices[0].text or "" for part in parts) == plain.choices[0].text
    generated = litellm.completion(
        model=f"ollama/{MODEL}", api_base=URL, messages=MESSAGES, temperature=0, max_tokens=16, repeat_penalty=1)
    assert generated.choices[0].message.content, generated


def check_embeddings():
    texts = ["a cat", "a story about a dog"]
    for name, base in {f"openai/{MODEL}": f"{URL}/v1", f"ollama/{MODEL}": URL}.items():
        found = litellm.embedding(model=name, api_base=base, api_key="none", input=texts)
        vectors = [item["embedding"] for item in found.data]
        assert len(vectors) == 2 and abs(sum(x * x for x in vectors[0]) - 1) < 1e-5, name


def check_errors(name, base):
    def refused(kind, **more):
        try:
            answer = litellm.completion(**ask(name, base, **more))
            list(answer) if more.get("stream") else None
        except kind as error:
            return error
        raise AssertionError(f"{name}: {list(more)} was not refused")

    long = [{"role": "user", "content": "word " * 5000}]
    # LiteLLM falls back to a model with a longer context when it knows this error for what it is; of Ollama's servers
    # it only reads the status.
    is_ollama = name.startswith("ollama")
    too_long = litellm.BadRequestError if is_ollama else litellm.ContextWindowExceededError
    for stream in (False, True):
        error = refused(too_long, messages=long, stream=stream)
        assert "2048" in str(error), error
    error = refused(litellm.NotFoundError, model=name.split("/")[0] + "/nothing")
    assert MODEL in str(error), error


async def check_many(text):
    async def one(name, base):
        chunks = await litellm.acompletion(**ask(name, base, stream=True))
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    answers = await asyncio.gather(*(one(name, base) for name, base in CHAT.items() for _ in range(4)))
    assert answers == [text] * 12, answers


texts = {check_chat(name, base) for name, base in CHAT.items()}
assert len(texts) == 1, texts
check_completions()
check_embeddings()
for name, base in CHAT.items():
    check_errors(name, base)
asyncio.run(check_many(texts.pop()))
print("ok")
