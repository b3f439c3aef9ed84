"""What transformers' template environment renders for a set of conversations.

usage: python golden/text/make_templates.py [--shared FOLDER] [--out FOLDER]

Renders the templates of `golden/text/templates` and of the text crate (our own) and, with `--shared`, those of a folder of published ones.
Our own templates' prompts are written in full; of a published template only a hash of each prompt is.
A conversation a template refuses or fails on has `error` instead.
Needs golden/requirements.txt.
"""

import argparse
import datetime
import hashlib
import json
import pathlib

import jinja2
import transformers
from transformers.utils import chat_template_utils

NOW = datetime.datetime(2024, 7, 26, 13, 5, 9)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class FixedTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = FixedTime


def tool(name, description, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    tool("get_weather", "Weather of a <city> & \"region\", today's.",
         city={"type": "string", "description": "Name, e.g. Zürich"},
         unit={"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"}),
    tool("add", "Adds numbers.",
         a={"type": "number", "minimum": 0.5}, b={"type": ["integer", "null"]},
         items={"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}),
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}},
]
USER = {"role": "user", "content": "What is the weather in Zürich?\n  Thanks. "}
SYSTEM = {"role": "system", "content": "You are a helpful assistant.\nBe brief."}
ANSWER = {"role": "assistant", "content": "It is sunny & 21.5°C."}
NEXT = {"role": "user", "content": "And <tomorrow>?"}


def call(arguments, name="get_weather", content="", call_id="call00001"):
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": content, "tool_calls": [{"id": call_id, "type": "function", "function": function}]}


CALL = call({"city": "Zürich", "unit": "celsius"})
TWO_CALLS = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}},
    {"id": "call00002", "type": "function", "function": {"name": "add", "arguments": {"a": 1.5, "b": None, "items": [{"x": 1}], "big": 1e16, "ok": True}}},
]}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": "{\"temp\": 21.5}"}
RESULT_2 = {"role": "tool", "name": "add", "tool_call_id": "call00002", "content": "2"}
THOUGHT = {"role": "assistant", "content": "Sunny.", "reasoning_content": "The user asks about weather.\n"}
TAGGED = {"role": "assistant", "content": "<think>\nHm, weather.\n</think>\n\nSunny."}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "text", "text": "a cat?"}]}
IMAGE = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}

