"""Files from the reference writers, and files that lie.

usage: python golden/checkpoint/make.py

Writes beside this script: `python.gguf` and `python.safetensors` with what they hold in `python.json`, and `bad.json`.
Writes `fuzz/seeds/*/`: damaged files; `bad.json` says which words of the error each must cause.
"""

import importlib.metadata
import json
import pathlib
import struct

import gguf
import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
SEEDS = HERE.parents[1] / "fuzz" / "seeds"


def good_gguf():
    path = HERE / "python.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -3)
    writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -30000)
    writer.add_uint32("t.u32", 4000000000)
    writer.add_int32("t.i32", -2000000000)
    writer.add_uint64("t.u64", 2**64 - 1)
    writer.add_int64("t.i64", -(2**63))
    writer.add_float32("t.f32", 1.5)
    writer.add_float64("t.f64", -0.1)
    writer.add_bool("t.bool", True)
    writer.add_string("t.string", "žluť \U0001f999")
    writer.add_array("t.strings", ["a", "bc", ""])
    writer.add_array("t.ints", [1, -2, 3])
    writer.add_array("t.floats", [0.5, -0.25])
    writer.add_array("t.bools", [True, False, True])
    values = np.sin(np.arange(2 * 64, dtype=np.float32)).reshape(2, 64)
    expected = {}
    for name, kind in [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0"), ("q4_0", "Q4_0"), ("q5_1", "Q5_1")]:
        kind = gguf.GGMLQuantizationType[kind]
        data = gguf.quantize(values, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
        expected[f"{name}.weight"] = gguf.dequantize(data, kind).astype(np.float32).flatten().tolist()
    writer.add_tensor("cube", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    expected["cube"] = list(range(24))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def good_safetensors():
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4, dtype=np.float16),
        "c": np.array([], dtype=np.float32).reshape(0, 3),
    }
    save_file(tensors, HERE / "python.safetensors", metadata={"format": "np"})
    return {name: {"shape": list(t.shape), "values": t.astype(np.float32).flatten().tolist()} for name, t in tensors.items()}


def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def entry(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


def tensor(name, dims, kind, offset):
    head = text(name) + struct.pack("<I", len(dims))
    return head + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)


def build(entries=(), tensors=(), data=b"", magic=b"GGUF", version=3, n_tensors=None, n_entries=None, align=32):
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    n_entries = len(entries) if n_entries is None else n_entries
    out = magic + struct.pack("<IQQ", version, n_tensors, n_entries) + b"".join(entries) + b"".join(tensors)
    return out + b"\0" * (-len(out) % align) + data


ARCH = entry("general.architecture", 8, text("llama"))
F32, Q4_0 = 0, 2
HUGE = 2**62


def deep_array(levels):
    head = b"".join(struct.pack("<IQ", 9, 1) for _ in range(levels))
    return entry("deep", 9, head + struct.pack("<IQ", 0, 0))


def bad_gguf():
    one = lambda *args: build([ARCH], [tensor(*args)], b"\0" * 256)
    return {
        "empty": (b"", "magic"),
        "magic": (build(magic=b"GGML"), '"GGUF"'),
        "version_1": (build(version=1), "version"),
        "version_9": (build(version=9), "version"),
        "big_endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        "many_tensors": (build([ARCH], n_tensors=HUGE), "tensor count"),
        "many_entries": (build([ARCH], n_entries=HUGE), "metadata count"),
        "long_key": (build([struct.pack("<Q", HUGE)], n_entries=1), "metadata count"),
        "long_string": (build([entry("k", 8, struct.pack("<Q", HUGE))]), "metadata"),
        "long_array": (build([entry("k", 9, struct.pack("<IQ", 10, HUGE))]), "array length"),
        "long_strings": (build([entry("k", 9, struct.pack("<IQ", 8, HUGE))]), "array length"),
        "deep_array": (build([deep_array(60)]), "nested deeper"),
        "value_type": (build([entry("k", 77, b"\0" * 8)]), "value type"),
        "bad_bool": (build([entry("k", 7, b"\x02")]), "0 or 1"),
        "key_not_utf8": (build([entry(b"\xff\xfe", 0, b"\0")]), "UTF-8"),
        "key_twice": (build([ARCH, ARCH]), "second time"),
        "no_architecture": (build(), "general.architecture"),
        "architecture": (build([entry("general.architecture", 8, text("rwkv9"))]), "unknown architecture"),
        "alignment": (build([ARCH, entry("general.alignment", 4, struct.pack("<I", 33))]), "power of two"),
        "alignment_zero": (build([ARCH, entry("general.alignment", 4, struct.pack("<I", 0))]), "power of two"),
        "five_dimensions": (one("t", [1] * 5, F32, 0), "dimension count"),
        "many_dimensions": (build([ARCH], [text("t") + struct.pack("<I", 2**31)], b"\0" * 64), "dimension count"),
        "zero_dimension": (one("t", [0, 4], F32, 0), "dimension"),
        "overflowing_shape": (one("t", [2**33, 2**33], F32, 0), "shape"),
        "huge_dimension": (one("t", [2**63], F32, 0), "shape"),
        "partial_block": (one("t", [33], Q4_0, 0), "whole Q4_0 blocks"),
        "retired_type": (one("t", [32], 4, 0), "type"),
        "unaligned": (one("t", [4], F32, 4), "multiple of 32"),
        "behind_the_end": (one("t", [64], F32, 224), "ends within the file"),
        "far_offset": (one("t", [4], F32, 2**64 - 32), "ends within the file"),
        "tensor_twice": (build([ARCH], [tensor("t", [4], F32, 0), tensor("t", [4], F32, 32)], b"\0" * 64), "second time"),
        "overlap": (build([ARCH], [tensor("a", [16], F32, 0), tensor("b", [4], F32, 32)], b"\0" * 64), "where tensor"),
        "truncated_data": (build([ARCH], [tensor("t", [64], F32, 0)], b"\0" * 255), "ends within the file"),
        "split_without_name": (build([ARCH, entry("split.count", 2, struct.pack("<H", 3))]), "part number"),
    }


def header(value, data=b"", length=None):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def bad_safetensors():
    def one(dtype, shape, offsets, data=b"\0" * 8):
        return header({"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, data)

    twice = b'{"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"t":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}'
    return {
        "empty": (b"", "at least 8"),
        "long_header": (header(b"{}", length=HUGE), "header length"),
        "not_json": (header(b"\xff\xff\xff"), "header"),
        "array": (header(b"[]"), "header"),
        "deep": (header(b'{"t":' * 500), "header"),
        "negative": (one("U8", [-8], [0, 8]), "header"),
        "unknown_type": (one("Q3", [8], [0, 8]), "tensor type"),
        "backwards": (one("U8", [8], [8, 0]), "offsets in order"),
        "outside": (one("U8", [80], [0, 80]), "within the 8 bytes"),
        "wrong_size": (one("F32", [3], [0, 8]), "12 bytes"),
        "overflow": (one("F32", [2**63, 2**63], [0, 8]), "fits in memory"),
        "hole": (header({"t": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, b"\0" * 8), "start of data"),
        "left_over": (one("U8", [4], [0, 4]), "data"),
        "twice": (header(twice, b"\0" * 8), "second time"),
        "overlap": (
            header(
                {
                    "a": {"dtype": "U8", "shape": [6], "data_offsets": [0, 6]},
                    "b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]},
                },
                b"\0" * 8,
            ),
            "start of data",
        ),
    }


def bad_config():
    llama = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    return {
        "empty": (b"", "invalid JSON"),
        "array": (b"[]", "invalid JSON"),
        "deep": (b'{"a":' * 500, "invalid JSON"),
        "no_model_type": (b"{}", "unknown architecture"),
        "model_type_number": (b'{"model_type": 7}', "unknown architecture"),
        "unknown": (b'{"model_type": "rwkv9"}', "supported are"),
        # These are for the model loader to refuse: a checkpoint without tensors is still one.
        "zero_heads": (json.dumps({**llama, "num_attention_heads": 0}).encode(), None),
        "many_layers": (json.dumps({**llama, "model_type": "gemma2", "num_hidden_layers": 2**60}).encode(), None),
        "strings": (json.dumps({key: "x" for key in llama} | {"model_type": "gemma2", "rope_scaling": "x"}).encode(), None),
        "rope": (json.dumps({**llama, "rope_parameters": {"full_attention": 3, "rope_type": []}}).encode(), None),
        "window_flags": (json.dumps({**llama, "model_type": "gemma2", "sliding_window_pattern": [1, None]}).encode(), None),
    }


def bad_tokenizer():
    base = json.loads((HERE.parent / "tiny" / "llama" / "hf" / "tokenizer.json").read_text())
    change = lambda **model: json.dumps({**base, "model": {**base["model"], **model}}).encode()
    return {
        "empty": b"",
        "array": b"[]",
        "deep": b'{"model":' * 500,
        "far_id": change(vocab={"a": 2**62}),
        "negative_id": change(vocab={"a": -1}),
        "same_ids": change(vocab={"a": 1, "b": 1}),
        "merges": change(merges=[["nowhere", "known"], "x", 3]),
        "regex": json.dumps({**base, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(((((a+)+)+)+"}, "behavior": "Isolated", "invert": False}}).encode(),
        "added_far": json.dumps({**base, "added_tokens": [{"id": 2**62, "content": "x"}]}).encode(),
    }


def write_seeds(kind, suffix, files):
    folder = SEEDS / kind
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}{suffix}").write_bytes(content)


def main():
    versions = {name: importlib.metadata.version(name) for name in ("gguf", "safetensors", "numpy")}
    good = {"versions": versions, "gguf": good_gguf(), "safetensors": good_safetensors()}
    (HERE / "python.json").write_text(json.dumps(good, indent=1) + "\n")
    expected = {}
    for kind, suffix, files in [
        ("gguf", ".gguf", bad_gguf()),
        ("safetensors", ".safetensors", bad_safetensors()),
        ("config", ".json", bad_config()),
    ]:
        write_seeds(kind, suffix, {name: content for name, (content, _) in files.items()})
        expected[kind] = {name + suffix: words for name, (_, words) in files.items()}
    write_seeds("tokenizer", ".json", bad_tokenizer())
    (HERE / "bad.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
