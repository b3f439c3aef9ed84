#!/usr/bin/env python3
"""Client processes that are killed (SIGKILL) in the middle of their answers, streamed and whole: the others get the
text they get alone, and no block of the cache is lost.

    mlxr serve &
    python3 tests/load/killed.py --clients 32
"""

import multiprocessing
import os
import signal
import sys
import time

from wire import arguments, check_nothing_leaked, completion, engine, need, read, send, text_of, until

PATH = "/v1/completions"


def body_of(args, seed, n_tokens):
    """Every second pair of clients reads a stream, the others a whole answer."""
    is_streamed = seed % 4 < 2
    more = {} if is_streamed else {"stream": False, "stream_options": None}
    return completion(args, seed, n_tokens, **more)


def stay(args, seed, start, results):
    start.wait()
    results.put((seed, text_of(read(send(args, PATH, body_of(args, seed, args.tokens))))))


def leave(args, seed, start, has_begun):
    """Asks for more than it will live to see. A stream has begun once something of it has come."""
    start.wait()
    connection = send(args, PATH, body_of(args, seed, args.endless))
    if seed % 4 < 2:
        connection.recv(1)
    has_begun.set()
    read(connection)


def run(args, stayers, leavers):
    """Runs all clients, kills the leavers. Returns the stayers' texts, and the time since the kill."""
    start, results = multiprocessing.Barrier(args.clients), multiprocessing.Queue()
    begun = {seed: multiprocessing.Event() for seed in leavers}
    killed = {
        seed: multiprocessing.Process(target=leave, args=(args, seed, start, begun[seed])) for seed in leavers
    }
    others = [multiprocessing.Process(target=stay, args=(args, seed, start, results)) for seed in stayers]
    for process in [*killed.values(), *others]:
        process.start()
    for event in begun.values():
        event.wait()
    until(lambda: engine(args)["n_running"] == args.clients, "all clients are being answered")
    for seed, process in killed.items():
        if not process.is_alive():
            sys.exit(f"client {seed} ended before it could be killed")
        os.kill(process.pid, signal.SIGKILL)
    time_killed = time.perf_counter()
    texts = dict(results.get(timeout=120) for _ in others)
    for process in [*killed.values(), *others]:
        process.join()
    return texts, time_killed


def main():
    parser = arguments(__doc__)
    parser.add_argument("--clients", type=int, default=32, help="as many as the server runs at a time (--max-seqs)")
    parser.add_argument("--tokens", type=int, default=96, help="of those that stay")
    parser.add_argument("--endless", type=int, default=1900, help="tokens that those that are killed ask for")
    args = parser.parse_args()
    leavers, stayers = range(0, args.clients, 2), range(1, args.clients, 2)
    alone = {seed: text_of(read(send(args, PATH, body_of(args, seed, args.tokens)))) for seed in stayers}
    n_before = engine(args)["n_generated"]
    texts, time_killed = run(args, stayers, leavers)
    different = [seed for seed in stayers if texts[seed] != alone[seed]]
    if different:
        sys.exit(f"the answers of clients {different} are not what they are alone")
    n_blocks = check_nothing_leaked(args)
    seconds = time.perf_counter() - time_killed
    if engine(args)["n_generated"] - n_before >= len(leavers) * args.endless:
        sys.exit("what clients asked that are gone was answered to the end")
    print(
        f"{len(leavers)} of {args.clients} clients killed: the others got the text they get alone, "
        f"and {seconds:.1f} s later all {n_blocks} KV blocks are free"
    )


if __name__ == "__main__":
    main()