CONVERSATIONS = {
    "simple": dict(messages=[USER], add_generation_prompt=True),
    "no prompt": dict(messages=[USER, ANSWER]),
    "system": dict(messages=[SYSTEM, USER], add_generation_prompt=True),
    "multi-turn": dict(messages=[SYSTEM, USER, ANSWER, NEXT], add_generation_prompt=True),
    "tools": dict(messages=[USER], tools=TOOLS, add_generation_prompt=True),
    "tools, system": dict(messages=[SYSTEM, USER], tools=TOOLS, add_generation_prompt=True),
    "tool call": dict(messages=[USER, CALL, RESULT], tools=TOOLS[:1], add_generation_prompt=True),
    "tool call as text": dict(messages=[USER, call("{\"city\": \"Zürich\"}"), RESULT], tools=TOOLS[:1], add_generation_prompt=True),
    "tool call with text": dict(messages=[SYSTEM, USER, call({"city": "Bern"}, content="Let me see."), RESULT, ANSWER, NEXT], tools=TOOLS, add_generation_prompt=True),
    "two tool calls": dict(messages=[USER, TWO_CALLS, RESULT, RESULT_2], tools=TOOLS, add_generation_prompt=True),
    "two tool calls answered": dict(messages=[USER, TWO_CALLS, RESULT, RESULT_2, ANSWER, NEXT], tools=TOOLS, add_generation_prompt=True),
    "tool result without tools": dict(messages=[USER, CALL, RESULT], add_generation_prompt=True),
    "structured result": dict(messages=[USER, CALL, {**RESULT, "content": {"temp": 21.5, "sky": ["clear", None]}}], tools=TOOLS[:1], add_generation_prompt=True),
    "thinking on": dict(messages=[SYSTEM, USER], add_generation_prompt=True, enable_thinking=True, thinking=True),
    "thinking off": dict(messages=[SYSTEM, USER], add_generation_prompt=True, enable_thinking=False, thinking=False),
    "reasoning": dict(messages=[USER, THOUGHT, NEXT], add_generation_prompt=True),
    "reasoning last": dict(messages=[USER, THOUGHT], add_generation_prompt=False),
    "reasoning tagged": dict(messages=[USER, TAGGED, NEXT, ANSWER]),
    "reasoning and call": dict(messages=[USER, {**CALL, "reasoning_content": "I need the tool."}, RESULT], tools=TOOLS[:1], add_generation_prompt=True),
    "effort": dict(messages=[USER], add_generation_prompt=True, reasoning_effort="high"),
    "no_think": dict(messages=[{"role": "system", "content": "Short. /no_think"}, USER], add_generation_prompt=True),
    "parts": dict(messages=[PARTS], add_generation_prompt=True),
    "parts, system": dict(messages=[{"role": "system", "content": [{"type": "text", "text": "Sys."}]}, PARTS, {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}, NEXT], add_generation_prompt=True),
    "image": dict(messages=[IMAGE], add_generation_prompt=True),
    "starts with assistant": dict(messages=[ANSWER, USER]),
    "two users": dict(messages=[USER, NEXT], add_generation_prompt=True),
    "two systems": dict(messages=[SYSTEM, SYSTEM, USER]),
    "system later": dict(messages=[USER, SYSTEM, NEXT], add_generation_prompt=True),
    "developer": dict(messages=[{"role": "developer", "content": "Be kind."}, USER], add_generation_prompt=True),
    "unknown role": dict(messages=[{"role": "critic", "content": "Hm."}, USER], add_generation_prompt=True),
    "no messages": dict(messages=[], add_generation_prompt=True),
    "null content": dict(messages=[USER, {"role": "assistant", "content": None}, NEXT], add_generation_prompt=True),
    "no content": dict(messages=[USER, {"role": "assistant"}, NEXT], add_generation_prompt=True),
    "documents": dict(messages=[USER], documents=[{"title": "A", "text": "Alpha."}], add_generation_prompt=True),
    "builtin tools": dict(messages=[SYSTEM, USER], tools=TOOLS, builtin_tools=["browser", "python", "wolfram_alpha"], date_string="1 Jan 2025", add_generation_prompt=True),
}


def render(source, conversation):
    options = dict(conversation)
    messages = options.pop("messages")
    tools = options.pop("tools", None)
    prompts, _ = chat_template_utils.render_jinja_template(
        [messages], tools=tools, chat_template=source, **TOKENS, **options)
    return prompts[0]


def outcome(source, conversation, in_full):
    try:
        prompt = render(source, conversation)
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)} if in_full else {"error": type(error).__name__}
    if in_full:
        return {"prompt": prompt}
    return {"sha256": hashlib.sha256(prompt.encode()).hexdigest(), "chars": len(prompt)}


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=here)
    parser.add_argument("--full", action="store_true", help="published templates' prompts in full, to look for a difference")
    args = parser.parse_args()
    head = {"versions": {"jinja2": jinja2.__version__, "transformers": transformers.__version__}, "now": NOW.isoformat(), "tokens": TOKENS}

    def write(name, in_full, *folders):
        rendered = {}
        for path in sorted((p for folder in folders for p in folder.glob("*.jinja")), key=lambda p: p.name):
            source = path.read_text(encoding="utf-8")
            rendered[path.name] = {title: outcome(source, c, in_full) for title, c in CONVERSATIONS.items()}
        text = json.dumps({**head, "rendered": rendered}, ensure_ascii=False, indent=1)
        (args.out / name).write_text(text + "\n", encoding="utf-8")

    (args.out / "conversations.json").write_text(json.dumps(CONVERSATIONS, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    write("templates.json", True, here / "templates", here / "../../crates/mlxr-text/src/chat_template")
    if args.shared:
        write("published-templates.json", args.full, args.shared)


if __name__ == "__main__":
    main()
