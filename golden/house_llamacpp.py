"""The bundled model in llama.cpp: tokenisation, logits, and a digest of every tensor of its quantised files.

usage: python golden/house_llamacpp.py FOLDER LLAMA_CPP

FOLDER holds `main/` in the Hugging Face layout, LLAMA_CPP is `vendor/llama.cpp` of llama-cpp-python's source archive.
Writes `house_llamacpp.json` beside this script; the GGUF files themselves are too large to keep.
"""

import argparse
import hashlib
import json
import pathlib
import tempfile

from llamacpp import LlamaCpp, quantize, top
from record import versions, write_json
from tiny_gguf import convert, patch_vocab

HERE = pathlib.Path(__file__).parent
PRE_TOKENIZER = "qwen2"
KINDS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ4_NL")
# of house.json's prompts: a story, plain text with odd characters, a chat, tools
PROMPTS = (1, 4, 8, 17)
N_GREEDY = 32
NOTE = (
    "llama.cpp, one thread, float32 cache. f16: all prompts of house.json; tokens_equal: its tokenisation gives the same ids; "
    "n_greedy_equal: leading greedy ids equal to house.json's. top: position -> the best [id, logit]. "
    "Quantised files are made from the f16 one without an importance matrix; tensors: type and SHA-256 of the data."
)


def tensor_digests(path):
    """GGUF name -> type and digest, of what is quantised."""
    import gguf  # here: the converter brings its own, newer copy

    tensors = gguf.GGUFReader(path).tensors
    kept = [t for t in tensors if t.tensor_type != gguf.GGMLQuantizationType.F32]
    return {t.name: [t.tensor_type.name, hashlib.sha256(t.data.tobytes()).hexdigest()] for t in kept}


def n_equal(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def run_f16(path, prompts):
    model, records = LlamaCpp(path), []
    for prompt in prompts:
        ids = prompt["prompt_ids"]
        row = model.logits(ids)[-1]
        greedy = model.greedy(ids, len(prompt["greedy_ids"]))
        records.append(
            {
                "tokens_equal": model.tokenize(prompt["text"]) == ids,
                "n_greedy_equal": n_equal(greedy, prompt["greedy_ids"]),
                "top": {str(len(ids) - 1): top(row, 10)},
            }
        )
    model.close()
    return records


def run_quantised(path, prompts):
    model, records = LlamaCpp(path), []
    for i in PROMPTS:
        ids = prompts[i]["prompt_ids"]
        logits = model.logits(ids)
        positions = sorted({len(ids) // 2, len(ids) - 1})
        records.append({"prompt": i, "top": {str(p): top(logits[p], 50) for p in positions}, "greedy_ids": model.greedy(ids, N_GREEDY)})
    model.close()
    return records


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("llama_cpp", type=pathlib.Path)
    args = parser.parse_args()
    prompts = json.loads((HERE / "house.json").read_text())["main"]
    patch_vocab(args.llama_cpp, PRE_TOKENIZER)
    result = {"note": NOTE, "versions": versions("llama-cpp-python")}
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "house-f16.gguf"
        convert(args.llama_cpp, args.folder / "main", source, kind="f16")
        result["f16"] = run_f16(source, prompts)
        for kind in KINDS:
            target = pathlib.Path(folder) / f"house-{kind}.gguf"
            quantize(source, target, kind)
            records = run_quantised(target, prompts)
            result[kind] = {"bytes": target.stat().st_size, "tensors": tensor_digests(target), "prompts": records}
            target.unlink()
    same = sum(record["n_greedy_equal"] == len(p["greedy_ids"]) for record, p in zip(result["f16"], prompts))
    tokens = sum(record["tokens_equal"] for record in result["f16"])
    print(f"f16: {tokens} of {len(prompts)} prompts tokenised alike, {same} continued alike")
    write_json(HERE / "house_llamacpp.json", result)


if __name__ == "__main__":
    main()
