"""mlxr beside llama.cpp on one GPU: the same models and token counts in the same minutes, in turn.

usage: python benches/compare/gpu.py --mlxr target/release/mlxr [--work FOLDER] [--types q4_0,q8_0,f16]
           [--peers cuda,vulkan] [--llama-bench NAME=PATH]... [--depth 4096] [--rounds 2] [--out FOLDER]

The first run takes llama.cpp from the source package of llama-cpp-python and builds its llama-bench in the work folder,
once with CUDA (for the card that is there) and once with Vulkan: cmake, nvcc, glslc and Vulkan's headers must be
installed. `--llama-bench` names one that is built already in place of that. The Python that runs this needs gguf and
numpy, with which `golden/shape_model.py` makes the models from a seed.
A round measures every engine once on every test; figures are medians over the rounds. Both engines take prompts in
batches of `--batch-rows`, and llama.cpp its flash attention. Prompts are measured with `--bf16-products` as well.
Writes `gpu.json` and `gpu.md`.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tarfile

from compare import HERE, ROOT, model_file, output, run

BACKENDS = {"cuda": ["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native"], "vulkan": ["-DGGML_VULKAN=ON"]}
OPTIONS = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_CURL=OFF"]


def source(work):
    """llama.cpp as the source package has it, downloaded on the first call."""
    found = list(work.glob("llama_cpp_python-*/vendor/llama.cpp"))
    if not found:
        pinned = (HERE / "requirements.txt").read_text(encoding="utf-8").split()
        package = next(line for line in pinned if line.startswith("llama-cpp-python"))
        run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", work, package])
        with tarfile.open(next(work.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        found = list(work.glob("llama_cpp_python-*/vendor/llama.cpp"))
    return found[0]


def llama_bench(work, name):
    build = work / f"build-{name}"
    program = build / "bin" / "llama-bench"
    if not program.exists():
        run(["cmake", "-S", source(work), "-B", build, *OPTIONS, *BACKENDS[name]])
        run(["cmake", "--build", build, "--parallel", "--target", "llama-bench"])
    return program


def theirs(program, args, path, test):
    """tok/s of one pass over a test."""
    command = [program, "-m", path, "-ngl", "99", "-fa", "1", "-r", args.repeats, "-o", "json"]
    if test == "prefill":
        command += ["-p", args.prefill, "-n", "0", "-ub", args.batch_rows, "-b", args.batch_rows]
    else:
        command += ["-p", "0", "-n", args.decode, "-d", args.depth]
    return output(command)[0]["avg_ts"]


def ours(args, path, test, is_half):
    command = [args.mlxr, "bench", path, "--device", args.device, "--json", "-r", args.repeats]
    command += ["--batch-rows", args.batch_rows]
    if test == "prefill":
        command += ["-p", args.prefill, "-n", "0"]
    else:
        command += ["-p", "0", "-n", args.decode, "--depth", args.depth]
    if is_half:
        command.append("--bf16-products")
    return output(command)["results"][0]["tok_s"]["median"]


def measure(args, peers, path, kind):
    """Medians over the rounds: one row per test, with the peers' speeds by name."""
    ways = [("decode", False), ("prefill", False), ("prefill", True)]
    speeds = {}
    for _ in range(args.rounds):
        for name, program in peers.items():
            for test in ("decode", "prefill"):
                speeds.setdefault((test, name), []).append(theirs(program, args, path, test))
        for test, is_half in ways:
            speeds.setdefault((test, is_half), []).append(ours(args, path, test, is_half))
    medians = {key: statistics.median(values) for key, values in speeds.items()}
    names = {"decode": f"tg{args.decode} @ d{args.depth}", "prefill": f"pp{args.prefill}"}
    return [
        dict(
            type=kind,
            test=names[test] + (", f16" if is_half else ""),
            ours=medians[test, is_half],
            theirs={name: medians[test, name] for name in peers},
        )
        for test, is_half in ways
    ]


def table(rows, peers):
    heads = ["type", "test", "mlxr, tok/s"]
    for name in peers:
        heads += [f"llama.cpp {name}, tok/s", "ratio"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row["type"].upper(), row["test"], f"{row['ours']:.1f}"]
        for name in peers:
            speed = row["theirs"][name]
            cells += [f"{speed:.1f}", f"{row['ours'] / speed:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlxr", type=pathlib.Path, required=True, help="the release binary")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target" / "compare")
    parser.add_argument("--out", type=pathlib.Path, help="where the results go [default: the work folder]")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(BACKENDS), help="what to build")
    parser.add_argument("--llama-bench", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--shape", default="llama3-8b")
    parser.add_argument("--types", type=lambda text: text.split(","), default=["q4_0", "q8_0", "f16"])
    parser.add_argument("--device", default="gpu", help="of mlxr")
    parser.add_argument("--depth", type=int, default=4096, help="tokens stored when decoding begins")
    parser.add_argument("--decode", type=int, default=64, help="tokens to decode")
    parser.add_argument("--prefill", type=int, default=2048, help="tokens of a prompt")
    parser.add_argument("--batch-rows", type=int, default=2048, help="rows of a prefill pass")
    parser.add_argument("--repeats", type=int, default=3, help="passes of a round")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    args.mlxr = args.mlxr.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    out = args.out or args.work
    out.mkdir(parents=True, exist_ok=True)
    peers = dict(given.split("=", 1) for given in args.llama_bench)
    peers = peers or {name: llama_bench(args.work, name) for name in args.peers}
    rows = []
    for kind in args.types:
        rows += measure(args, peers, model_file(sys.executable, args.work, args.shape, kind), kind)
        report = dict(options={key: str(value) for key, value in vars(args).items()}, rows=rows)
        (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text(table(rows, peers), encoding="utf-8")
    print(table(rows, peers), end="")


if __name__ == "__main__":
    main()
