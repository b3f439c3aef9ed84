"""llama.cpp's own quantised files of a model 256 columns wide, and their outputs.

usage: python golden/wide.py

Writes `tiny/llama_wide/TYPE.gguf` and `tiny/llama_wide/golden.json`.
The source is a random Llama of one layer, never committed: it is made from its seed.
`llamacpp` are llama.cpp's logits (it quantises activations, so another engine agrees to a few percent);
`float32` are transformers' over the dequantised weights, which an engine with float32 activations must meet closely.
"""

import json
import pathlib
import tempfile

import gguf
import numpy as np
import torch
from gguf import quants
from transformers import AutoConfig, AutoModelForCausalLM

from families import config
from llamacpp import LlamaCpp, quantize
from record import floats, versions, write_json
from tiny import decode, make_prompts, random_value

OUT = pathlib.Path(__file__).with_name("tiny") / "llama_wide"
SEED = 4
KINDS = ("Q4_0", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS")
CONFIG = config(
    "llama",
    "LlamaForCausalLM",
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=1,
    num_key_value_heads=1,
    tie_word_embeddings=True,
)
N_GREEDY = 32
# Queries and keys smaller than in the other tiny models: sharp attention would blow up the rounding of activations.
CALM = 0.5
GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def gguf_name(name):
    prefix = "model.layers.0."
    if name.startswith(prefix):
        return "blk.0." + GGUF_NAMES[name.removeprefix(prefix)]
    return GGUF_NAMES[name]


def n_heads(name):
    """Heads of a projection whose rows GGUF keeps in interleaved rotary order; None for other tensors."""
    return {"attn_q": CONFIG["num_attention_heads"], "attn_k": CONFIG["num_key_value_heads"]}.get(name.split(".")[-2])


def interleave(value, heads):
    return value.reshape(heads, 2, -1, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)


def deinterleave(value, heads):
    return value.reshape(heads, -1, 2, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)


def build():
    model_config = AutoConfig.for_model(**json.loads(json.dumps(CONFIG)))
    model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in sorted(model.named_parameters()):
        value = random_value(name, tuple(parameter.shape), "llama", generator)
        parameter.copy_(value * CALM if "q_proj" in name or "k_proj" in name else value)
    return model


def write_source(model, path):
    """The f32 GGUF that llama.cpp quantises."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny llama_wide")
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_rope_dimension_count(CONFIG["hidden_size"] // CONFIG["num_attention_heads"])
    writer.add_vocab_size(CONFIG["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_tokenizer(writer)
    for name, parameter in model.named_parameters():
        name, value = gguf_name(name), parameter.numpy()
        heads = n_heads(name)
        writer.add_tensor(name, np.ascontiguousarray(interleave(value, heads)) if heads else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer):
    """The tokenizer of the other tiny checkpoints."""
    tokenizer = json.loads((OUT.parent / "llama" / "hf" / "tokenizer.json").read_text())
    vocab = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["id"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocab)
    writer.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(vocab))])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(CONFIG["bos_token_id"])
    writer.add_eos_token_id(CONFIG["eos_token_id"])
    writer.add_add_bos_token(False)


def read_back(model, path):
    """The weights of a GGUF file in `model`, and the type of each tensor."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, parameter in model.named_parameters():
        tensor = tensors[gguf_name(name)]
        value = quants.dequantize(tensor.data, tensor.tensor_type).reshape(parameter.shape)
        heads = n_heads(tensor.name)
        parameter.copy_(torch.from_numpy(np.array(deinterleave(value, heads) if heads else value, dtype=np.float32)))
    return {name: tensor.tensor_type.name for name, tensor in tensors.items() if tensor.tensor_type != gguf.GGMLQuantizationType.F32}


def record_file(model, path):
    """Logits at the last prompt position by both, and the greedy ids in float32."""
    records, errors = [], []
    theirs = LlamaCpp(path, n_ctx=256)
    for ids in make_prompts():
        prefill, _, greedy, margins = decode(model, ids, N_GREEDY)
        row, other = prefill[-1].numpy(), theirs.logits(ids)[-1]
        errors.append(float(np.abs(row - other).max() / np.abs(row).max()))
        record = {"ids": ids, "float32": floats(row), "greedy_ids": greedy, "min_margin": round(min(margins), 6)}
        records.append({**record, "llamacpp": floats(other), "llamacpp_error": float(f"{errors[-1]:.1e}")})
    theirs.close()
    return records, errors


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    model = build()
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "source.gguf"
        write_source(model, source)
        check_source(model, source)
        for kind in KINDS:
            quantize(source, OUT / f"{kind}.gguf", kind)
    result = {"note": __doc__.split("\n\n")[2].strip(), "versions": versions("llama-cpp-python", "gguf", "transformers", "torch"), "seed": SEED}
    for kind in KINDS:
        path = OUT / f"{kind}.gguf"
        types = read_back(model, path)
        records, errors = record_file(model, path)
        result[kind] = {"types": types, "prompts": records}
        distinct = [len(set(r["greedy_ids"])) for r in records]
        print(f"{kind}: {distinct} distinct ids, margin {min(r['min_margin'] for r in records)}, {path.stat().st_size} bytes, llama.cpp and float32 differ by {[f'{e:.1e}' for e in errors]}", flush=True)
        assert max(errors) < 0.05, kind
    write_json(OUT / "golden.json", result)


def check_source(model, source):
    """Before any quantising, llama.cpp and transformers agree."""
    theirs = LlamaCpp(source, n_ctx=256)
    for ids in make_prompts():
        ours = model(input_ids=torch.tensor([ids])).logits[0].numpy()
        assert np.abs(ours - theirs.logits(ids)).max() < 1e-4 * np.abs(ours).max()
    theirs.close()


if __name__ == "__main__":
    main()
