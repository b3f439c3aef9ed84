"""The anthropic package against `mlxr serve`."""

import asyncio
import os

import anthropic

URL = os.environ["MLXR_URL"]
ASK = dict(
    model="mlxr-27m",
    max_tokens=40,
    messages=[{"role": "user", "content": "Tell me a story about a cat."}],
    extra_body={"temperature": 0},
)


def check_messages(api):
    whole = api.messages.create(**ASK)
    assert whole.type == "message" and whole.role == "assistant" and whole.id.startswith("msg_"), whole
    (block,) = whole.content
    assert block.type == "text" and len(block.text) > 20, whole
    assert whole.stop_reason in ("end_turn", "max_tokens") and whole.usage.output_tokens <= 40, whole
    assert whole._request_id.startswith("req_")
    with api.messages.stream(**ASK) as stream:
        assert "".join(stream.text_stream) == block.text
        streamed = stream.get_final_message()
    assert [part.text for part in streamed.content] == [block.text], streamed
    assert streamed.stop_reason == whole.stop_reason, streamed
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    names = [event.type for event in api.messages.create(**ASK, stream=True)]
    assert names[:2] == ["message_start", "content_block_start"], names
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"], names
    stopped = api.messages.create(**ASK, stop_sequences=["."])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "."), stopped
    assert stopped.content[0].text == block.text.split(".")[0]
    begun = {"role": "assistant", "content": "Once upon a"}
    going_on = api.messages.create(**{**ASK, "messages": [*ASK["messages"], begun]})
    assert going_on.content[0].text.startswith(" time"), going_on
    return block.text


def check_counts(api):
    system = [{"type": "text", "text": "Be brief."}]
    counted = api.messages.count_tokens(model=ASK["model"], messages=ASK["messages"], system=system)
    usage = api.messages.create(**ASK, system=system).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def check_errors(api):
    def refused(kind, **ask):
        try:
            api.messages.create(**{**ASK, **ask})
        except kind as error:
            assert error.body["type"] == "error", error.body
            return error.body["error"]
        raise AssertionError(f"{ask} was not refused")

    assert refused(anthropic.NotFoundError, model="claude")["type"] == "not_found_error"
    assert refused(anthropic.BadRequestError, stop_sequences=[""])["type"] == "invalid_request_error"
    long = [{"role": "user", "content": "word " * 5000}]
    assert "> 2048 maximum" in refused(anthropic.BadRequestError, messages=long)["message"]
    assert "> 2048 maximum" in refused(anthropic.BadRequestError, messages=long, stream=True)["message"]
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    image = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    assert "messages[0].content[0].type" in refused(anthropic.BadRequestError, messages=image)["message"]


async def check_many(text):
    async with anthropic.AsyncAnthropic(base_url=URL, api_key="none", max_retries=0) as api:
        answers = await asyncio.gather(*(api.messages.create(**ASK) for _ in range(8)))
        assert [answer.content[0].text for answer in answers] == [text] * 8


api = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
text = check_messages(api)
check_counts(api)
check_errors(api)
asyncio.run(check_many(text))
print("ok")
