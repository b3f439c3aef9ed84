"""Reference outputs of the bundled model: float32 on the CPU with transformers.

usage: python golden/house.py FOLDER [OUT]

FOLDER holds `main/` and `draft/` in the Hugging Face layout.
OUT defaults to `house.json` beside this script.
"""

import argparse
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from record import versions, write_json

N_GREEDY = 64
END_IDS = (0, 2)
NOTE = (
    "Greedy decoding in float32 on the CPU, key/value cache on. "
    "greedy_ids: 64 ids, not stopped at an end id; stop: index of the first end id (2 or 0) or null. "
    "top10: [id, logit] at the last prompt position. "
    "margins: the gap between the two best logits at every step; "
    "where it is below 1e-3 another engine may choose the other id."
)


def function(name, description, **properties):
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = function("get_weather", "Get the current weather for a city.", city="string")
ADD = function("add", "Add two numbers.", a="number", b="number")


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


RAW = [
    "Once upon a time",
    "Once upon a time, there was a little robot named Bolt who",
    "The capital of Spain is",
    "Q: What is the plural of mouse?\nA:",
    "🐱 Héllo wörld,\n\n  two  spaces\tand a tab: 12345",
    "In a quiet village, there was a",
]
CHATS = [
    [user("Who are you?")],
    [user("Tell me a story about a dragon.")],
    [user("Tell me a story about a girl named Mia and a lost kite.")],
    [user("What is 23 + 45?")],
    [user("What is the capital of Mongolia?")],
    [user("Extract name, age and city as JSON: Maria Lopez is 34 years old and lives in Rome.")],
    [user("Show me the emoji for rocket.")],
    [user("Spell the word banana backwards.")],
    [user("How do you say sister in French?")],
    [system("You are Captain Finn, a friendly pirate."), user("Who are you?")],
    [
        system("You are a helpful assistant."),
        user("My name is Jonas and I have a dog named Bello."),
        assistant("Nice to meet you, Jonas!"),
        user("What is my dog called?"),
    ],
]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
TOOL_CHATS = [
    ([user("What is the weather in Paris?")], [WEATHER, ADD]),
    ([user("Add 17 and 25.")], [WEATHER, ADD]),
    (
        [
            user("What is the weather in Oslo?"),
            assistant("", tool_calls=[CALL]),
            {"role": "tool", "content": '{"temperature": 4, "condition": "rainy"}'},
        ],
        [WEATHER],
    ),
]


def prompts(tokenizer):
    """Yields one record per prompt, with the text the model reads."""
    for text in RAW:
        yield {"kind": "raw", "text": text}
    chats = [("chat", messages, None) for messages in CHATS]
    chats += [("tools", messages, tools) for messages, tools in TOOL_CHATS]
    for kind, messages, tools in chats:
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        yield {"kind": kind, "messages": messages, "tools": tools, "text": text}


def greedy(model, prompt_ids):
    """Returns the greedy ids, the gap at each step and the ten best logits after the prompt."""
    x, past, ids, margins, top10 = torch.tensor([prompt_ids]), None, [], [], None
    for _ in range(N_GREEDY):
        out = model(input_ids=x, past_key_values=past, use_cache=True)
        past = out.past_key_values
        best = out.logits[0, -1].topk(10)
        if top10 is None:
            top10 = [[i, round(v, 6)] for i, v in zip(best.indices.tolist(), best.values.tolist())]
        margins.append(round((best.values[0] - best.values[1]).item(), 6))
        ids.append(best.indices[0].item())
        x = torch.tensor([[ids[-1]]])
    return ids, margins, top10


def check_without_cache(model, prompt_ids, ids, margins):
    """One forward over everything must choose the same ids wherever the gap is not tiny."""
    logits = model(input_ids=torch.tensor([prompt_ids + ids]), use_cache=False).logits[0]
    again = logits[len(prompt_ids) - 1 : -1].argmax(-1).tolist()
    return all(a == b or gap < 1e-3 for a, b, gap in zip(again, ids, margins)), again == ids


def run(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    records = []
    for record in prompts(tokenizer):
        prompt_ids = tokenizer.encode(record["text"], add_special_tokens=False)
        assert tokenizer.decode(prompt_ids) == record["text"]
        ids, margins, top10 = greedy(model, prompt_ids)
        consistent, same = check_without_cache(model, prompt_ids, ids, margins)
        assert consistent, record["text"]
        stop = next((i for i, token in enumerate(ids) if token in END_IDS), None)
        record.update(
            prompt_ids=prompt_ids,
            greedy_ids=ids,
            stop=stop,
            text_out=tokenizer.decode(ids[:stop]),
            top10=top10,
            margins=margins,
            min_margin=min(margins),
            min_margin_before_stop=min(margins if stop is None else margins[: stop + 1]),
            same_without_cache=same,
        )
        records.append(record)
    return records


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path, nargs="?", default=pathlib.Path(__file__).with_name("house.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(args.folder / "main")
    result = {"note": NOTE, "versions": versions("torch", "transformers", "tokenizers")}
    for name in ("main", "draft"):
        records = run(args.folder / name, tokenizer)
        result[name] = records
        same = sum(record["same_without_cache"] for record in records)
        smallest = min(record["min_margin"] for record in records)
        before = min(record["min_margin_before_stop"] for record in records)
        print(f"{name}: {same} of {len(records)} equal without cache; smallest margin {smallest}, before the stop {before}")
    write_json(args.out, result)


if __name__ == "__main__":
    main()
