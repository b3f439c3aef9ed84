#!/usr/bin/env bash
# lm-eval (`local-completions`, token ids with echo and log-probabilities) against `mlxr serve`: the scores and
# likelihoods that golden/lm_eval.json has from transformers on the same checkpoints: a tiny one, and the bundled
# model's own in MLXR_HOUSE_MODEL where that is set. Installs lm-eval under target/lm_eval (needs the package registry
# and python3).
# Usage: tests/lm_eval/run.sh [path/to/mlxr]
source "$(dirname "$0")/../serve.sh"

python_env "$work/venv" "$here/requirements.txt"
models=(tiny=golden/tiny/llama/hf)
[ -z "${MLXR_HOUSE_MODEL:-}" ] || models+=("house=$MLXR_HOUSE_MODEL/main")

# As exact as transformers in float32.
serve --kv-type f32 "${models[@]/#/--model=}"
HF_HOME=$work/huggingface "$work/venv/bin/python" "$here/check.py" "${models[@]}"
