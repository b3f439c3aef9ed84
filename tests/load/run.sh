#!/usr/bin/env bash
# Clients that are killed in the middle of their answers, and a thousand that wait, against `mlxr serve` with the
# bundled model. Needs nothing but python3. The other scripts here measure and are run by hand.
# Usage: tests/load/run.sh [path/to/mlxr]
source "$(dirname "$0")/../serve.sh"

(
  serve
  python3 "$here/killed.py"
)
(
  serve --max-seqs 1 --max-waiting 1000 --kv-size 16M --no-prefix-cache
  # A debug build on a busy machine is slow.
  python3 "$here/waiting.py" --max-overhead-ms 50
)
