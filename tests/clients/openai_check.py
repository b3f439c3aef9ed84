"""The openai package against `mlxr serve`: over TCP and over the Unix socket, one at a time and many at once."""

import asyncio
import os
import re

import httpx2
import openai

URL = os.environ["MLXR_URL"]
SOCKET = os.environ["MLXR_SOCKET"]
MODEL = "mlxr-27m"
ASK = [{"role": "user", "content": "Tell me a story about a cat."}]


def client(**more):
    return openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, **more)


def metric(name):
    text = httpx2.get(f"{URL}/metrics").text
    return float(re.search(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M).group(1))


def check_models(api):
    assert [model.id for model in api.models.list()] == [MODEL]
    assert api.models.retrieve(MODEL).object == "model"
    try:
        api.models.retrieve("nothing")
        raise AssertionError("found a model that is not there")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error


def check_chat(api):
    ask = dict(model=MODEL, messages=ASK, max_tokens=40, temperature=0)
    whole = api.chat.completions.create(**ask)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and len(choice.message.content) > 20, whole
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    stream = api.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content, (text, choice.message.content)
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens and not chunks[-1].choices
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    # The package's own accumulator; it takes an answer cut off by its length for an error.
    with api.chat.completions.stream(**ask, stop=".") as events:
        for _ in events:
            pass
        assert events.get_final_completion().choices[0].message.content == text.split(".")[0]
    scored = api.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    tokens = scored.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == text
    assert all(token.token == token.top_logprobs[0].token for token in tokens)
    several = api.chat.completions.create(**{**ask, "temperature": 1.0, "seed": 7, "n": 3})
    assert len({choice.message.content for choice in several.choices}) > 1
    stopped = api.chat.completions.create(**ask, stop=["."])
    assert stopped.choices[0].finish_reason == "stop" and "." not in stopped.choices[0].message.content
    extra = api.chat.completions.with_raw_response.create(**ask, store=True, extra_body={"top_k": 1, "unheard_of": 1})
    assert extra.headers["x-mlxr-unsupported"] == "store, unheard_of"
    assert extra.parse().choices[0].message.content == text


def check_completions(api):
    ask = dict(model=MODEL, temperature=0, max_tokens=8)
    plain = api.completions.create(**ask, prompt=["Once upon a time", "The dog"])
    assert [choice.index for choice in plain.choices] == [0, 1]
    echoed = api.completions.create(**ask, prompt="Once upon a time", echo=True, logprobs=1)
    assert echoed.choices[0].text == "Once upon a time" + plain.choices[0].text
    logprobs = echoed.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == echoed.usage.total_tokens
    assert logprobs.token_logprobs[0] is None and max(logprobs.token_logprobs[1:]) <= 0
    streamed = api.completions.create(**ask, prompt="The dog", stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == plain.choices[1].text


def check_embeddings(api):
    texts = ["a cat", "a story about a dog"]
    found = api.embeddings.create(model=MODEL, input=texts)  # base64 by the package's own choice
    assert [item.index for item in found.data] == [0, 1] and found.usage.prompt_tokens > 4, found.usage
    plain = api.embeddings.create(model=MODEL, input=texts[1], encoding_format="float").data[0].embedding
    assert abs(sum(x * x for x in plain) - 1) < 1e-5
    assert max(abs(a - b) for a, b in zip(plain, found.data[1].embedding, strict=True)) < 1e-7
    try:
        api.embeddings.create(model=MODEL, input=["a", "cat " * 20_000])
        raise AssertionError("a text that is too long was taken")
    except openai.BadRequestError as error:
        assert (error.code, error.param) == ("context_length_exceeded", "input[1]"), error


def check_errors(api):
    def refused(kind, **ask):
        try:
            api.chat.completions.create(**{"model": MODEL, "messages": ASK, **ask})
        except kind as error:
            return error
        raise AssertionError(f"{ask} was not refused")

    assert refused(openai.NotFoundError, model="nothing").code == "model_not_found"
    assert refused(openai.BadRequestError, temperature=-1).param == "temperature"
    assert refused(openai.BadRequestError, messages=[{"role": "wizard", "content": ""}]).param == "messages[0].role"
    long = [{"role": "user", "content": "word " * 5000}]
    error = refused(openai.BadRequestError, messages=long)
    assert error.code == "context_length_exceeded" and "2048" in error.message, error
    error = refused(openai.BadRequestError, messages=long, stream=True)
    assert error.code == "context_length_exceeded", error
    error = refused(openai.BadRequestError, extra_body={"strict": True, "unheard_of": 1})
    assert error.param == "unheard_of", error


async def check_many():
    api = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)

    async def tell(i, stream):
        ask = dict(model=MODEL, messages=[{"role": "user", "content": f"Tell me about the number {i}."}],
                   max_tokens=24, temperature=0.8, seed=i)
        if not stream:
            return (await api.chat.completions.create(**ask)).choices[0].message.content
        chunks = await api.chat.completions.create(**ask, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def leave():
        chunks = await api.chat.completions.create(
            model=MODEL, messages=ASK, max_tokens=1500, stream=True, extra_body={"ignore_eos": True})
        async for _ in chunks:
            break
        await chunks.close()

    alone = [await tell(i, False) for i in range(16)]
    together = await asyncio.gather(*[tell(i, True) for i in range(16)], *[leave() for _ in range(16)])
    assert list(together[:16]) == alone
    await api.close()
    for _ in range(200):
        if metric("mlxr_requests_running") + metric("mlxr_requests_waiting") == 0:
            break
        await asyncio.sleep(0.05)
    assert metric("mlxr_kv_blocks_used") == 0, "clients that left hold KV blocks"


for api in [client(), client(http_client=httpx2.Client(transport=httpx2.HTTPTransport(uds=SOCKET)))]:
    check_models(api)
    check_chat(api)
    check_completions(api)
    check_embeddings(api)
    check_errors(api)
asyncio.run(check_many())
print("ok")
