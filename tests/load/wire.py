"""What the scripts here share: requests over plain sockets, so that reading and not reading is theirs to decide."""

import argparse
import json
import os
import socket
import sys
import time
from urllib.parse import urlsplit


def arguments(description):
    """Where the server is: at MLXR_URL, or where the flags say."""
    url = urlsplit(os.environ.get("MLXR_URL", "http://127.0.0.1:11434"))
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--host", default=url.hostname)
    parser.add_argument("--port", type=int, default=url.port)
    parser.add_argument("--socket", help="a Unix socket, instead of host and port")
    parser.add_argument("--model", default="mlxr-27m")
    return parser


def send(args, path, body=None, headers=""):
    """Sends a request, a POST if there is a body, whose answer ends with the connection."""
    data = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    )
    if args.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(args.socket)
    else:
        connection = socket.create_connection((args.host, args.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(head.encode() + data)
    return connection


def read(connection):
    """All that comes."""
    parts = []
    while data := connection.recv(65536):
        parts.append(data)
    connection.close()
    return b"".join(parts)


def ask(args, path, body=None):
    """The status, the headers in lower case, and the JSON of an answer."""
    head, _, data = read(send(args, path, body)).partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    headers = dict(field.lower().split(": ", 1) for field in fields)
    return int(status.split()[1]), headers, json.loads(data)


def need(args, path, body=None):
    """The JSON of an answer that must be 200."""
    status, _, answer = ask(args, path, body)
    if status != 200:
        sys.exit(f"{path}: {status} {answer}")
    return answer


def completion(args, seed, n_tokens, **more):
    """The body of a completion of exactly so many tokens; each seed has a prompt of its own."""
    return {
        "model": args.model,
        "prompt": f"Story number {seed}: once upon a time there was a",
        "max_tokens": n_tokens,
        "temperature": 0.8,
        "seed": seed,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }


def text_of(raw):
    """The text of a completion, streamed or whole, and its tokens. Exits when it was cut short."""
    if b"text/event-stream" not in raw.partition(b"\r\n\r\n")[0]:
        answer = json.loads(raw.partition(b"\r\n\r\n")[2])
        return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]
    if b"data: [DONE]" not in raw:
        sys.exit(f"a stream was cut short: {raw[-300:]!r}")
    text, n_tokens = "", 0
    for line in raw.split(b"\n"):
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            text += "".join(choice["text"] for choice in event.get("choices", []))
            n_tokens += (event.get("usage") or {}).get("completion_tokens", 0)
    return text, n_tokens


def engine(args):
    """What the model's engine does and holds; None while it is not loaded."""
    models = need(args, "/mlxr/v1/stats")["models"]
    return next((model for model in models if model["model"] == args.model), None)


def resident_mb(args):
    return need(args, "/mlxr/v1/stats")["process_bytes"] / 1e6


def until(condition, what, seconds=60):
    """Waits for it. Returns how long that took."""
    start = time.perf_counter()
    while not condition():
        if time.perf_counter() - start > seconds:
            sys.exit(f"{what}: not within {seconds} s")
        time.sleep(0.005)
    return time.perf_counter() - start


def check_nothing_leaked(args):
    """Waits until nobody is answered, and has the books balanced. Returns how many KV blocks there are."""
    until(lambda: engine(args)["n_running"] + engine(args)["n_waiting"] == 0, "the engine is idle")
    (books,) = [model for model in need(args, "/mlxr/v1/integrity", {})["models"] if model["model"] == args.model]
    if not books["is_ok"] or books["n_free"] != books["n_blocks"]:
        sys.exit(f"blocks leaked: {books}")
    return books["n_blocks"]
