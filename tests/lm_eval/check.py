"""lm-eval through `local-completions` against the same tasks in transformers, as lm-eval's own `hf` runs them.

    check.py NAME=FOLDER...            the server at MLXR_URL serves FOLDER as NAME: compares with golden/lm_eval.json
    check.py --record NAME=FOLDER...   writes golden/lm_eval.json anew (needs torch and accelerate)

Prompts go out as token ids and come back with log-probabilities (echo).
"""

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent.parent / "golden/lm_eval.json"
TASKS = ["mlxr_choices", "mlxr_endings", "mlxr_passages"]
MAX_LENGTH = 512
# Of a text's log-likelihood; the sums are over up to 250 tokens.
TOLERANCE = 2e-3

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402


def evaluate(model, arguments):
    """The scores of all tasks, and what the model said to each item."""
    tasks = TaskManager(include_path=str(HERE), include_defaults=False)
    run = simple_evaluate(
        model=model, model_args=arguments, tasks=TASKS, task_manager=tasks, batch_size=8, bootstrap_iters=0
    )
    kinds = (int, float)
    found = {}
    for task in TASKS:
        scores = {name: value for name, value in run["results"][task].items() if isinstance(value, kinds)}
        samples = sorted(run["samples"][task], key=lambda sample: sample["doc_id"])
        found[task] = {"scores": scores, "items": [sample["filtered_resps"] for sample in samples]}
    return json.loads(json.dumps(found))


def in_transformers(folder):
    arguments = {"pretrained": folder, "dtype": "float32", "device": "cpu", "max_length": MAX_LENGTH}
    return evaluate("hf", arguments)


def in_mlxr(name, folder):
    arguments = {
        "model": name,
        "base_url": os.environ["MLXR_URL"] + "/v1/completions",
        "tokenizer": folder,
        "tokenizer_backend": "huggingface",
        "tokenized_requests": True,
        "num_concurrent": 4,
        "max_length": MAX_LENGTH,
    }
    return evaluate("local-completions", arguments)


def numbers(value):
    """The numbers in a nest of lists, and the rest in their places."""
    if isinstance(value, list):
        parts = [numbers(part) for part in value]
        return [number for part in parts for number in part[0]], [part[1] for part in parts]
    if isinstance(value, float):
        return [value], None
    return [], value


def compare(name, found, expected):
    """Exits when an item or a score differs; says by how much the numbers do."""
    for task in TASKS:
        mine, theirs = found[task], expected[task]
        (my_values, my_rest), (values, rest) = numbers(mine["items"]), numbers(theirs["items"])
        if my_rest != rest or len(my_values) != len(values):
            sys.exit(f"{name}, {task}: {my_rest}\nin transformers: {rest}")
        worst = max((abs(a - b) for a, b in zip(my_values, values)), default=0.0)
        if worst > TOLERANCE:
            sys.exit(f"{name}, {task}: log-likelihoods are off by up to {worst:.2e}")
        for metric, value in theirs["scores"].items():
            if abs(mine["scores"][metric] - value) > TOLERANCE * abs(value):
                sys.exit(f"{name}, {task}, {metric}: {mine['scores'][metric]}, in transformers {value}")
        scores = ", ".join(f"{metric} {value:.5g}" for metric, value in mine["scores"].items())
        off = f"{len(values)} log-likelihoods, off by at most {worst:.1e}" if values else "the same texts"
        print(f"{name}, {task}: {scores}; {off}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    args = parser.parse_args()
    models = [model.split("=", 1) for model in args.models]
    models = [(name, str(Path(folder).resolve())) for name, folder in models]
    os.chdir(HERE)  # where the tasks look for their data
    if args.record:
        made_by = {package: version(package) for package in ["lm_eval", "transformers", "torch"]}
        golden = {"made_by": made_by, **{name: in_transformers(folder) for name, folder in models}}
        GOLDEN.write_text(json.dumps(golden) + "\n")
        return
    golden = json.loads(GOLDEN.read_text())
    for name, folder in models:
        compare(name, in_mlxr(name, folder), golden[name])


if __name__ == "__main__":
    main()
