"""What schemathesis sends, brought near to what the server can work on.

Generated names of models are never those of a model, so that nearly every request would end there; generated lengths
would let a small machine generate for minutes. Values of the wrong type stay as they are.
"""

import os

import schemathesis

MODEL = os.environ["MLXR_MODEL"]
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
# A followed log does not end by itself.
ENDLESS = ("follow",)


def tame(body):
    if isinstance(body.get("model"), str):
        body["model"] = MODEL
    for name in LENGTHS:
        if isinstance(body.get(name), int) and not isinstance(body[name], bool):
            body[name] = min(body[name], 4)
    for name in ("n", "best_of"):
        if isinstance(body.get(name), int) and not isinstance(body[name], bool):
            body[name] = min(body[name], 2)
    if isinstance(body.get("options"), dict):
        tame(body["options"])
    return body


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict):
        return body
    body = tame(dict(body))
    path = context.operation.path if context.operation else ""
    if path in ("/v1/chat/completions", "/v1/completions"):
        body.setdefault("max_tokens", 4)
    if path in ("/api/chat", "/api/generate"):
        options = body.setdefault("options", {})
        if isinstance(options, dict):
            options.setdefault("num_predict", 4)
    return body


@schemathesis.hook
def map_query(context, query):
    return {name: value for name, value in query.items() if name not in ENDLESS} if query else query
