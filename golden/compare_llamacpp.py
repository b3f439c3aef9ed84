"""Checks that mlxr and llama.cpp read a GGUF file alike: the same ids, and log-probabilities that agree.

usage: python golden/compare_llamacpp.py MLXR FILE.gguf [FILE.gguf ...]

MLXR is the built binary. Texts are the prompts of `house.json`, so the files are versions of the bundled model: ours
(`mlxr convert`, `mlxr quantize`) or llama.cpp's (`llamacpp.py quantize`). At every prompt position the log-probabilities
of the 20 likeliest tokens are compared, and from them the Kullback-Leibler divergence of our distribution from
llama.cpp's. Both engines round the activations of quantised weights to 8 bits, each in its own way, and llama.cpp those
of F16 weights to half precision; neither is the truth, so the bound is what such rounding gives.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np

from llamacpp import LlamaCpp

MAX_DIVERGENCE = 0.002
TOP = 20


def mlxr_json(mlxr, *args):
    out = subprocess.run([mlxr, *args], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    return json.loads(out)


def errors(mlxr, path, model, text):
    """At every position but the last: differences of log-probabilities, divergence, and whether the best token is the same."""
    ids = model.tokenize(text)
    ours = mlxr_json(mlxr, "tokenize", "--json", "--no-special", "-m", path, "--", text)["ids"]
    assert ours == ids, f"{path}: {text!r} is {ours} in mlxr, {ids} in llama.cpp"
    logits = model.logits(ids).astype(np.float64)
    largest = logits.max(1, keepdims=True)
    theirs = logits - largest - np.log(np.exp(logits - largest).sum(1, keepdims=True))
    args = ["--raw", "--json", "--greedy", "-n", "1", "--prompt-logprobs", str(TOP), "--kv-type", "f32"]
    prompt = mlxr_json(mlxr, "run", *args, "-m", path, "--", text)["prompt"]
    assert [token["id"] for token in prompt] == ids
    differences, divergences, same_best = [], [], []
    for row, token in zip(theirs, prompt[1:]):
        top = token["logprobs"]["top"]
        delta = np.array([row[entry["id"]] - entry["logprob"] for entry in top])
        differences += list(abs(delta))
        divergences.append(np.sum(np.exp([row[entry["id"]] for entry in top]) * delta))
        same_best.append(int(row.argmax()) == top[0]["id"])
    return differences, divergences, same_best


def main():
    mlxr, paths = sys.argv[1], sys.argv[2:]
    records = json.loads(pathlib.Path(__file__).with_name("house.json").read_text())["main"]
    failed = False
    for path in paths:
        model = LlamaCpp(path)
        results = [errors(mlxr, path, model, record["text"]) for record in records]
        model.close()
        differences, divergences, same_best = (np.concatenate(part) for part in zip(*results))
        print(f"{path}: {len(records)} prompts tokenised alike, {len(same_best)} positions; top-{TOP} log-probabilities "
              f"differ by {differences.mean():.1e} on average, divergence {divergences.mean():.1e}, "
              f"same best token {same_best.mean():.2%}", flush=True)
        failed |= bool(divergences.mean() > MAX_DIVERGENCE)
    sys.exit(failed)


if __name__ == "__main__":
    main()
