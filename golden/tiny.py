"""Tiny random checkpoints of every family and their reference outputs, with transformers.

usage: python golden/tiny.py [FAMILY...]

Writes `tiny/FAMILY/hf/` and `tiny/FAMILY/golden.json` beside this script.
The seed is searched: the first one whose greedy ids are clear (gap >= 1e-2 at every step) and varied.
"""

import argparse
import json
import math
import pathlib
import re
import shutil

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import mxfp4
from families import COMMON_NAMES, DENSE_NAMES, FAMILIES, GGUF_CHANGES, N_GREEDY, NAMES, VOCAB
from record import floats, versions, write_json
from tiny_tokenizer import write_tokenizer

TINY = pathlib.Path(__file__).with_name("tiny")
PROMPT_LENGTHS = (5, 23, 70)
POSITIONS = (0, 2, 15, 16, 33)
DECODE_STEPS = (1, 17, 64)
MIN_MARGIN = 1e-2
NOTE = (
    "float32, CPU, eager attention. logits: position in the prompt -> all logits. "
    "greedy_ids are not stopped at an end id. decode_logits: n -> all logits after the first n greedy ids were fed. "
    "min_margin: the smallest gap between the two best logits over the greedy steps. "
    "gguf, where present: the same weights as llama.cpp means model.gguf, under the given changes."
)


def make_prompts():
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


def random_value(name, shape, family, generator):
    """Weights large enough that every nonlinear part matters."""
    noise = torch.randn(shape, generator=generator)
    if "norm" in name:
        post = "post_feedforward" in name or (family.startswith("gemma") and "post_attention" in name)
        if family in ("gemma2", "gemma3_text") and post:
            return (10.0 if family == "gemma2" else 6.0) + noise
        return 0.3 * noise + (0.0 if family.startswith("gemma") else 1.0)
    if name.endswith("sinks"):
        return noise
    if name.endswith("bias"):
        return 0.3 * noise
    if "embed_tokens" in name or "lm_head" in name:
        return noise * 4.0 / math.sqrt(shape[-1])
    fan_in = shape[-2] if family == "gpt_oss" and "experts" in name else shape[-1]
    if re.search(r"router|(mlp|block_sparse_moe)\.gate\.", name):
        return noise * 3.0 / math.sqrt(fan_in)
    out = re.search(r"(o_proj|down_proj|w2)", name)
    gain = (6.0 if family == "gemma" else 3.0) if out else 1.5
    return noise * gain / math.sqrt(fan_in)


def build(family, seed):
    config = AutoConfig.for_model(**json.loads(json.dumps(FAMILIES[family])))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        value = random_value(name, tuple(parameter.shape), family, generator)
        if family == "gpt_oss":
            experts = name.endswith(("gate_up_proj", "down_proj"))
            value = mxfp4.round_columns(value) if experts else value.bfloat16().float()
        parameter.copy_(value)
    return model


def with_changes(model, family, changes):
    """The same weights under another configuration."""
    config = AutoConfig.for_model(**json.loads(json.dumps({**FAMILIES[family], **changes})))
    other = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    other.load_state_dict(model.state_dict())
    return other


