#!/usr/bin/env python3
"""The server at full load for minutes: streams and whole answers side by side, of which every fourth is broken off, and
whether its memory stays what it is.

    mlxr serve &
    python3 tests/load/soak.py --minutes 10

Exits when the median of the last minute's resident memory is more than --max-growth above the second minute's, when an
answer is cut short, and when KV blocks are lost. The first minute fills the caches.
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
        self.args, self.until = args, time.monotonic() + args.minutes * 60
        self.n_answers, self.n_broken_off, self.failures = 0, 0, []

    def run(self, client_idx):
        choose = random.Random(client_idx)
        while time.monotonic() < self.until and not self.failures:
            try:
                self.ask(choose)
            except (OSError, SystemExit) as error:
                self.failures.append(f"client {client_idx}: {error}")

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


def median_mb(samples, first_s, last_s):
    return statistics.median(mb for seconds, mb in samples if first_s <= seconds < last_s)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="at least 3")
    parser.add_argument("--clients", type=int, default=40, help="more than run at a time (--max-seqs)")
    parser.add_argument("--max-growth", type=float, default=0.02)
    args = parser.parse_args()
    need(args, PATH, completion(args, 0, 1, stream=False, stream_options=None))
    load, samples = Load(args), []
    clients = [threading.Thread(target=load.run, args=(client_idx,)) for client_idx in range(args.clients)]
    start = time.monotonic()
    for client in clients:
        client.start()
    while time.monotonic() < load.until and not load.failures:
        time.sleep(SAMPLE_S)
        samples.append((time.monotonic() - start, resident_mb(args)))
    for client in clients:
        client.join()
    if load.failures:
        sys.exit("\n".join(load.failures))
    n_blocks, stats = check_nothing_leaked(args), engine(args)
    end = args.minutes * 60
    first, second = median_mb(samples, 0, 60), median_mb(samples, 60, 120)
    last = median_mb(samples, end - 60, end + SAMPLE_S)
    print(
        f"{args.minutes:g} minutes, {args.clients} clients, {load.n_answers} answers, {load.n_broken_off} broken off, "
        f"{stats['n_generated']} tokens generated: resident memory, median of the first minute {first:.1f} MB, "
        f"of the second {second:.1f} MB, of the last {last:.1f} MB; all {n_blocks} KV blocks are free"
    )
    if last > second * (1 + args.max_growth):
        sys.exit(f"memory has grown by more than {args.max_growth:.0%}")


if __name__ == "__main__":
    main()
