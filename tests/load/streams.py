#!/usr/bin/env python3
"""Many streams at once against a running server: total speed, time between tokens, and whether each answer is the one
it is alone. Needs nothing but Python.

    mlxr serve --port 18080 --no-prefix-cache &
    python3 tests/load/streams.py --port 18080 --streams 32 --tokens 256
"""

import selectors
import statistics
import sys
import time

from wire import arguments, completion, send, text_of


def run(args, seeds):
    """Runs streams side by side. Returns their texts, the tokens per second and the times between two reads."""
    start = time.perf_counter()
    selector = selectors.DefaultSelector()
    parts, marks = {seed: [] for seed in seeds}, {seed: [] for seed in seeds}
    for seed in seeds:
        body = completion(args, seed, args.tokens, temperature=args.temperature)
        selector.register(send(args, "/v1/completions", body), selectors.EVENT_READ, seed)
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
    answers = {seed: text_of(b"".join(raw)) for seed, raw in parts.items()}
    gaps = sorted(after - before for times in marks.values() for before, after in zip(times[1:], times[2:]))
    return {seed: text for seed, (text, _) in answers.items()}, sum(n for _, n in answers.values()) / seconds, gaps


def show(name, speed, gaps):
    def percentile(share):
        return gaps[min(len(gaps) - 1, int(len(gaps) * share))] * 1e3

    print(f"{name}: {speed:.0f} tok/s, between tokens p50 {percentile(0.5):.2f} ms, p99 {percentile(0.99):.2f} ms")


def main():
    parser = arguments(__doc__)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=3, help="of all streams together, of which the median counts")
    args = parser.parse_args()
    seeds = range(args.streams)
    run(args, [0])  # loads the model
    alone, speeds, all_gaps = {}, [], []
    for seed in seeds:
        texts, speed, gaps = run(args, [seed])
        alone.update(texts)
        speeds.append(speed)
        all_gaps += gaps
    single = statistics.median(speeds)
    show("one stream (median)", single, sorted(all_gaps))
    totals = []
    for _ in range(args.rounds):
        together, total, gaps = run(args, seeds)
        totals.append(total)
        show(f"{args.streams} streams", total, gaps)
        different = [seed for seed in seeds if together[seed] != alone[seed]]
        if different:
            sys.exit(f"streams {different} differ from their single runs")
    print(f"ratio of the medians {statistics.median(totals) / single:.2f}")
    print("every answer is the one it is alone")


if __name__ == "__main__":
    main()
