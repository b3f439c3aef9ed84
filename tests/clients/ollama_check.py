"""The ollama package against `mlxr serve`."""

import asyncio
import os
import pathlib
import tempfile

import ollama

URL = os.environ["MLXR_URL"]
MODEL = "mlxr-27m"
REPOSITORY = pathlib.Path(__file__).parents[2]
ASK = [{"role": "user", "content": "Tell me a story about a cat."}]
GREEDY = {"temperature": 0, "repeat_penalty": 1, "num_predict": 40}


def check_models(api):
    (listed,) = api.list().models
    assert listed.model == MODEL and listed.size > 20_000_000 and listed.modified_at.year >= 1970, listed
    assert listed.details.format == "gguf" and listed.details.quantization_level == "Q8_0", listed
    shown = api.show(MODEL)
    assert shown.details == listed.details and "completion" in shown.capabilities
    assert shown.modelinfo["general.parameter_count"] > 20_000_000 and "<|im_start|>" in shown.template


def check_loading(api):
    loaded = api.generate(MODEL, keep_alive="10m")
    assert loaded.done and loaded.done_reason == "load" and loaded.response == "", loaded
    (running,) = api.ps().models
    assert running.model == MODEL and running.size_vram == 0 and running.context_length > 0, running
    api.generate(MODEL, keep_alive=-1)
    assert api.ps().models[0].expires_at.year == 9999
    gone = api.generate(MODEL, keep_alive=0)
    assert gone.done_reason == "unload" and not api.ps().models
    (line,) = api.chat(MODEL, messages=[], stream=True)
    assert line.done_reason == "load" and len(api.ps().models) == 1


def check_chat(api):
    whole = api.chat(MODEL, ASK, options=GREEDY)
    text = whole.message.content
    assert whole.message.role == "assistant" and len(text) > 20 and whole.done, whole
    assert whole.eval_count <= 40 and whole.prompt_eval_count > 0, whole
    assert 0 < whole.prompt_eval_duration + whole.eval_duration <= whole.total_duration, whole
    lines = list(api.chat(MODEL, ASK, options=GREEDY, stream=True))
    assert "".join(line.message.content for line in lines) == text
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert (lines[-1].done_reason, lines[-1].eval_count) == (whole.done_reason, whole.eval_count)
    stopped = api.chat(MODEL, ASK, options={**GREEDY, "stop": ["."]})
    assert stopped.message.content == text.split(".")[0] and stopped.done_reason == "stop"
    scored = api.chat(MODEL, ASK, options=GREEDY, logprobs=True, top_logprobs=2)
    assert "".join(token.token for token in scored.logprobs) == text
    assert all(token.top_logprobs[0].token == token.token for token in scored.logprobs)
    return text


def check_generate(api, text):
    whole = api.generate(MODEL, ASK[0]["content"], options=GREEDY)
    assert whole.response == text and len(whole.context) >= whole.prompt_eval_count, whole
    lines = list(api.generate(MODEL, ASK[0]["content"], options=GREEDY, stream=True))
    assert "".join(line.response for line in lines) == text and lines[-1].context == whole.context
    later = api.generate(MODEL, "Who was it?", context=whole.context, options=GREEDY)
    assert later.prompt_eval_count > len(whole.context)
    raw = api.generate(MODEL, "Once upon a time", raw=True, options=GREEDY)
    assert raw.response and raw.context is None


def check_catalogue(api, text):
    api.create(model="mario", from_=MODEL, system="You are Mario.", parameters=GREEDY, license="MIT")
    steps = [step.status for step in api.create(model="me/luigi:7b", from_="mario", system="", stream=True)]
    assert steps[-1] == "success", steps
    assert api.copy("mario", "peach").status == "success"
    names = [model.model for model in api.list().models]
    assert names == ["mario", "me/luigi:7b", MODEL, "peach"], names
    shown = api.show("peach")
    assert shown.license == "MIT" and shown.details.parent_model == MODEL, shown
    assert "num_predict" in shown.parameters and "SYSTEM" in shown.modelfile, shown.modelfile
    # The parameters are the model's own, and its system prompt stands before the conversation.
    spelt_out = [{"role": "system", "content": "You are Mario."}, *ASK]
    assert api.chat("peach", ASK).message == api.chat(MODEL, spelt_out, options=GREEDY).message
    assert api.chat("me/luigi:7b", ASK).message.content == text

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        path.write_bytes((REPOSITORY / "golden/tiny/llama/model.gguf").read_bytes())
        digest = api.create_blob(path)
        assert api.create_blob(path) == digest, "a second time it is there already"
    assert api.create(model="tiny", files={"model.gguf": digest}).status == "success"
    assert api.show("tiny").details.format == "gguf"

    def refused(call, *args, **kwargs):
        try:
            call(*args, **kwargs)
        except ollama.ResponseError as error:
            return error
        raise AssertionError("it was not refused")

    assert refused(api.create, model="x", from_="nobody").status_code == 404
    assert "Jinja" in refused(api.create, model="x", from_=MODEL, template="{{ .Prompt }}").error
    assert "mlxr create" in refused(api.pull, "llama3.2").error
    for name in ["mario", "me/luigi:7b", "peach", "tiny"]:
        assert api.delete(name).status == "success"
    assert refused(api.delete, "mario").status_code == 404
    assert [model.model for model in api.list().models] == [MODEL]


def check_errors(api):
    def refused(call, **ask):
        try:
            list(call(**{"model": MODEL, **ask}, stream=True))
        except ollama.ResponseError as error:
            return error
        raise AssertionError(f"{ask} was not refused")

    missing = refused(api.chat, model="nothing", messages=ASK)
    assert missing.status_code == 404 and MODEL in missing.error, missing
    assert refused(api.chat, messages=ASK, options={"temperature": -1}).status_code == 400
    long = refused(api.generate, prompt="word " * 5000)
    assert long.status_code == 400 and "2048" in long.error, long
    assert "thinking" in refused(api.generate, prompt="Hi", think=True).error
    assert "reads only text" in refused(api.generate, prompt="Hi", images=[b"\x89PNG"]).error


def check_embed(api):
    texts = ["a cat", "a story about a dog"]
    found = api.embed(MODEL, texts)
    assert found.model == MODEL and found.prompt_eval_count > 4 and found.total_duration > 0, found
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-5 for vector in found.embeddings)
    assert api.embed(MODEL, texts[1]).embeddings[0] == found.embeddings[1]
    assert api.embeddings(MODEL, texts[1]).embedding == found.embeddings[1]
    long = "cat " * 20_000
    try:
        api.embed(MODEL, long)
        raise AssertionError("a text that is too long was taken")
    except ollama.ResponseError as error:
        assert error.status_code == 400 and "maximum context length" in error.error, error
    assert 0 < api.embed(MODEL, long, truncate=True).prompt_eval_count < 20_000


async def check_many(text):
    api = ollama.AsyncClient(URL)

    async def one():
        lines = await api.chat(MODEL, ASK, options=GREEDY, stream=True)
        return "".join([line.message.content async for line in lines])

    assert await asyncio.gather(*(one() for _ in range(8))) == [text] * 8


api = ollama.Client(URL)
check_models(api)
check_loading(api)
text = check_chat(api)
check_generate(api, text)
check_catalogue(api, text)
check_embed(api)
check_errors(api)
asyncio.run(check_many(text))
print("ok")
