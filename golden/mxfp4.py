"""MXFP4 as gpt-oss files hold it: 32 values share a power of two, each value is one of sixteen.

Specification: OCP Microscaling Formats (MX) v1.0.
In memory experts are `[n_experts, in, out]`; on disk blocks are `[n_experts, out, in / 32, 16]`, low nibble first.
"""

import torch

VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
CONFIG = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}


def encode(value):
    """`[n_experts, in, out]` -> codes `[n_experts, out, in / 32, 32]` and exponents `[n_experts, out, in / 32]`."""
    groups = value.transpose(1, 2).reshape(value.shape[0], value.shape[2], -1, 32)
    largest = groups.abs().amax(-1, keepdim=True).clamp_min(1e-12)
    exponent = torch.floor(torch.log2(largest)) - 2.0
    scaled = groups / torch.exp2(exponent)
    codes = (scaled.unsqueeze(-1) - VALUES).abs().argmin(-1)
    return codes, exponent.squeeze(-1)


def decode(codes, exponent):
    groups = VALUES[codes] * torch.exp2(exponent).unsqueeze(-1)
    return groups.reshape(*groups.shape[:2], -1).transpose(1, 2).contiguous()


def round_columns(value):
    """The nearest value that MXFP4 can hold."""
    return decode(*encode(value))


def pack(tensors):
    """Replaces the expert weights by `_blocks` and `_scales`."""
    out = {}
    for name, value in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            out[name] = value
            continue
        codes, exponent = encode(value.float())
        assert torch.equal(decode(codes, exponent), value.float()), name
        out[f"{name}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8).contiguous()
        out[f"{name}_scales"] = (exponent + 127).to(torch.uint8).contiguous()
    return out
