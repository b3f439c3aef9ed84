#!/usr/bin/env bash
# Real clients against a real server on an ephemeral loopback port: installs them under target/clients (needs the
# package registries, python3 and node), starts `mlxr serve` with the bundled model, runs every *_check here.
# Packages that cannot live with the others (requirements-NAME.txt) get an environment of their own.
# Usage: tests/clients/run.sh [path/to/mlxr]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
work=$PWD/target/clients
mkdir -p "$work"

mlxr=${1:-}
if [ -z "$mlxr" ]; then
  cargo build --locked -p mlxr
  mlxr=$PWD/target/debug/mlxr
fi

for wanted in "$here"/requirements*.txt; do
  venv=$work/venv${wanted#"$here/requirements"}
  venv=${venv%.txt}
  # Reinstalled when the list changes.
  if ! cmp --silent "$wanted" "$venv/installed.txt"; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$venv/installed.txt"
  fi
done
mkdir -p "$work/node"
cp "$here"/package.json "$here"/*.mjs "$work/node/"
(cd "$work/node" && npm install --silent --no-audit --no-fund --no-package-lock)

run=$(mktemp -d)
"$mlxr" serve --port 0 --socket "$run/mlxr.sock" --data-dir "$run/data" >"$run/out" 2>"$run/log" &
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
export MLXR_URL=${url:?the server did not start} MLXR_SOCKET=$run/mlxr.sock
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1

for check in "$here"/*_check.py; do
  echo "== ${check##*/} ($SECONDS s)"
  name=$(basename "$check" _check.py)
  venv=$work/venv-$name
  [ -d "$venv" ] || venv=$work/venv
  "$venv/bin/python" "$check"
done
for check in "$work"/node/*_check.mjs; do
  echo "== ${check##*/} ($SECONDS s)"
  node "$check"
done
