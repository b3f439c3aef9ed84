"""A random model in the shape of a known one, for benchmarks: written in seconds, without torch.

usage: python golden/shape_model.py --shape tinyllama --type q4_0 OUT.gguf
       python golden/shape_model.py --shape tinyllama --type bf16 OUT_FOLDER --format hf

Quant blocks are random codes with scales such that the values look like trained weights (standard deviation 1 / sqrt(columns)).
Tensors are streamed to disk: memory stays near the largest tensor.
The text such a model writes is noise; its speed and memory are those of the real one.
"""

import argparse
import json
import pathlib
import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

TINYLLAMA = dict(hidden=2048, layers=22, heads=32, kv_heads=4, mlp=5632, vocab=32000, theta=10000.0, n_ctx=2048)
SHAPES = {
    "tinyllama": TINYLLAMA,
    "tinyllama-long": TINYLLAMA | dict(n_ctx=65536),
    "7b": dict(hidden=4096, layers=32, heads=32, kv_heads=32, mlp=11008, vocab=32000, theta=10000.0, n_ctx=4096),
    "llama3-8b": dict(hidden=4096, layers=32, heads=32, kv_heads=8, mlp=14336, vocab=128256, theta=500000.0, n_ctx=8192),
}
FLOATS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
# Where a type keeps its half-precision scales inside a block, and what the codes times one unit of scale look like:
# (offset, standard deviation of a value over the scale); the second entry is the minimum.
SCALES = {
    "q4_0": [(0, 4.6)],
    "q4_1": [(0, 4.6), (2, 4.6 / 7.5)],
    "q5_0": [(0, 9.2)],
    "q5_1": [(0, 9.2), (2, 9.2 / 15.5)],
    "q8_0": [(0, 74.0)],
    "q2_k": [(80, 13.8), (82, 13.8 / 1.5)],
    "q3_k": [(108, 42.0)],
    "q4_k": [(0, 259.0), (2, 259.0 / 7.5)],
    "q5_k": [(0, 522.0), (2, 522.0 / 15.5)],
    "q6_k": [(208, 1370.0)],
    "iq4_nl": [(0, 69.0)],
    "iq4_xs": [(0, 1270.0)],
}
MERGES = ["t h", "i n"]
# llama.cpp's minimum terms are taken off, the older types' are added.
ADDED_MINIMUM = ("q4_1", "q5_1")
FILE_TYPES = {
    "f32": "ALL_F32",
    "q2_k": "MOSTLY_Q2_K",
    "q3_k": "MOSTLY_Q3_K_S",
    "q4_k": "MOSTLY_Q4_K_S",
    "q5_k": "MOSTLY_Q5_K_S",
}


def random_floats(rng, rows, cols, kind):
    value = rng.standard_normal((rows, cols), dtype=np.float32) / np.sqrt(np.float32(cols))
    if kind == "bf16":
        return (value.view(np.uint32) >> 16).astype(np.uint16)
    return value.astype(FLOATS[kind])


