"""What schemathesis sends, brought near to what the server can work on, and two checks of ours.

Generated names of models are never those of a model, so that nearly every request would end there; generated lengths
would let a small machine generate for minutes. Values of the wrong type stay as they are.
"""

import hashlib
import json
import random

import jsonschema_rs
import schemathesis

MODEL = "mlxr-27m"
RERANKER = "reranker"
# Routes without a success here: nothing runs that could be cancelled, and there is no store of models.
NEVER_2XX = {
    "DELETE /mlxr/v1/requests/{model}/{id}",
    "POST /v1/responses/{id}/cancel",
    # The same as /api/delete behind the path.
    "DELETE /v1/models/{id}",
    "POST /api/pull",
    "POST /api/push",
}
# Responses and blobs that the server keeps, by their names.
kept, blobs = [], []
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
# What a request asks for where it says nothing.
LENGTH_OF = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}


def is_number(value):
    """Numbers beyond what the server's own have room for are to be refused as they are."""
    return isinstance(value, int) and not isinstance(value, bool) and value < 2**63


TWINS = ("/v1/messages/count_tokens", "/v1/responses/input_tokens", "/v2/rerank", "/rerank")
# What fields that name models say on routes that make and remove them.
NAMES = {
    "/api/create": {"model": "bard", "from": MODEL},
    "/api/copy": {"source": MODEL, "destination": "poet"},
    "/api/delete": {"model": "bard"},
}


def tame(body, names):
    for name, model in names.items():
        if isinstance(body.get(name), str):
            body[name] = model
    for name in LENGTHS:
        if is_number(body.get(name)):
            body[name] = min(body[name], 2)
    for name in ("n", "best_of"):
        if is_number(body.get(name)):
            body[name] = min(body[name], 2)
    if isinstance(body.get("options"), dict):
        body["options"] = tame(dict(body["options"]), {})
    return body


def beside_an_example(case):
    """One or two generated fields in an example of the route: whole bodies of generated fields are nearly all refused."""
    content = case.operation.definition.raw["requestBody"]["content"].get("application/json", {})
    examples = [example["value"] for example in content.get("examples", {}).values()]
    dice = random.Random(json.dumps(case.body, sort_keys=True))
    if not examples or dice.random() < 0.3:
        return case.body
    names = sorted(case.body)
    chosen = dice.sample(names, min(len(names), dice.choice((1, 2))))
    return dice.choice(examples) | {name: case.body[name] for name in chosen}


@schemathesis.hook
def filter_case(context, case):
    """Routes that read the body of another route need its systematic cases once."""
    is_systematic = case.meta is not None and case.meta.phase.name.value == "coverage"
    return not (is_systematic and case.operation.path in TWINS)


@schemathesis.hook
def before_call(context, case, kwargs):
    path = case.operation.path
    # A followed log does not end by itself.
    if isinstance(case.query, dict) and str(case.query.get("follow")).lower() == "true":
        case.query = {name: value for name, value in case.query.items() if name != "follow"}
    if isinstance(case.path_parameters, dict) and "model" in case.path_parameters:
        case.path_parameters = {**case.path_parameters, "model": MODEL}
    if path.startswith("/v1/responses/{id}") and kept:
        case.path_parameters = {**case.path_parameters, "id": kept[-1]}
    if path == "/api/blobs/{digest}":
        if isinstance(case.body, (bytes, str)):
            content = case.body if isinstance(case.body, bytes) else case.body.encode()
            blobs.append("sha256:" + hashlib.sha256(content).hexdigest())
        if blobs:
            case.path_parameters = {**case.path_parameters, "digest": blobs[-1]}
    if not isinstance(case.body, dict):
        return
    # Not where it is to be refused: the field at fault might be left out.
    is_fuzz = case.meta is not None and case.meta.phase.name.value == "fuzzing"
    is_fuzz = is_fuzz and case.meta.generation.mode.value == "positive"
    names = NAMES.get(path, {"model": RERANKER if path.endswith("/rerank") else MODEL})
    body = tame(dict(beside_an_example(case) if is_fuzz else case.body), names)
    if path in LENGTH_OF:
        body.setdefault(LENGTH_OF[path], 2)
    if path in ("/api/chat", "/api/generate"):
        options = body.setdefault("options", {})
        if isinstance(options, dict):
            options.setdefault("num_predict", 2)
    case.body = body


@schemathesis.hook
def after_call(context, case, response):
    if response.status_code != 200:
        return
    if case.operation.label == "POST /v1/responses" and response.content.startswith(b'{"'):
        kept.append(json.loads(response.content)["id"])
    elif case.operation.label == "DELETE /v1/responses/{id}" and kept:
        kept.remove(case.path_parameters["id"])


def validators():
    """For each reference to the schema of a stream's pieces, what checks one."""
    found = {}

    def validator(case, reference):
        if reference not in found:
            components = case.operation.schema.raw_schema["components"]
            found[reference] = jsonschema_rs.Draft202012Validator({"$ref": reference, "components": components})
        return found[reference]

    return validator


validator = validators()


@schemathesis.check
def stream_pieces_conform(ctx, response, case):
    """Each event, or line, of a stream matches `x-item-schema`."""
    kind = (response.headers.get("content-type") or [""])[0].split(";")[0]
    described = case.operation.definition.raw["responses"].get(str(response.status_code), {}).get("content", {})
    reference = described.get(kind, {}).get("x-item-schema", {}).get("$ref")
    if reference is None:
        return
    lines = response.content.decode("utf-8").split("\n")
    if kind == "text/event-stream":
        known = ("data:", "event:", ":")
        assert all(not line or line.startswith(known) for line in lines), "not the lines of events"
        lines = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    pieces = [json.loads(line) for line in lines if line and line != "[DONE]"]
    assert pieces, "a stream without pieces"
    for piece in pieces:
        # What went wrong after the status was sent is told in the dialect's own words.
        if isinstance(piece, dict) and "error" in piece:
            continue
        errors = [error.message for error in validator(case, reference).iter_errors(piece)]
        assert not errors, f"{reference}: {errors[0]}: {json.dumps(piece)[:500]}"


@schemathesis.check
class every_route_succeeds_once:
    """Checks of answers prove nothing about routes that only ever refuse."""

    def __init__(self):
        self.tested, self.reached = set(), set()

    def after_response(self, ctx, response, case):
        self.tested.add(case.operation.label)
        if 200 <= response.status_code < 300:
            self.reached.add(case.operation.label)

    def after_run(self, ctx):
        missing = self.tested - self.reached - NEVER_2XX
        assert not missing, "never succeeded: " + ", ".join(sorted(missing))
