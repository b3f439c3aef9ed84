#!/usr/bin/env python3
"""What the HTTP layer costs: the way to the first token, connections that wait, and the answer when too many do.

    mlxr serve --max-seqs 1 --max-waiting 1000 --kv-size 16M --no-prefix-cache &
    python3 tests/load/waiting.py --connections 1000

The settings keep the engine's own memory from growing meanwhile. Exits when one of the limits below is not kept.
"""

import resource
import statistics
import sys
import time

from wire import arguments, check_nothing_leaked, completion, engine, need, read, resident_mb, send, until

PATH = "/v1/completions"
# The bundled model's context is 2048 tokens.
ENDLESS = 1900
N_REFUSALS = 20


def generations(args):
    """The log's lines of finished requests, oldest first."""
    lines = need(args, "/mlxr/v1/logs?limit=2000")["lines"]
    return [line["fields"] for line in lines if line["message"] == "generation"]


def check_overhead(args):
    """What a client waits for its first token beyond what the log says the engine took: until the request's turn and
    for the prompt."""
    n_before, waits = len(generations(args)), []
    for seed in range(args.requests):
        start = time.perf_counter()
        connection = send(args, PATH, completion(args, seed, 1))
        raw = b""
        while b'"text":"' not in raw:
            raw += connection.recv(65536)
        waits.append((time.perf_counter() - start) * 1e3)
        read(connection)
    until(lambda: len(generations(args)) == n_before + args.requests, "all requests are in the log")
    engine_ms = [fields["queued_ms"] + fields["prefill_ms"] for fields in generations(args)[n_before:]]
    beyond = sorted(wait - mine for wait, mine in zip(waits, engine_ms))
    median, p99 = statistics.median(beyond), beyond[int(len(beyond) * 0.99)]
    print(
        f"first token, {args.requests} requests one after the other: the client waits {statistics.median(waits):.2f} ms, "
        f"the engine takes {statistics.median(engine_ms):.2f} ms; between them {median:.2f} ms (p99 {p99:.2f} ms)"
    )
    if median > args.max_overhead_ms:
        sys.exit(f"more than {args.max_overhead_ms} ms at the median")


def check_refusals(args, connections):
    """How long it takes to be told that the queue is full. Places that become free meanwhile are taken."""
    times = []
    while len(times) < N_REFUSALS:
        start = time.perf_counter()
        connection = send(args, PATH, completion(args, 0, ENDLESS))
        head = connection.recv(65536).lower()
        seconds = time.perf_counter() - start
        connections.append(connection)
        if b" 200 " in head.split(b"\r\n")[0]:
            continue
        if b" 429 " not in head.split(b"\r\n")[0] or b"\r\nretry-after: " not in head:
            sys.exit(f"the queue is full, and the answer is {head!r}")
        times.append(seconds * 1e3)
    print(f"429 with Retry-After: median {statistics.median(times):.2f} ms, slowest of {N_REFUSALS} {max(times):.2f} ms")


def check_memory(args, what, before, connections):
    mb = resident_mb(args) - before
    print(f"{len(connections)} {what}: {mb:.1f} MB of resident memory beyond {before:.1f} MB")
    if mb > args.max_mb:
        sys.exit(f"more than {args.max_mb} MB")


def check_followers(args):
    """Event streams of a log that says nothing. Returns them, open."""
    before, connections = resident_mb(args), []
    for _ in range(args.connections):
        connections.append(send(args, "/mlxr/v1/logs?follow=true&limit=0", headers="Accept: text/event-stream\r\n"))
        connections[-1].recv(65536)
    check_memory(args, "streams of the log with nothing to say", before, connections)
    return connections


def check_queue(args):
    """Streamed completions that wait for their turn, which has not come when the last one is there."""
    before, connections = resident_mb(args), []

    def n_waiting():
        return engine(args)["n_waiting"]

    while n_waiting() < args.connections:
        for seed in range(args.connections - n_waiting()):
            connections.append(send(args, PATH, completion(args, seed, ENDLESS)))
            # The answer has begun.
            connections[-1].recv(65536)
    check_memory(args, "streamed completions, of which all but the first wait", before, connections)
    check_refusals(args, connections)
    for connection in connections:
        connection.close()
    check_nothing_leaked(args)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=200, help="to find the way to the first token")
    parser.add_argument("--connections", type=int, default=1000, help="as many as may wait (--max-waiting)")
    parser.add_argument("--max-mb", type=float, default=50)
    parser.add_argument("--max-overhead-ms", type=float, default=1)
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Loads the model, and touches all the memory of its cache.
    need(args, PATH, completion(args, 0, 1, prompt=[100] * ENDLESS, stream=False, stream_options=None))
    check_overhead(args)
    # They stay while the others come, which thus find no memory that has just been given back.
    followers = check_followers(args)
    check_queue(args)
    for connection in followers:
        connection.close()


if __name__ == "__main__":
    main()
