"""Structured output and tools against `mlxr serve`, as the packages of all three dialects and LangChain ask for them.

The bundled model is small and says what it likes; it is the grammar that makes every answer below what it must be.
"""

import json
import os
import re
from typing import Literal

import anthropic
import httpx2
import ollama
import openai
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field

URL = os.environ["MLXR_URL"]
SOCKET = os.environ["MLXR_SOCKET"]
MODEL = "mlxr-27m"
ASK = [{"role": "user", "content": "What is the weather in Rome?"}]


class Pet(BaseModel):
    """A pet."""

    model_config = ConfigDict(extra="forbid")
    animal: Literal["cat", "dog"]
    age: int = Field(ge=1, le=20)
    name: str = Field(max_length=8)


class GetWeather(BaseModel):
    """The weather of the next days."""

    model_config = ConfigDict(extra="forbid")
    city: str = Field(max_length=10)
    days: int = Field(ge=1, le=9)


def get_weather(city: str, days: int) -> str:
    """The weather of the next days."""
    return f"sunny in {city} for {days} days"


def refused(kind, call, **ask):
    try:
        call(**ask)
    except kind as error:
        return error
    raise AssertionError(f"{ask} was not refused")


def check_openai(api):
    ask = dict(model=MODEL, messages=ASK, temperature=0, max_completion_tokens=200)
    chat = api.chat.completions
    parsed = chat.parse(**ask, response_format=Pet).choices[0].message
    assert isinstance(parsed.parsed, Pet) and json.loads(parsed.content) == parsed.parsed.model_dump(), parsed
    with chat.stream(**ask, response_format=Pet) as events:
        pieces = [event.delta for event in events if event.type == "content.delta"]
        assert events.get_final_completion().choices[0].message.parsed == parsed.parsed
    assert "".join(pieces) == parsed.content and len(pieces) > 5
    anything = chat.create(**{**ask, "max_completion_tokens": 400}, response_format={"type": "json_object"})
    if anything.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(anything.choices[0].message.content), dict), anything
    for form in [
        {"response_format": {"type": "regex", "pattern": "[0-9]{3}-[a-c]{2}"}},
        {"guided_regex": "[0-9]{3}-[a-c]{2}"},
        {"grammar": 'root ::= [0-9] [0-9] [0-9] "-" [a-c] [a-c]'},
        {"guided_grammar": "start: /[0-9]{3}-[a-c]{2}/"},
    ]:
        text = chat.create(**ask, extra_body=form).choices[0].message.content
        assert re.fullmatch("[0-9]{3}-[a-c]{2}", text), (form, text)
    chosen = chat.create(**ask, extra_body={"structured_outputs": {"choice": ["rain", "sun"]}})
    assert chosen.choices[0].message.content in ("rain", "sun"), chosen

    tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ["required", named]:
        ask_tool = dict(**ask, tools=tools, tool_choice=choice, parallel_tool_calls=False)
        answer = chat.parse(**ask_tool).choices[0]
        (call,) = answer.message.tool_calls
        assert answer.finish_reason == "tool_calls" and answer.message.content is None, answer
        assert isinstance(call.function.parsed_arguments, GetWeather), call
        with chat.stream(**ask_tool) as events:
            deltas = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
            (streamed,) = events.get_final_completion().choices[0].message.tool_calls
        assert "".join(deltas) == call.function.arguments == streamed.function.arguments and len(deltas) > 5
    result = {"role": "tool", "tool_call_id": call.id, "content": get_weather(**json.loads(call.function.arguments))}
    history = [*ASK, answer.message.to_dict(), result]
    told = chat.create(**{**ask, "messages": history, "max_completion_tokens": 20}, tools=tools, tool_choice="none")
    assert told.choices[0].message.tool_calls is None and told.choices[0].message.content, told

    unknown = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"uniqueItems": True}}}
    error = refused(openai.BadRequestError, chat.create, **ask, response_format=unknown)
    assert error.param == "response_format.json_schema.schema" and "uniqueItems" in error.message, error
    stray = {"type": "function", "function": {"name": "nothing"}}
    error = refused(openai.BadRequestError, chat.create, **ask, tools=tools, tool_choice=stray)
    assert error.param == "tool_choice" and "nothing" in error.message, error
    error = refused(openai.BadRequestError, chat.create, **ask, tool_choice="required")
    assert error.param == "tool_choice", error


def check_langchain(chat):
    pet = chat.with_structured_output(Pet).invoke(ASK)
    assert isinstance(pet, Pet), pet
    weather = chat.with_structured_output(GetWeather, method="function_calling").invoke(ASK)
    assert isinstance(weather, GetWeather), weather
    called = chat.bind_tools([GetWeather], tool_choice="any", parallel_tool_calls=False)
    (call,) = called.invoke(ASK).tool_calls
    assert call["name"] == "GetWeather" and GetWeather(**call["args"]), call
    joined = None
    for chunk in called.stream(ASK):
        joined = chunk if joined is None else joined + chunk
    assert [again["args"] for again in joined.tool_calls] == [call["args"]], joined


