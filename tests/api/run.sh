#!/usr/bin/env bash
# Requests made up from the server's own OpenAPI document against a real server: no answer may be a 5xx, every answer
# must match its schema, pieces of streams too, bodies that do not match theirs must be refused, and every route must
# succeed once. Installs schemathesis under target/api (needs the package registry and python3) and starts `mlxr serve`
# with the bundled model and a small cross-encoder. MLXR_API_EXAMPLES says how many requests per route are made up beside the systematic ones.
# Usage: tests/api/run.sh [path/to/mlxr]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
work=$PWD/target/api
mkdir -p "$work"

mlxr=${1:-}
if [ -z "$mlxr" ]; then
  cargo build --locked -p mlxr
  mlxr=$PWD/target/debug/mlxr
fi

[ -x "$work/venv/bin/python" ] || python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"

run=$(mktemp -d)
"$mlxr" serve --port 0 --model mlxr-27m=models/mlxr-27m-q8_0.gguf --model reranker=golden/embeddings/bert_rank --socket "$run/mlxr.sock" --data-dir "$run/data" >"$run/out" 2>"$run/log" &
server=$!
finish() {
  code=$?
  kill "$server" 2>/dev/null || true
  wait "$server" || code=1
  [ "$code" = 0 ] || tail -n 40 "$run/log" >&2
  rm -rf "$run"
  exit "$code"
}
trap finish EXIT

for _ in $(seq 100); do
  url=$(sed -n 's/^listening on \(http:.*\)$/\1/p' "$run/out")
  [ -z "$url" ] && kill -0 "$server" && sleep 0.1 || break
done
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
export SCHEMATHESIS_HOOKS=hooks PYTHONPATH=$here

# One seed, so that a failure comes again; one worker, so that nobody unloads a model under another's request.
cd "$work"
timeout 300 "$work/venv/bin/schemathesis" run "${url:?the server did not start}/openapi.json" \
  --exclude-path /mlxr/v1/shutdown --phases examples,coverage,fuzzing --seed 20 --workers 1 --max-examples "${MLXR_API_EXAMPLES:-15}" \
  --request-timeout 30 --continue-on-failure --no-shrink \
  --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,unsupported_method,negative_data_rejection,stream_pieces_conform,every_route_succeeds_once \
  --suppress-health-check all --warnings off

# The server is unharmed: nobody holds a block.
curl -sf "$url/mlxr/v1/integrity" -X POST -d '{}' | grep -q '"is_ok":true'
