"""Tiny llama checkpoints quantised as model makers publish them, and what transformers computes with the weights that
the makers' own packages unpack from the same tensors.

usage: python golden/quantised_hf/make.py

Writes `KIND/config.json`, `KIND/model.safetensors` and `golden.json` beside this script.
"""

import importlib.util
import json
import math
import pathlib
import shutil
import sys

import bitsandbytes.functional as bnb
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from record import floats, versions, write_json  # noqa: E402


def load_alone(package, path):
    """A module of a package whose own imports need more than is here."""
    root = pathlib.Path(importlib.util.find_spec(package).submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), root / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gptq = load_alone("auto_gptq", "nn_modules/qlinear/qlinear_cuda")
awq = load_alone("awq", "utils/packing_utils")

N_GREEDY = 24
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "torch_dtype": "float16",
}
GENERATOR = torch.Generator()


def random_words(*shape):
    return torch.randint(-(2**31), 2**31, shape, generator=GENERATOR, dtype=torch.int64).to(torch.int32)


def random_scales(shape, weight_std, code_std, dtype):
    spread = 0.5 + torch.rand(shape, generator=GENERATOR)
    return (spread * weight_std / code_std).to(dtype)


def compressed(args, form, **weights):
    group = {"targets": ["Linear"], "weights": args, "input_activations": None, "output_activations": None}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return {**config, "ignore": ["lm_head"], "quantization_status": "compressed", "kv_cache_scheme": None, **weights}


# Each maker returns the file's tensors of one module, and the weight its package reads from them in float32.


def fp8(weight, std, strategy, dtype, scale_dtype):
    if strategy == "tensor":
        scale = (weight.abs().max() / torch.finfo(dtype).max).reshape(1)
    else:
        scale = weight.abs().amax(dim=1, keepdim=True) / torch.finfo(dtype).max
    scale = scale.to(scale_dtype)
    codes = (weight / scale.float()).to(dtype)
    args = QuantizationArgs(num_bits=8, type="float", strategy=strategy, symmetric=True)
    value = dequantize(codes.float(), scale.float(), args=args, dtype=torch.float32)
    extra = {"input_scale": torch.tensor([0.5])} if strategy == "tensor" else {}
    return {"weight": codes, "weight_scale": scale, **extra}, value


def fp8_block(weight, std, block=32):
    rows, cols = weight.shape
    tiles = weight.reshape(rows // block, block, cols // block, block)
    scale = tiles.abs().amax(dim=(1, 3)) / 448.0
    spread = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)
    codes = (weight / spread).to(torch.float8_e4m3fn)
    value = Fp8Dequantize(None)._dequantize_one(codes, scale, torch.float32)
    return {"weight": codes, "weight_scale_inv": scale}, value


def int8(weight, std):
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127.0).bfloat16()
    codes = (weight / scale.float()).round().clamp(-128, 127).to(torch.int8)
    args = QuantizationArgs(num_bits=8, type="int", strategy="channel", symmetric=True)
    return {"weight": codes, "weight_scale": scale}, dequantize(codes, scale.float(), args=args, dtype=torch.float32)


