#!/usr/bin/env bash
# Requests made up from the server's own OpenAPI document against a real server: no answer may be a 5xx, every answer
# must match its schema, pieces of streams too, bodies that do not match theirs must be refused, and every route must
# succeed once. Installs schemathesis under target/api (needs the package registry and python3) and serves the bundled
# model and a small cross-encoder.
# MLXR_API_EXAMPLES says how many requests per route are made up beside the systematic ones.
# Usage: tests/api/run.sh [path/to/mlxr]
source "$(dirname "$0")/../serve.sh"

python_env "$work/venv" "$here/requirements.txt"
serve --model mlxr-27m=models/mlxr-27m-q8_0.gguf --model reranker=golden/embeddings/bert_rank
export SCHEMATHESIS_HOOKS=hooks PYTHONPATH=$here

# One seed, so that a failure comes again; one worker, so that nobody unloads a model under another's request.
# From its own folder, where it keeps what it learns.
cd "$work"
timeout 300 "$work/venv/bin/schemathesis" run "$MLXR_URL/openapi.json" \
  --exclude-path /mlxr/v1/shutdown --phases examples,coverage,fuzzing --seed 20 --workers 1 \
  --max-examples "${MLXR_API_EXAMPLES:-15}" --request-timeout 30 --continue-on-failure --no-shrink \
  --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,unsupported_method,negative_data_rejection,stream_pieces_conform,every_route_succeeds_once \
  --suppress-health-check all --warnings off

# The server is unharmed: nobody holds a block.
curl -sf "$MLXR_URL/mlxr/v1/integrity" -X POST -d '{}' | grep -q '"is_ok":true'
