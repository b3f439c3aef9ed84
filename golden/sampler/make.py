"""Writes sampler.json: what transformers' logits processors leave of some rows of logits.

Each case names the transformers class, its argument, a row of logits (exact in binary) and the distribution left:
`[id, probability]` of every token that can still be drawn.
"""

import random
import sys
from pathlib import Path

import torch
from transformers.generation import logits_process as lp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import record  # noqa: E402

N_VOCAB = 96
HISTORY = [3, 17, 17, 40, 3, 3, 95, 0, 62]


def rows():
    """Rows from flat to peaked; values are distinct multiples of 1/128."""
    rng = random.Random(20)
    for spread in (0.5, 2.0, 5.0):
        values = set()
        while len(values) < N_VOCAB:
            values.add(round(rng.gauss(0.0, spread) * 128) / 128)
        values = sorted(values)
        rng.shuffle(values)
        yield values


CASES = [
    ("temperature", lp.TemperatureLogitsWarper, [0.2, 0.7, 1.5]),
    ("top_k", lp.TopKLogitsWarper, [1, 7, 40]),
    ("top_p", lp.TopPLogitsWarper, [0.1, 0.5, 0.9, 0.99]),
    ("min_p", lp.MinPLogitsWarper, [0.01, 0.1, 0.5]),
    ("typ_p", lp.TypicalLogitsWarper, [0.1, 0.5, 0.9]),
    ("repeat_penalty", lp.RepetitionPenaltyLogitsProcessor, [0.8, 1.1, 2.0]),
]


def left(process, logits):
    scores = process(torch.tensor([HISTORY]), torch.tensor([logits], dtype=torch.float32))
    probabilities = torch.softmax(scores[0].double(), dim=-1)
    return [[i, float(f"{p:.6e}")] for i, p in enumerate(probabilities.tolist()) if p > 0.0]


def main():
    all_rows = list(rows())
    cases = [
        {"sampler": name, "value": value, "row": i, "left": left(make(value), row)}
        for name, make, values in CASES
        for value in values
        for i, row in enumerate(all_rows)
    ]
    out = {
        "made_by": record.versions("torch", "transformers"),
        "history": HISTORY,
        "rows": all_rows,
        "cases": cases,
    }
    record.write_json(Path(__file__).with_name("sampler.json"), out)


if __name__ == "__main__":
    main()
