"""The responses of the openai package against `mlxr serve`: whole, streamed, kept, in the background, with functions,
over TCP and over the Unix socket; and LangChain, which can ask this way too."""

import asyncio
import json
import os
import time
from typing import Literal

import httpx2
import openai
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field

URL = os.environ["MLXR_URL"]
SOCKET = os.environ["MLXR_SOCKET"]
MODEL = "mlxr-27m"
ASK = dict(model=MODEL, input="Tell me a story about a cat.", temperature=0, max_output_tokens=40)


class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    animal: Literal["cat", "dog"]
    age: int = Field(ge=1, le=20)


class GetWeather(BaseModel):
    """The weather of the next days."""

    model_config = ConfigDict(extra="forbid")
    city: str = Field(max_length=10)
    days: int = Field(ge=1, le=9)


TOOL = {"type": "function", "name": "get_weather", "description": "The weather.", "strict": True,
        "parameters": GetWeather.model_json_schema()}


def refused(kind, call, **ask):
    try:
        call(**ask)
    except kind as error:
        return error
    raise AssertionError(f"{ask} was not refused")


def check_text(api):
    whole = api.responses.create(**ASK)
    text = whole.output_text
    assert len(text) > 20 and whole.object == "response" and whole.error is None, whole
    assert (whole.status, whole.usage.output_tokens) in (("incomplete", 40), ("completed", whole.usage.output_tokens))
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    events = list(api.responses.create(**ASK, stream=True))
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds[:5] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added", "response.output_text.delta"], kinds
    assert kinds[5:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                         f"response.{whole.status}"], kinds
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
    assert events[-1].response.output_text == text
    # The package's own accumulator compares every snapshot with the last response.
    short = {**ASK, "input": "Hello", "max_output_tokens": 400}
    with api.responses.stream(**short) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.status == "completed" and final.output_text == api.responses.create(**short).output_text
    scored = api.responses.create(**ASK, include=["message.output_text.logprobs"], top_logprobs=2)
    tokens = scored.output[0].content[0].logprobs
    assert "".join(token.token for token in tokens) == text and len(tokens[0].top_logprobs) == 2
    counted = api.responses.input_tokens.count(model=MODEL, input=ASK["input"])
    assert counted.input_tokens == whole.usage.input_tokens


def check_state(api):
    first = api.responses.create(**{**ASK, "input": "My cat is called Tom."}, metadata={"topic": "cats"})
    again = api.responses.retrieve(first.id)
    assert again.to_dict() == first.to_dict() and again.metadata == {"topic": "cats"}
    second = api.responses.create(**{**ASK, "input": "Who is Tom?"}, previous_response_id=first.id)
    history = [{"role": "user", "content": "My cat is called Tom."}, *first.output, {"role": "user", "content": "Who is Tom?"}]
    at_once = api.responses.create(**{**ASK, "input": history}, store=False)
    assert second.output_text == at_once.output_text and second.usage.input_tokens == at_once.usage.input_tokens
    items = list(api.responses.input_items.list(second.id, limit=1, order="asc"))
    assert [item.content[0].text for item in items] == ["My cat is called Tom.", first.output_text, "Who is Tom?"]
    assert refused(openai.NotFoundError, api.responses.retrieve, response_id=at_once.id).code == "response_not_found"
    api.responses.delete(first.id)
    refused(openai.NotFoundError, api.responses.retrieve, response_id=first.id)
    error = refused(openai.BadRequestError, api.responses.create, **ASK, previous_response_id=first.id)
    assert error.code == "previous_response_not_found" and error.param == "previous_response_id", error


def check_background(api):
    begun = api.responses.create(**ASK, background=True)
    assert begun.status == "in_progress" and begun.background, begun
    while (now := api.responses.retrieve(begun.id)).status == "in_progress":
        time.sleep(0.05)
    assert now.output_text == api.responses.create(**ASK).output_text
    long = api.responses.create(**{**ASK, "max_output_tokens": 1900}, background=True, extra_body={"ignore_eos": True})
    assert api.responses.cancel(long.id).status == "cancelled"
    assert api.responses.retrieve(long.id).status == "cancelled"
    assert "background" in refused(openai.BadRequestError, api.responses.cancel, response_id=api.responses.create(**ASK).id).message


def check_forms(api):
    ask = {**ASK, "max_output_tokens": 200}
    parsed = api.responses.parse(**ask, text_format=Pet)
    assert isinstance(parsed.output_parsed, Pet), parsed
    with api.responses.stream(**ask, text_format=Pet) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    for choice in ["required", {"type": "function", "name": "get_weather"}]:
        ask_tool = dict(**ask, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
        answer = api.responses.create(**ask_tool)
        (call,) = answer.output
        weather = GetWeather.model_validate_json(call.arguments)
        assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed"), call
        with api.responses.stream(**ask_tool) as stream:
            deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
            (streamed,) = stream.get_final_response().output
        assert "".join(deltas) == call.arguments == streamed.arguments and len(deltas) > 5
        output = {"type": "function_call_output", "call_id": call.call_id, "output": f"sunny in {weather.city}"}
        told = api.responses.create(**{**ASK, "input": [output]}, previous_response_id=answer.id)
        assert told.output_text and told.usage.input_tokens > answer.usage.input_tokens - 200, told
    error = refused(openai.BadRequestError, api.responses.create, **ASK, tools=[{"type": "web_search"}])
    assert error.param == "tools[0].type" and "web_search" in error.message, error
    stray = [{"type": "function_call_output", "call_id": "call_x", "output": ""}]
    assert "call_x" in refused(openai.BadRequestError, api.responses.create, **{**ASK, "input": stray}).message
    long = refused(openai.BadRequestError, api.responses.create, **{**ASK, "input": "word " * 5000})
    assert long.code == "context_length_exceeded" and "2048" in long.message, long
    turns = [{"role": "user", "content": "word " * 400}] * 8 + [{"role": "user", "content": "Hello"}]
    refused(openai.BadRequestError, api.responses.create, **{**ASK, "input": turns})
    assert api.responses.create(**{**ASK, "input": turns}, truncation="auto").usage.input_tokens < 2048


def check_langchain():
    chat = ChatOpenAI(model=MODEL, temperature=0, max_tokens=40, max_retries=0, api_key="none", base_url=f"{URL}/v1",
                      use_responses_api=True)
    whole = chat.invoke("Tell me a story about a cat.")
    joined = None
    for chunk in chat.stream("Tell me a story about a cat."):
        joined = chunk if joined is None else joined + chunk
    assert len(whole.text) > 20 and joined.text == whole.text, (whole, joined)
    later = chat.invoke("And then?", previous_response_id=whole.response_metadata["id"])
    assert later.usage_metadata["input_tokens"] > whole.usage_metadata["input_tokens"], later
    bound = chat.bind(max_tokens=200).bind_tools([GetWeather], tool_choice="GetWeather", strict=True)
    (call,) = bound.invoke("What is the weather in Rome?").tool_calls
    assert GetWeather(**call["args"]), call


async def check_many():
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as api:
        async def streamed():
            events = await api.responses.create(**ASK, stream=True)
            return "".join([event.delta async for event in events if event.type == "response.output_text.delta"])

        alone = await streamed()
        assert await asyncio.gather(*(streamed() for _ in range(8))) == [alone] * 8


transport = httpx2.HTTPTransport(uds=SOCKET)
for client in [{}, {"http_client": httpx2.Client(transport=transport)}]:
    api = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, **client)
    check_text(api)
    check_state(api)
    check_background(api)
    check_forms(api)
check_langchain()
asyncio.run(check_many())
print("ok")