def check_ollama(api):
    options = {"temperature": 0, "num_predict": 200}
    whole = api.chat(MODEL, ASK, format=Pet.model_json_schema(), options=options)
    pet = Pet.model_validate_json(whole.message.content)
    lines = list(api.chat(MODEL, ASK, format=Pet.model_json_schema(), options=options, stream=True))
    assert "".join(line.message.content for line in lines) == whole.message.content and len(lines) > 5
    told = api.generate(MODEL, ASK[0]["content"], format=Pet.model_json_schema(), options=options)
    assert Pet.model_validate_json(told.response) == pet
    anything = api.chat(MODEL, ASK, format="json", options={**options, "num_predict": 400})
    assert anything.message.content.startswith("{"), anything
    if anything.done_reason == "stop":
        assert isinstance(json.loads(anything.message.content), dict), anything

    # Ollama has no way to insist on a call; a model that must write what only a call can be has to make one.
    never = {"type": "object", "properties": {"x": {"const": "never"}}, "required": ["x"], "additionalProperties": False}
    answer = api.chat(MODEL, ASK, tools=[get_weather], format=never, options=options).message
    for call in answer.tool_calls or []:
        assert call.function.name == "get_weather" and set(call.function.arguments) == {"city", "days"}, call
    assert answer.tool_calls or json.loads(answer.content) == {"x": "never"}, answer
    call = ollama.Message.ToolCall.Function(name="get_weather", arguments={"city": "Rome", "days": 1})
    history = [*ASK, ollama.Message(role="assistant", tool_calls=[ollama.Message.ToolCall(function=call)]),
               ollama.Message(role="tool", tool_name="get_weather", content="sunny")]
    later = api.chat(MODEL, history, tools=[get_weather], options={**options, "num_predict": 10})
    assert later.prompt_eval_count > whole.prompt_eval_count, later
    error = refused(ollama.ResponseError, api.chat, model=MODEL, messages=ASK, format={"uniqueItems": True})
    assert error.status_code == 400 and "uniqueItems" in error.error, error
    error = refused(ollama.ResponseError, api.chat, model=MODEL, messages=ASK, think="high")
    assert error.status_code == 400 and "thinking" in error.error, error


def check_anthropic(api):
    ask = dict(model=MODEL, max_tokens=200, messages=ASK, extra_body={"temperature": 0})
    schema = anthropic.transform_schema(Pet)
    tools = [{"name": "get_weather", "description": "The weather.", "input_schema": GetWeather.model_json_schema()}]
    for choice in [{"type": "tool", "name": "get_weather"}, {"type": "any", "disable_parallel_tool_use": True}]:
        whole = api.messages.create(**ask, tools=tools, tool_choice=choice)
        (block,) = whole.content
        assert whole.stop_reason == "tool_use" and block.type == "tool_use", whole
        assert GetWeather(**block.input) and block.name == "get_weather", block
        with api.messages.stream(**ask, tools=tools, tool_choice=choice) as stream:
            deltas = [event.partial_json for event in stream if event.type == "input_json"]
            streamed = stream.get_final_message()
        assert streamed.content[0].input == block.input == json.loads("".join(deltas)), streamed
    result = {"type": "tool_result", "tool_use_id": block.id, "content": get_weather(**block.input)}
    history = [*ASK, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    told = api.messages.create(**{**ask, "messages": history, "max_tokens": 20}, tools=tools, tool_choice={"type": "none"})
    assert told.content[0].type == "text", told
    form = api.messages.create(**ask, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert Pet.model_validate_json(form.content[0].text), form
    # The bundled model does not think; asking it to is no error, and the answer says so.
    thinking = {"type": "enabled", "budget_tokens": 1024}
    quiet = api.messages.with_raw_response.create(**{**ask, "max_tokens": 20}, thinking=thinking)
    assert quiet.headers["x-mlxr-unsupported"] == "thinking", quiet.headers
    error = refused(anthropic.BadRequestError, api.messages.create, **ask, tools=tools, tool_choice={"type": "tool", "name": "x"})
    assert "tool_choice" in error.body["error"]["message"], error
    hosted = [{"type": "web_search_20250305", "name": "web_search"}]
    error = refused(anthropic.BadRequestError, api.messages.create, **ask, tools=hosted)
    assert "web_search_20250305" in error.body["error"]["message"], error


transport = httpx2.HTTPTransport(uds=SOCKET)
for client in [{}, {"http_client": httpx2.Client(transport=transport)}]:
    check_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, **client))
check_langchain(ChatOpenAI(model=MODEL, temperature=0, max_tokens=200, max_retries=0, api_key="none", base_url=f"{URL}/v1"))
check_ollama(ollama.Client(URL))
check_anthropic(anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0))
print("ok")
