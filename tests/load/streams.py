#!/usr/bin/env python3
"""Many streams at once against a running server: total speed, time between tokens, and whether each answer is the one
it is alone. Needs nothing but Python.

    mlxr serve --port 18080 --no-prefix-cache &
    python3 tests/load/streams.py --port 18080 --streams 32 --tokens 256
"""

import argparse
import json
import selectors
import socket
import sys
import time

PROMPT = "Story number {}: once upon a time there was a"


def post(args, seed):
    """Sends the request of stream `seed`."""
    body = {
        "model": args.model,
        "prompt": PROMPT.format(seed),
        "max_tokens": args.tokens,
        "temperature": args.temperature,
        "seed": seed,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection = socket.create_connection((args.host, args.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(head.encode() + data)
    return connection


def answer(raw, seed):
    """The text of a stream and the tokens it counts."""
    text, n_tokens = "", 0
    for line in raw.split(b"\n"):
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            text += "".join(choice["text"] for choice in event.get("choices", []))
            n_tokens += (event.get("usage") or {}).get("completion_tokens", 0)
    if b"data: [DONE]" not in raw:
        sys.exit(f"stream {seed} was cut short: {raw[-300:]!r}")
    return text, n_tokens


def run(args, seeds):
    """Runs streams side by side. Returns their texts, the tokens per second and the times between two reads."""
    start = time.perf_counter()
    selector = selectors.DefaultSelector()
    parts, marks = {seed: [] for seed in seeds}, {seed: [] for seed in seeds}
    for seed in seeds:
        selector.register(post(args, seed), selectors.EVENT_READ, seed)
    while selector.get_map():
        for key, _ in selector.select():
            data = key.fileobj.recv(65536)
            if data:
                parts[key.data].append(data)
                marks[key.data].append(time.perf_counter())
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()
    seconds = time.perf_counter() - start
    answers = {seed: answer(b"".join(raw), seed) for seed, raw in parts.items()}
    gaps = sorted(after - before for times in marks.values() for before, after in zip(times[1:], times[2:]))
    return {seed: text for seed, (text, _) in answers.items()}, sum(n for _, n in answers.values()) / seconds, gaps


def show(name, speed, gaps):
    def percentile(share):
        return gaps[min(len(gaps) - 1, int(len(gaps) * share))] * 1e3

    print(f"{name}: {speed:.0f} tok/s, between tokens p50 {percentile(0.5):.2f} ms, p99 {percentile(0.99):.2f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=11434)
    parser.add_argument("--model", default="mlxr-27m")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.8)
    args = parser.parse_args()
    seeds = range(args.streams)
    run(args, [0])  # loads the model
    alone, speeds, all_gaps = {}, [], []
    for seed in seeds:
        texts, speed, gaps = run(args, [seed])
        alone.update(texts)
        speeds.append(speed)
        all_gaps += gaps
    single = sorted(speeds)[len(speeds) // 2]
    show("one stream (median)", single, sorted(all_gaps))
    together, total, gaps = run(args, seeds)
    show(f"{args.streams} streams", total, gaps)
    print(f"ratio {total / single:.2f}")
    different = [seed for seed in seeds if together[seed] != alone[seed]]
    if different:
        sys.exit(f"streams {different} differ from their single runs")
    print("every answer is the one it is alone")


if __name__ == "__main__":
    main()
