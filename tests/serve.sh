# What the checks with real programs share, sourced by tests/*/run.sh: the binary under test, an environment for
# Python packages, and a server on an ephemeral loopback port for as long as the script runs.

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
work=$PWD/target/$(basename "$here")
mkdir -p "$work"

# The binary under test: the script's argument, or a debug build.
mlxr=${1:-}
if [ -z "$mlxr" ]; then
  cargo build --locked -p mlxr
  mlxr=$PWD/target/debug/mlxr
fi

# python_env DIR REQUIREMENTS: a virtual environment with these packages, made anew when the list changes.
python_env() {
  cmp --silent "$2" "$1/installed.txt" && return
  python3 -m venv --clear "$1"
  "$1/bin/pip" install --quiet --disable-pip-version-check -r "$2"
  cp "$2" "$1/installed.txt"
}

# serve ARGUMENTS...: starts `mlxr serve`, sets MLXR_URL and MLXR_SOCKET once it listens, and stops it at the end of
# the script, which fails if the server does; its log is shown after any failure.
serve() {
  run=$(mktemp -d)
  # They are read at once, perhaps before the server's process has them.
  touch "$run/out" "$run/log"
  # Settings of the user's own decide nothing, and none are written.
  XDG_CONFIG_HOME=$run/config "$mlxr" serve --port 0 --socket "$run/mlxr.sock" --data-dir "$run/data" "$@" >"$run/out" 2>"$run/log" &
  server=$!
  trap stop_server EXIT
  local url
  for _ in $(seq 100); do
    url=$(sed -n 's/^listening on \(http:.*\)$/\1/p' "$run/out")
    [ -z "$url" ] && kill -0 "$server" && sleep 0.1 || break
  done
  export MLXR_URL=${url:?the server did not start} MLXR_SOCKET=$run/mlxr.sock
  export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
}

stop_server() {
  local code=$?
  kill "$server" 2>/dev/null || true
  wait "$server" || code=1
  [ "$code" = 0 ] || tail -n 100 "$run/log" >&2
  rm -rf "$run"
  exit "$code"
}
