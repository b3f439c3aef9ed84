#!/usr/bin/env bash
# Real clients against a real server: installs them under target/clients (needs the package registries, python3 and
# node), serves the bundled model, runs every *_check here.
# Packages that cannot live with the others (requirements-NAME.txt) get an environment of their own.
# Usage: tests/clients/run.sh [path/to/mlxr]
source "$(dirname "$0")/../serve.sh"

for wanted in "$here"/requirements*.txt; do
  name=${wanted#"$here/requirements"}
  python_env "$work/venv${name%.txt}" "$wanted"
done
mkdir -p "$work/node"
cp "$here"/package.json "$here"/*.mjs "$work/node/"
(cd "$work/node" && npm install --silent --no-audit --no-fund --no-package-lock)

serve
for check in "$here"/*_check.py; do
  echo "== ${check##*/} ($SECONDS s)"
  venv=$work/venv-$(basename "$check" _check.py)
  [ -d "$venv" ] || venv=$work/venv
  "$venv/bin/python" "$check"
done
for check in "$work"/node/*_check.mjs; do
  echo "== ${check##*/} ($SECONDS s)"
  node "$check"
done
