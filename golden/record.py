"""How the reference files are written: versions and readable, compact JSON."""

import importlib.metadata
import json
import platform


def versions(*packages):
    """The versions that made a file."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def floats(values, digits=6):
    """Numbers with `digits` significant decimal digits: enough to tell float32 results 1e-5 apart."""
    return [float(f"{float(v):.{digits}e}") for v in values]


def is_flat(value):
    return isinstance(value, list) and all(not isinstance(v, (list, dict)) or is_row(v) for v in value)


def is_row(value):
    return isinstance(value, list) and len(value) <= 2 and all(isinstance(v, (int, float)) for v in value)


def pretty(value, indent=""):
    """JSON with one line per key; a list of plain values stays on its line."""
    deeper = indent + " "
    if isinstance(value, dict) and value:
        rows = [f"{deeper}{json.dumps(k, ensure_ascii=False)}: {pretty(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + indent + "}"
    if isinstance(value, list) and value and not is_flat(value):
        return "[\n" + ",\n".join(deeper + pretty(v, deeper) for v in value) + "\n" + indent + "]"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_json(path, value):
    path.write_text(pretty(value) + "\n", encoding="utf-8")