def random_blocks(rng, rows, cols, kind):
    """`[rows, bytes per row]` of quant blocks with random codes and set scales."""
    block, n_bytes = gguf.GGML_QUANT_SIZES[Type[kind.upper()]]
    blocks = rng.integers(0, 256, (rows * cols // block, n_bytes), dtype=np.uint8)
    for offset, unit in SCALES[kind]:
        scale = np.float16(1.0 / np.sqrt(cols) / unit)
        if kind in ADDED_MINIMUM and offset:
            scale = -scale
        blocks[:, offset : offset + 2] = np.frombuffer(scale.tobytes(), np.uint8)
        if len(SCALES[kind]) == 1:
            # codes are not symmetric around zero: a random sign of the scale takes the mean away
            blocks[:, offset + 1] ^= rng.integers(0, 2, len(blocks), dtype=np.uint8) << 7
    return blocks.reshape(rows, -1)


def tensors(shape):
    """(GGUF name, Hugging Face name, rows, columns); no columns for a norm."""
    hidden, head_dim = shape["hidden"], shape["hidden"] // shape["heads"]
    kv = shape["kv_heads"] * head_dim
    yield "token_embd", "model.embed_tokens", shape["vocab"], hidden
    for i in range(shape["layers"]):
        for name, hf, rows, cols in [
            ("attn_norm", "input_layernorm", hidden, None),
            ("attn_q", "self_attn.q_proj", hidden, hidden),
            ("attn_k", "self_attn.k_proj", kv, hidden),
            ("attn_v", "self_attn.v_proj", kv, hidden),
            ("attn_output", "self_attn.o_proj", hidden, hidden),
            ("ffn_norm", "post_attention_layernorm", hidden, None),
            ("ffn_gate", "mlp.gate_proj", shape["mlp"], hidden),
            ("ffn_up", "mlp.up_proj", shape["mlp"], hidden),
            ("ffn_down", "mlp.down_proj", hidden, shape["mlp"]),
        ]:
            yield f"blk.{i}.{name}", f"model.layers.{i}.{hf}", rows, cols
    yield "output_norm", "model.norm", hidden, None
    yield "output", "lm_head", shape["vocab"], hidden


def vocabulary(n):
    """Byte tokens first, as a byte-level tokenizer needs them, then fillers."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in keep]
    letters = [chr(b) for b in keep] + [chr(256 + i) for i in range(len(others))]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    known = special + letters + [merge.replace(" ", "") for merge in MERGES]
    return known + [f"Ġtoken{i}" for i in range(n - len(known))]


def kind_of(name, args):
    """The output matrix may have its own type, as in the usual mixes."""
    return args.output_type if name == "output" and args.output_type else args.type


def write_gguf(shape, args):
    writer = gguf.GGUFWriter(args.out, "llama")
    writer.add_name(f"random {args.shape}")
    writer.add_context_length(shape["n_ctx"])
    writer.add_embedding_length(shape["hidden"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["mlp"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(shape["theta"])
    writer.add_rope_dimension_count(shape["hidden"] // shape["heads"])
    writer.add_vocab_size(shape["vocab"])
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES.get(args.type, f"MOSTLY_{args.type.upper()}")])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary(shape["vocab"]))
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (shape["vocab"] - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    rows_of = list(tensors(shape))
    for name, _, rows, cols in rows_of:
        declare(writer, name, rows, cols, "f32" if cols is None else kind_of(name, args))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(args.seed)
    for name, _, rows, cols in rows_of:
        writer.write_tensor_data(make_tensor(rng, rows, cols, "f32" if cols is None else kind_of(name, args)))
    writer.close()


def declare(writer, name, rows, cols, kind):
    shape = (rows,) if cols is None else (rows, cols)
    if kind in ("f32", "f16"):
        itemsize = np.dtype(FLOATS[kind]).itemsize
        writer.add_tensor_info(f"{name}.weight", shape, np.dtype(FLOATS[kind]), rows * (cols or 1) * itemsize)
        return
    raw = Type[kind.upper()]
    n_bytes = cols // gguf.GGML_QUANT_SIZES[raw][0] * gguf.GGML_QUANT_SIZES[raw][1]
    writer.add_tensor_info(f"{name}.weight", (rows, n_bytes), np.dtype(np.uint8), rows * n_bytes, raw_dtype=raw)


def make_tensor(rng, rows, cols, kind):
    if cols is None:
        return 1.0 + 0.1 * rng.standard_normal(rows, dtype=np.float32)
    return random_floats(rng, rows, cols, kind) if kind in FLOATS else random_blocks(rng, rows, cols, kind)


def write_hf(shape, args):
    """A Hugging Face folder with one safetensors file; no tokenizer."""
    args.out.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape["vocab"],
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["mlp"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "hidden_act": "silu",
        "max_position_embeddings": shape["n_ctx"],
        "rms_norm_eps": 1e-05,
        "rope_theta": shape["theta"],
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[args.type],
    }
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    header, offset, itemsize = {"__metadata__": {"format": "pt"}}, 0, np.dtype(FLOATS[args.type]).itemsize
    for _, name, rows, cols in tensors(shape):
        size = rows * (cols or 1) * itemsize
        dims = [rows] if cols is None else [rows, cols]
        header[f"{name}.weight"] = {"dtype": args.type.upper(), "shape": dims, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(args.seed)
    with open(args.out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, rows, cols in tensors(shape):
            value = make_tensor(rng, rows, cols, args.type)
            if cols is None and args.type != "f32":
                value = (value.view(np.uint32) >> 16).astype(np.uint16) if args.type == "bf16" else value.astype(np.float16)
            value.tofile(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama")
    parser.add_argument("--type", choices=[*FLOATS, *SCALES], default="q4_0")
    parser.add_argument("--output-type", choices=[*FLOATS, *SCALES], help="of the output matrix, where not the same (GGUF)")
    parser.add_argument("--format", choices=["gguf", "hf"], default="gguf")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    if args.format == "gguf":
        write_gguf(SHAPES[args.shape], args)
    elif args.type in FLOATS:
        write_hf(SHAPES[args.shape], args)
    else:
        parser.error("a Hugging Face folder holds f32, f16 or bf16")


if __name__ == "__main__":
    main()