def decode(model, ids, n_greedy):
    """Greedy with the cache: all logits of the prompt, of each step, the ids and the gaps."""
    out = model(input_ids=torch.tensor([ids]), use_cache=True)
    prefill, steps, greedy, margins = out.logits[0], [], [], []
    row = prefill[-1]
    for _ in range(n_greedy):
        best = row.topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        greedy.append(best.indices[0].item())
        out = model(input_ids=torch.tensor([greedy[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        row = out.logits[0, -1]
        steps.append(row)
    return prefill, torch.stack(steps), greedy, margins


def check_without_cache(model, ids, greedy, prefill, steps):
    """One forward over prompt and greedy ids, without a cache, gives the same logits."""
    whole = model(input_ids=torch.tensor([ids + greedy]), use_cache=False).logits[0]
    cached = torch.cat([prefill, steps])
    error = ((whole - cached).abs().max() / cached.abs().max()).item()
    assert error < 2e-5, f"cache and no cache differ by {error}"
    return error


def run_prompt(model, ids, n_greedy, positions=POSITIONS, decode_steps=DECODE_STEPS):
    prefill, steps, greedy, margins = decode(model, ids, n_greedy)
    error = check_without_cache(model, ids, greedy, prefill, steps)
    positions = sorted({p for p in positions if p < len(ids)} | {len(ids) - 1})
    wanted = [n for n in decode_steps if n < n_greedy] + [n_greedy]
    record = {
        "ids": ids,
        "logits": {str(p): floats(prefill[p]) for p in positions},
        "greedy_ids": greedy,
        "min_margin": round(min(margins), 6),
        "decode_logits": {str(n): floats(steps[n - 1]) for n in wanted},
    }
    return record, error


def run_prompts(model, family, **rows):
    counts = N_GREEDY.get(family, [64] * len(PROMPT_LENGTHS))
    results = [run_prompt(model, ids, n, **rows) for ids, n in zip(make_prompts(), counts)]
    return [record for record, _ in results], max(error for _, error in results)


def is_clear(records):
    """Are the greedy ids well separated, and more than one token over and over?"""
    return all(MIN_MARGIN <= r["min_margin"] and len(set(r["greedy_ids"])) > 12 for r in records)


def search(family, first_seed, n_seeds=400):
    for seed in range(first_seed, first_seed + n_seeds):
        model = build(family, seed)
        margins = (decode(model, ids, 64 if family not in N_GREEDY else 25) for ids in make_prompts())
        if not all(MIN_MARGIN <= min(m) and len(set(g)) > 12 for _, _, g, m in margins):
            continue
        records, error = run_prompts(model, family)
        if family in GGUF_CHANGES and not is_clear(run_prompts(with_changes(model, family, GGUF_CHANGES[family]), family)[0]):
            continue
        if is_clear(records):
            return seed, model, records, error
    raise SystemExit(f"{family}: no clear seed")


def check_names(family, names):
    allowed = NAMES.get(family, DENSE_NAMES) + COMMON_NAMES
    layer = re.compile(r"model\.layers\.\d+\.(" + "|".join(allowed) + ")")
    plain = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for name in names:
        assert name in plain or layer.fullmatch(name), f"{family}: {name} is not how real files call it"


def save_weights(model, family, folder):
    """Writes model.safetensors under the names real files use."""
    model.save_pretrained(folder, max_shard_size="1GB")
    for extra in ("config.json", "generation_config.json"):
        (folder / extra).unlink(missing_ok=True)
    tensors = load_file(folder / "model.safetensors")
    check_names(family, tensors)
    return tensors


def write_folder(folder, family, tensors, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps({**FAMILIES[family], **changes}, indent=1) + "\n")
    write_tokenizer(folder)


def write_new_style(folder, tensors):
    """llama3 as transformers 5 writes it (`rope_parameters`, `dtype`), in two shards with an index."""
    folder.mkdir(parents=True)
    config = {key: value for key, value in FAMILIES["llama3"].items() if key not in ("rope_scaling", "rope_theta", "torch_dtype")}
    config["rope_parameters"] = {**FAMILIES["llama3"]["rope_scaling"], "rope_theta": FAMILIES["llama3"]["rope_theta"]}
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    write_tokenizer(folder)
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-{i:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def check_reload(folder, model, dtype=torch.float32):
    """The files on disk are the model whose outputs were recorded."""
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval().float()
    ids = torch.tensor([make_prompts()[2]])
    error = (again(ids, use_cache=False).logits - model(ids, use_cache=False).logits).abs().max().item()
    assert error < 1e-5, f"{folder}: reloading changes the logits by {error}"


def make(family, first_seed):
    seed, model, records, error = search(family, first_seed)
    folder = TINY / family
    shutil.rmtree(folder, ignore_errors=True)
    tensors = save_weights(model, family, folder / "hf")
    if family == "gpt_oss":
        halves = {name: value.bfloat16() for name, value in tensors.items()}
        write_folder(folder / "hf-bf16", family, halves, torch_dtype="bfloat16")
        check_reload(folder / "hf-bf16", model)
        write_folder(folder / "hf", family, mxfp4.pack(halves), torch_dtype="bfloat16", quantization_config=mxfp4.CONFIG)
    else:
        write_folder(folder / "hf", family, tensors)
        check_reload(folder / "hf", model)
    if family == "llama3":
        write_new_style(folder / "hf-new-style", tensors)
        check_reload(folder / "hf-new-style", model)
    result = {"note": NOTE, "versions": versions("torch", "transformers"), "seed": seed}
    result["min_margin"] = min(record["min_margin"] for record in records)
    result["cache_error"] = float(f"{error:.1e}")
    result["prompts"] = records
    if family in GGUF_CHANGES:
        changes = GGUF_CHANGES[family]
        result["gguf"] = {"changes": changes, "prompts": run_prompts(with_changes(model, family, changes), family)[0]}
    write_json(folder / "golden.json", result)
    distinct = [len(set(record["greedy_ids"])) for record in records]
    print(f"{family}: seed {seed}, smallest gap {result['min_margin']}, distinct ids {distinct}, cache error {error:.1e}", flush=True)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for family in args.families:
        make(family, args.first_seed)


if __name__ == "__main__":
    main()
