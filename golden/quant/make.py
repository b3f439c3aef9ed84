#!/usr/bin/env python3
"""Writes the golden files of the codecs: what the reference packages make of the same bytes and values.

    pip install -r golden/requirements.txt
    python golden/quant/make.py

Files are little-endian and raw, so that the tests read them without a parser:
    <TYPE>.decode   random blocks with finite scales, then their f32 values as the package decodes them
    <TYPE>.encode   the same VALUES for every type (values.f32), encoded
    mlx-*           MLX codes, scales and biases of values.f32, then the decoded values
versions.json records the package versions.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from gguf import GGML_QUANT_SIZES, quants

HERE = Path(__file__).parent
COLS = 512
ROWS = 4
# Elements per decode file: at least 16 blocks of the small types, 4 of the large.
N_DECODE = 1024

# Byte offsets of f16 fields that must stay finite.
F16_FIELDS = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ1_S: [0], T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0],
    T.IQ4_NL: [0], T.IQ4_XS: [0], T.TQ1_0: [52], T.TQ2_0: [64],
}  # fmt: skip
PLAIN_DECODE = [T.BF16, T.MXFP4, T.NVFP4, T.IQ1_M]
ENCODE = [T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.TQ1_0, T.TQ2_0, T.MXFP4]


def values(rng):
    """Rows of different character: normal, heavy-tailed, offset, sparse with exact zeros and equal values."""
    x = np.empty((ROWS, COLS), dtype=np.float32)
    x[0] = rng.normal(0, 0.05, COLS)
    x[1] = rng.standard_t(2, COLS) * 0.02
    x[2] = rng.uniform(-0.1, 1.5, COLS)
    x[3] = np.where(rng.random(COLS) < 0.5, 0, rng.integers(-3, 4, COLS) * 0.25)
    x[3, :64] = 0
    x[3, 64:128] = 0.625
    return x


def finite_f16(rng, n):
    """Every exponent but the one of infinities, both signs."""
    bits = rng.integers(0, 1 << 16, n, dtype=np.uint16)
    return np.where(bits & 0x7C00 == 0x7C00, bits & 0xBFFF, bits).astype(np.uint16)


def random_blocks(rng, qtype):
    block_len, block_bytes = GGML_QUANT_SIZES[qtype]
    n_blocks = N_DECODE // block_len
    blocks = rng.integers(0, 256, (n_blocks, block_bytes), dtype=np.uint8)
    for offset in F16_FIELDS.get(qtype, []):
        blocks[:, offset : offset + 2] = finite_f16(rng, n_blocks).view(np.uint8).reshape(n_blocks, 2)
    if qtype == T.BF16:
        blocks[:, 1] &= 0xBF
    if qtype == T.MXFP4:  # the four largest exponents overflow with the largest element
        blocks[:, 0] = np.minimum(blocks[:, 0], 251)
    if qtype == T.IQ1_M:  # the f16 is spread over the top nibbles of four words; byte 55 holds its high bits
        blocks[:, 55] &= 0xBF
    return blocks


def write_mlx(x):
    for bits in (2, 3, 4, 5, 6, 8):
        for group_size in (32, 64, 128):
            q, scales, biases = mx.quantize(mx.array(x), group_size=group_size, bits=bits)
            decoded = mx.dequantize(q, scales, biases, group_size=group_size, bits=bits)
            parts = [q, scales, biases, decoded]
            name = f"mlx-{bits}bit-g{group_size}"
            (HERE / name).write_bytes(b"".join(np.array(p).tobytes() for p in parts))
    for mode in ("mxfp4", "nvfp4", "mxfp8"):
        q, scales = mx.quantize(mx.array(x), mode=mode)
        decoded = mx.dequantize(q, scales, mode=mode, dtype=mx.float32)
        parts = [q, scales, decoded]
        (HERE / f"mlx-{mode}").write_bytes(b"".join(np.array(p).tobytes() for p in parts))
    half = np.array(mx.array(x).astype(mx.bfloat16).astype(mx.float32))
    q, scales, biases = mx.quantize(mx.array(half).astype(mx.bfloat16), group_size=64, bits=4)
    parts = [q, scales.view(mx.uint16), biases.view(mx.uint16)]
    (HERE / "mlx-4bit-g64-bf16").write_bytes(b"".join(np.array(p).tobytes() for p in parts))


def main():
    rng = np.random.default_rng(20240607)
    for old in HERE.iterdir():
        if old.suffix != ".py":
            old.unlink()
    x = values(rng)
    (HERE / "values.f32").write_bytes(x.tobytes())
    for qtype in [*F16_FIELDS, *PLAIN_DECODE]:
        blocks = random_blocks(rng, qtype)
        with np.errstate(over="ignore"):
            decoded = quants.dequantize(blocks.reshape(-1), qtype).astype(np.float32)
        assert np.isfinite(decoded).all(), qtype
        (HERE / f"{qtype.name}.decode").write_bytes(blocks.tobytes() + decoded.tobytes())
    for qtype in ENCODE:
        (HERE / f"{qtype.name}.encode").write_bytes(quants.quantize(x, qtype).tobytes())
    codes = torch.arange(256, dtype=torch.uint8)
    for name, dtype in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        decoded = codes.view(dtype).to(torch.float32).numpy()
        (HERE / f"{name}.decode").write_bytes(codes.numpy().tobytes() + decoded.tobytes())
    write_mlx(x)
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gguf": version("gguf"),
        "mlx": version("mlx"),
        "torch": torch.__version__,
    }
    (HERE / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")


if __name__ == "__main__":
    main()
