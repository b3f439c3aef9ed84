#!/usr/bin/env python3
"""The server at full load for minutes: streams and whole answers side by side, of which every fourth is broken off, and
whether its memory stays what it is.

    mlxr serve &
    python3 tests/load/soak.py --minutes 10

Exits when the median of the last minute's resident memory is more than --max-growth above the second minute's, when an
answer is cut short, and when KV blocks are lost. Short requests before and the first minute fill what has a bound: the
log's lines in memory, the prefix cache.
"""

import random
import statistics
import sys
import threading
import time

from wire import arguments, check_nothing_leaked, completion, engine, need, read, resident_mb, send, text_of

PATH = "/v1/completions"
SAMPLE_S = 5


class Load:
    """Clients that ask until the time is up."""

    def __init__(self, args):
        self.args, self.warm = args, threading.Barrier(args.clients + 1)
        self.n_answers, self.n_broken_off, self.failures = 0, 0, []

    def run(self, client_idx):
        """Full load, after short requests that fill the log's lines in memory."""
        choose = random.Random(client_idx)
        try:
            for _ in range(self.args.warm_up // self.args.clients):
                need(self.args, PATH, completion(self.args, 0, 1, stream=False, stream_options=None))
            self.warm.wait()
            end = time.monotonic() + self.args.minutes * 60
            while time.monotonic() < end and not self.failures:
                self.ask(choose)
        except (OSError, SystemExit) as error:
            self.failures.append(f"client {client_idx}: {error}")
            self.warm.abort()

    def ask(self, choose):
        """One request: up to 200 words of prompt, some of them shared with others', up to 200 tokens of answer."""
        words = ["once upon a time"] * choose.randrange(50) + [f"story {choose.randrange(1 << 30)}"]
        body = completion(self.args, choose.randrange(1 << 30), choose.randrange(1, 200), prompt=" ".join(words))
        if choose.random() < 0.5:
            body |= {"stream": False, "stream_options": None}
        connection = send(self.args, PATH, body)
        if choose.random() < 0.25:
            # Whenever it comes: before the answer, or in the middle of it.
            connection.settimeout(choose.random())
            try:
                connection.recv(1)
            except TimeoutError:
                pass
            connection.close()
            self.n_broken_off += 1
            return
        text_of(read(connection))
        self.n_answers += 1


def main():
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=int, default=10, help="at least 3")
    parser.add_argument("--clients", type=int, default=40, help="more than run at a time (--max-seqs)")
    parser.add_argument("--warm-up", type=int, default=2000, help="short requests before; the log keeps 2000 lines")
    parser.add_argument("--max-growth", type=float, default=0.02)
    args = parser.parse_args()
    need(args, PATH, completion(args, 0, 1, stream=False, stream_options=None))
    load, samples = Load(args), []
    clients = [threading.Thread(target=load.run, args=(client_idx,)) for client_idx in range(args.clients)]
    for client in clients:
        client.start()
    load.warm.wait()
    start, seconds = time.monotonic(), args.minutes * 60
    while time.monotonic() < start + seconds and not load.failures:
        time.sleep(SAMPLE_S)
        samples.append((time.monotonic() - start, resident_mb(args)))
    for client in clients:
        client.join()
    if load.failures:
        sys.exit("\n".join(load.failures))
    n_blocks, stats = check_nothing_leaked(args), engine(args)
    by_minute = [
        statistics.median(mb for time_s, mb in samples if minute * 60 <= time_s < (minute + 1) * 60)
        for minute in range(args.minutes)
    ]
    print(
        f"{args.minutes} minutes, {args.clients} clients, {load.n_answers} answers, {load.n_broken_off} broken off, "
        f"{stats['n_generated']} tokens generated; resident memory, medians of minutes, MB: "
        f"{', '.join(f'{mb:.1f}' for mb in by_minute)}; all {n_blocks} KV blocks are free"
    )
    second, last = by_minute[1], by_minute[-1]
    if last > second * (1 + args.max_growth):
        sys.exit(f"memory has grown by more than {args.max_growth:.0%}")


if __name__ == "__main__":
    main()