def packed(weight, std, symmetric, bits=4, group=32):
    rows, cols = weight.shape
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (rows, cols), generator=GENERATOR, dtype=torch.int8)
    scale = random_scales((rows, cols // group), std, (high - low) / 12**0.5, torch.bfloat16)
    args = QuantizationArgs(num_bits=bits, type="int", strategy="group", group_size=group, symmetric=symmetric)
    tensors = {
        "weight_packed": pack_to_int32(codes, bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([rows, cols]),
    }
    zero = None
    if not symmetric:
        zero = torch.randint(low, high, scale.shape, generator=GENERATOR, dtype=torch.int8)
        tensors["weight_zero_point"] = pack_to_int32(zero, bits, packed_dim=0).contiguous()
    read = unpack_from_int32(tensors["weight_packed"], bits, torch.Size([rows, cols]))
    return tensors, dequantize(read, scale.float(), zero, args=args, dtype=torch.float32)


def gptq_module(weight, std, bits, group):
    rows, cols = weight.shape
    module = gptq.QuantLinear(bits, group, cols, rows, bias=False, weight_dtype=torch.float16)
    module.qweight.copy_(random_words(*module.qweight.shape))
    # Zero points as stored, one less than what they are; all ones is not a zero point.
    n_groups = module.scales.shape[0]
    zeros = torch.randint(0, 2**bits - 1, (n_groups, rows), generator=GENERATOR)
    stream = (zeros[..., None] >> torch.arange(bits) & 1).reshape(n_groups, -1, 32)
    words = (stream << torch.arange(32)).sum(-1)
    module.qzeros.copy_(torch.where(words >= 2**31, words - 2**32, words).to(torch.int32))
    module.scales.copy_(random_scales(module.scales.shape, std, 2**bits / 12**0.5, torch.float16))
    names = ("qweight", "qzeros", "scales", "g_idx")
    tensors = {name: getattr(module, name).clone() for name in names}
    module.scales = module.scales.float()
    return tensors, module(torch.eye(cols)).T.contiguous()


def awq_module(weight, std, group=32):
    rows, cols = weight.shape
    qweight, qzeros = random_words(cols, rows // 8), random_words(cols // group, rows // 8)
    scales = random_scales((cols // group, rows), std, 16 / 12**0.5, torch.float16)
    value = awq.dequantize_gemm(qweight, qzeros, scales.float(), 4, group).T.contiguous()
    return {"qweight": qweight, "qzeros": qzeros, "scales": scales}, value


def bnb_4bit(weight, std, quant_type, nested):
    codes, state = bnb.quantize_4bit(weight, quant_type=quant_type, compress_statistics=nested, blocksize=32)
    tensors = {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    return {"weight": codes, **tensors}, bnb.dequantize_4bit(codes, state)


def bnb_8bit(weight, std):
    codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
    value = bnb.int8_vectorwise_dequant(codes, scales)
    return {"weight": codes, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}, value.float()


def bnb_config(**changes):
    return {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "float32", **changes}


def gptq_config(bits, group):
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False}


FP8_CHANNEL = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
FP8_TENSOR = {**FP8_CHANNEL, "strategy": "tensor"}
INT8 = {**FP8_CHANNEL, "type": "int"}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
KINDS = {
    "fp8-tensor": (compressed(FP8_TENSOR, "float-quantized"), lambda *a: fp8(*a, "tensor", E4M3, torch.float32)),
    "fp8-channel": (compressed(FP8_CHANNEL, "float-quantized"), lambda *a: fp8(*a, "channel", E4M3, torch.bfloat16)),
    "fp8-e5m2": ({"quant_method": "fp8"}, lambda *a: fp8(*a, "channel", E5M2, torch.float32)),
    "fp8-block": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [32, 32]},
        fp8_block,
    ),
    "int8-channel": (compressed(INT8, "int-quantized"), int8),
    "int4-packed": (compressed(INT4, "pack-quantized"), lambda *a: packed(*a, True)),
    "int4-packed-zeros": (
        compressed({**INT4, "symmetric": False}, "pack-quantized"),
        lambda *a: packed(*a, False),
    ),
    "gptq-2bit": (gptq_config(2, 32), lambda *a: gptq_module(*a, 2, 32)),
    "gptq-3bit": (gptq_config(3, -1), lambda *a: gptq_module(*a, 3, -1)),
    "gptq-4bit": (gptq_config(4, 32), lambda *a: gptq_module(*a, 4, 32)),
    "gptq-8bit": (gptq_config(8, 32), lambda *a: gptq_module(*a, 8, 32)),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
        awq_module,
    ),
    "nf4": (bnb_config(bnb_4bit_quant_type="nf4"), lambda *a: bnb_4bit(*a, "nf4", False)),
    "nf4-nested": (
        bnb_config(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        lambda *a: bnb_4bit(*a, "nf4", True),
    ),
    "fp4": (bnb_config(bnb_4bit_quant_type="fp4"), lambda *a: bnb_4bit(*a, "fp4", False)),
    "bnb-int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, bnb_8bit),
}


def build(kind, seed):
    """The file's tensors, and a model with the values they stand for."""
    GENERATOR.manual_seed(seed)
    config = AutoConfig.for_model(**{**CONFIG, "torch_dtype": "float32"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    tensors, quantise = {}, KINDS[kind][1]
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=GENERATOR)
        if "norm" in name or "embed" in name:
            value = ((1.0 + 0.3 * noise) if "norm" in name else noise / 2).half()
            tensors[name] = value
            parameter.copy_(value.float())
            continue
        gain = 3.0 if ("o_proj" in name or "down_proj" in name) else 1.5
        std = gain / math.sqrt(parameter.shape[-1])
        parts, value = quantise(noise * std, std)
        stem = name.removesuffix("weight")
        tensors.update({stem + part: tensor for part, tensor in parts.items()})
        parameter.copy_(value)
    return tensors, model


def run(model, ids):
    out = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    prefill, greedy, gaps = out, [], []
    row = out[-1]
    for _ in range(N_GREEDY):
        best = row.topk(2)
        gaps.append((best.values[0] - best.values[1]).item())
        greedy.append(best.indices[0].item())
        row = model(input_ids=torch.tensor([ids + greedy]), use_cache=False).logits[0, -1]
    record = {
        "ids": ids,
        "logits": {str(p): floats(prefill[p], 5) for p in (0, len(ids) - 1)},
        "greedy_ids": greedy,
        "decode_logits": {str(N_GREEDY): floats(row, 5)},
        "min_margin": round(min(gaps), 6),
    }
    return record, min(gaps)


@torch.no_grad()
def main():
    ids = torch.randint(3, CONFIG["vocab_size"], (19,), generator=torch.Generator().manual_seed(7)).tolist()
    packages = ("torch", "transformers", "auto-gptq", "autoawq", "bitsandbytes", "compressed-tensors")
    golden = {"versions": versions(*packages), "kinds": {}}
    for kind, (settings, _) in KINDS.items():
        for seed in range(100):
            tensors, model = build(kind, seed)
            record, gap = run(model, ids)
            if gap >= 1e-2 and len(set(record["greedy_ids"])) > 4:
                break
        else:
            raise SystemExit(f"{kind}: no seed gives clear greedy ids")
        shutil.rmtree(HERE / kind, ignore_errors=True)
        (HERE / kind).mkdir()
        save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / kind / "model.safetensors", {"format": "pt"})
        assert load_file(HERE / kind / "model.safetensors").keys() == tensors.keys()
        config = {**CONFIG, "quantization_config": settings}
        (HERE / kind / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        golden["kinds"][kind] = {"seed": seed, **record}
        print(kind, seed, gap)
    write_json(HERE / "golden.json", golden)


if __name__ == "__main__":
    main()
