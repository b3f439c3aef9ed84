#!/usr/bin/env bash
# Clients that are killed in the middle of their answers, against `mlxr serve` with the
# bundled model. Needs nothing but python3. The other scripts here measure; they are run by hand.
# Usage: tests/load/run.sh [path/to/mlxr]
source "$(dirname "$0")/../serve.sh"

serve
python3 "$here/killed.py"
