"""The tiny checkpoints as MLX folders, made by mlx-lm, and their reference outputs.

usage: python golden/tiny_mlx.py [FAMILY...]

Writes `tiny/FAMILY/mlx-*/` and the key `mlx` of `tiny/FAMILY/golden.json` (run tiny.py first).
The outputs are transformers' over the dequantised weights in float32;
mlx-lm's own forward in float32 must agree with them (MLX_CHANGES: where it leaves a part of a family out).
"""

import argparse
import json
import pathlib
import shutil

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_flatten, tree_map
from mlx_lm import convert
from mlx_lm.utils import load_model
from transformers import AutoConfig, AutoModelForCausalLM

from families import FAMILIES, GGUF_CHANGES
from record import versions, write_json
from tiny import TINY, run_prompts

KINDS = {
    "mlx-4bit": dict(q_bits=4, q_group_size=32, dtype="bfloat16"),
    "mlx-2bit": dict(q_bits=2, q_group_size=32, dtype="float16"),
    "mlx-3bit": dict(q_bits=3, q_group_size=32, dtype="float16"),
    "mlx-5bit": dict(q_bits=5, q_group_size=32, dtype="bfloat16"),
    "mlx-6bit": dict(q_bits=6, q_group_size=64, dtype="float16"),
    "mlx-8bit": dict(q_bits=8, q_group_size=64, dtype="float32"),
    "mlx-mxfp4": dict(q_bits=4, q_group_size=32, q_mode="mxfp4", dtype="bfloat16"),
}
# Parts of a family that mlx-lm 0.32.2 does not compute, given as the change that gives its logits.
MLX_CHANGES = {
    "gpt_oss": GGUF_CHANGES["gpt_oss"],
    "mistral": {"sliding_window": None},
    "gemma2": {"sliding_window": 512},
    "phi3": {"sliding_window": None},
}
TOLERANCE = 2e-5
# mlx-lm: gemma takes the exact GELU, gemma3 rounds the embedding scale to bfloat16.
LOOSE = {"gemma": 1e-3, "gemma3_text": 1e-3}
# mlx-lm always takes the long factors of LongRoPE: only the prompt past the original context agrees.
COMPARED = {"phi3_longrope": slice(2, 3)}


def make_folder(family, kind):
    folder = TINY / family / kind
    shutil.rmtree(folder, ignore_errors=True)
    convert(str(TINY / family / "hf"), str(folder), quantize=True, **KINDS[kind])
    for extra in ("README.md", "model.safetensors.index.json"):
        (folder / extra).unlink(missing_ok=True)
    return folder


def dequantised(folder):
    """Every tensor in float32 under mlx-lm's name."""
    quantization = json.loads((folder / "config.json").read_text())["quantization"]
    tensors = mx.load(str(folder / "model.safetensors"))
    out = {}
    for name, value in tensors.items():
        if name.endswith((".scales", ".biases")):
            continue
        base = name.removesuffix(".weight")
        if f"{base}.scales" in tensors:
            how = quantization.get(base, quantization)
            scales, biases = tensors[f"{base}.scales"], tensors.get(f"{base}.biases")
            if biases is not None:
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            value = mx.dequantize(
                value, scales, biases, group_size=how["group_size"], bits=how["bits"], mode=how.get("mode", "affine")
            )
        out[name] = torch.from_numpy(np.array(value.astype(mx.float32)))
    return out


def expert_weight(name, weights):
    """A fused expert tensor of transformers, from mlx-lm's one tensor per projection; None where it is no such tensor."""
    layer, _, last = name.partition(".mlp.experts.")
    if not last:
        return None
    inside = next(i for i in (".mlp.switch_mlp.", ".mlp.experts.", ".block_sparse_moe.switch_mlp.") if f"{layer}{i}down_proj.weight" in weights)
    part = "bias" if last.endswith("_bias") else "weight"
    gate, up, down = (weights[f"{layer}{inside}{p}_proj.{part}"] for p in ("gate", "up", "down"))
    interleaved = ".experts." in inside
    if last.startswith("down_proj"):
        value = down
    elif interleaved:
        value = torch.stack([gate, up], 2).flatten(1, 2)
    else:
        value = torch.cat([gate, up], 1)
    return value.transpose(1, 2) if interleaved and part == "weight" else value


def transformers_model(family, weights, changes):
    config = AutoConfig.for_model(**json.loads(json.dumps({**FAMILIES[family], **changes})))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        value = expert_weight(name, weights)
        if value is None:
            value = weights.get(name, weights.get(name.replace(".mlp.gate.", ".block_sparse_moe.gate.")))
        assert value is not None, name
        assert parameter.shape == value.shape, (name, parameter.shape, value.shape)
        parameter.copy_(value)
    return model


def mlx_error(folder, model, records):
    """The largest difference between mlx-lm and transformers over prompt and greedy ids, relative to the largest logit."""
    own, _ = load_model(folder)
    own.update(tree_map(lambda v: v.astype(mx.float32) if mx.issubdtype(v.dtype, mx.floating) else v, own.parameters()))
    errors = []
    for record in records:
        ids = record["ids"] + record["greedy_ids"]
        ours = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
        theirs = np.array(own(mx.array([ids]))[0])
        errors.append(float(np.abs(ours - theirs).max() / np.abs(ours).max()))
    return errors


def make(family, kind):
    folder = make_folder(family, kind)
    weights = dequantised(folder)
    model = transformers_model(family, weights, {})
    records, _ = run_prompts(model, family, positions=(), decode_steps=())
    changes = MLX_CHANGES.get(family, {})
    errors = mlx_error(folder, transformers_model(family, weights, changes), records)
    assert all(error < LOOSE.get(family, TOLERANCE) for error in errors[COMPARED.get(family, slice(None))]), errors
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{family} {kind}: {size} bytes, smallest gap {min(r['min_margin'] for r in records)}, mlx-lm differs by {errors}", flush=True)
    return {"mlx_lm_changes": changes, "mlx_lm_errors": [float(f"{e:.1e}") for e in errors], "prompts": records}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    mx.set_default_device(mx.cpu)
    for family in args.families:
        path = TINY / family / "golden.json"
        golden = json.loads(path.read_text())
        kinds = list(KINDS) if family == "llama" else ["mlx-4bit"]
        golden["mlx"] = {"versions": versions("mlx", "mlx-lm", "transformers"), **{kind: make(family, kind) for kind in kinds}}
        write_json(path, golden)


if __name__ == "__main__":
    main()
