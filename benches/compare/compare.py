"""mlxr beside llama.cpp: the same models, tokens and threads in the same minutes, in turn.

usage: python benches/compare/compare.py --mlxr target/release/mlxr [--work FOLDER] [--types q4_0,q4_k,...]
           [--shape tinyllama] [--threads N] [--rounds 3] [--tests prefill,decode,batch,depth] [--bf16] [--cpu avx2|avx-vnni]
           [--out FOLDER]

The first run makes a virtual environment in the work folder and compiles llama.cpp there from the source package of
llama-cpp-python, for this processor (`--python PYTHON` names one that has it instead). GCC 12 miscompiles the tile
configuration of its AMX code: on processors with AMX give a newer compiler in CC and CXX. Models are made from a seed by
`golden/shape_model.py`. Every round measures one engine, then the other; figures are medians over the rounds, ratios are
those of the medians, and the limits are the memory's read bandwidth and the most that the processor multiplies, which
`mlxr bench` measures in the same round. Of what is computed only multiplications with weights count.
With `--bf16` prefill is measured once more with `--bf16-products`.
With `--cpu avx2` both do with what a processor without AVX-512 has: llama.cpp is built for AVX2, FMA, F16C and BMI2 (with
`avx-vnni` for that too), in a virtual environment of its own, and mlxr has `--cpu-kernels` of that name.
Writes `compare.json`, `compare.md` and `compare.svg`.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DEPTHS = [2048]
# How llama.cpp is built; GGML_NATIVE off leaves AVX2, FMA, F16C and BMI2 on, and AVX-512 and AMX off.
BUILDS = {
    "native": "-DGGML_NATIVE=ON",
    "avx2": "-DGGML_NATIVE=OFF",
    "avx-vnni": "-DGGML_NATIVE=OFF -DGGML_AVX_VNNI=ON",
}


def run(command, **kwargs):
    return subprocess.run([str(part) for part in command], check=True, text=True, stdin=subprocess.DEVNULL, **kwargs)


def output(command):
    return json.loads(run(command, stdout=subprocess.PIPE).stdout)


def python_with_peer(work, cpu):
    """A Python that has llama.cpp, installed on the first call."""
    folder = work / ("venv" if cpu == "native" else f"venv-{cpu}")
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    if subprocess.run([python, "-c", "import llama_cpp, gguf"], capture_output=True).returncode != 0:
        options = {"CMAKE_ARGS": f"{BUILDS[cpu]} -DCMAKE_BUILD_TYPE=Release -DLLAVA_BUILD=OFF"}
        install = [python, "-m", "pip", "install", "--no-binary", "llama-cpp-python", "-r", HERE / "requirements.txt"]
        # A wheel that was built for another instruction set must not be taken.
        install += [] if cpu == "native" else ["--no-cache-dir"]
        run(install, env={**os.environ, **options})
    return python


def prepared(args):
    """The folders, and both engines."""
    args.mlxr = args.mlxr.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out = args.out or args.work
    args.out.mkdir(parents=True, exist_ok=True)
    return Engines(args, args.python or python_with_peer(args.work, args.cpu))


def model_file(python, work, shape, kind):
    path = work / f"{shape}-{kind}.gguf"
    if not path.exists():
        part = path.with_suffix(".part")
        run([python, ROOT / "golden" / "shape_model.py", "--shape", shape, "--type", kind, part])
        part.rename(path)
    return path


def plan(args):
    """What to ask of both engines, one call each."""
    asked = []
    if "prefill" in args.tests:
        asked.append(dict(prefill=args.prompts, decode=0, batch=[1], depth=0))
    if "batch" in args.tests:
        asked.append(dict(prefill=[0], decode=args.decode, batch=args.batches, depth=0))
    elif "decode" in args.tests:
        asked.append(dict(prefill=[0], decode=args.decode, batch=[1], depth=0))
    if "depth" in args.tests:
        asked.extend(dict(prefill=[0], decode=args.decode, batch=[1], depth=depth) for depth in DEPTHS)
    return [dict(one, threads=args.threads) for one in asked]


def arguments(asked):
    def listed(values):
        return ",".join(map(str, values))

    return ["--prefill", listed(asked["prefill"]), "--decode", asked["decode"], "--batch", listed(asked["batch"]),
            "--depth", asked["depth"], "--threads", asked["threads"], "--repeats", 1]


class Engines:
    def __init__(self, args, python):
        self.args, self.python = args, python
        self.kernels = "auto" if args.cpu == "native" else args.cpu

    def ours(self, path, asked):
        """What `mlxr bench` says of each test, and the memory's bandwidth."""
        modes = {"": []}
        if self.args.bf16 and any(asked["prefill"]):
            modes[", bf16"] = ["--bf16-products"]
        results = {}
        for mode, flags in modes.items():
            command = [self.args.mlxr, "bench", path, "--device", "cpu", "--cpu-kernels", self.kernels, "--json"]
            report = output([*command, *arguments(asked), *flags])
            for test in report["results"]:
                results[test["test"] + mode] = (test["tok_s"]["median"], test["gb_s"], test["peak_share"], report["backend"])
        return results, report["read_gb_s"]

    def theirs(self, path, asked):
        return output([self.python, HERE / "llama_cpp_speed.py", path, *arguments(asked)])


def measure(engines, path, kind, asked, rounds):
    ours, theirs, limits = {}, {}, []
    for round_number in range(rounds):
        print(f"{kind}: {asked}, round {round_number + 1} of {rounds}", file=sys.stderr)
        peer = engines.theirs(path, asked)
        results, limit = engines.ours(path, asked)
        limits.append(limit)
        for name, result in results.items():
            ours.setdefault(name, []).append(result)
            theirs.setdefault(name, []).append(peer[name.split(",")[0]])
    rows = []
    for name, results in ours.items():
        speeds, rates, peak_shares, backends = zip(*results)
        row = dict(type=kind, test=name, ours=statistics.median(speeds), theirs=statistics.median(theirs[name]))
        row.update(ratio=row["ours"] / row["theirs"], gb_s=statistics.median(rates), limit_gb_s=statistics.median(limits))
        row.update(peak_share=statistics.median(peak_shares) if all(peak_shares) else None)
        row.update(all=dict(ours=speeds, theirs=theirs[name]), backend=backends[0])
        rows.append(row)
    return rows


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(rows):
    """The last column is what the ratio would be if all were used of that limit of the two which is nearer: the largest
    that any program reaches which computes as this one does."""
    lines = ["| type | test | llama.cpp, tok/s | mlxr, tok/s | ratio | GB/s | of bandwidth | of peak | ratio at all of it |",
             "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        decodes = row["test"].startswith("tg")
        rate = f"{row['gb_s']:.1f}" if decodes else ""
        shares = [row["gb_s"] / row["limit_gb_s"] if decodes and row["limit_gb_s"] else None, row["peak_share"]]
        at_all = f"{row['ratio'] / max(filter(None, shares)):.2f}" if any(shares) else ""
        shares = [f"{share:.0%}" if share else "" for share in shares]
        cells = [row["type"].upper(), row["test"], f"{row['theirs']:.1f}", f"{row['ours']:.1f}", f"{row['ratio']:.2f}"]
        cells += [rate, *shares, at_all]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows, title):
    """Bars of the ratios, one per row; the line is llama.cpp."""
    left, top, height, width = 190, 46, 18, 420
    most = max(2.0, max(row["ratio"] for row in rows))
    scale = width / most
    bottom = top + height * len(rows)
    text = 'font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" height="{bottom + 30}">',
             '<rect width="100%" height="100%" fill="white"/>',
             f'<text x="10" y="20" {text} font-weight="bold">{title}</text>',
             f'<text x="10" y="36" {text} fill="#555">speed of mlxr over that of llama.cpp</text>']
    for i, row in enumerate(rows):
        y = top + i * height
        parts.append(f'<text x="{left - 8}" y="{y + 13}" {text} text-anchor="end">{row["type"].upper()} {row["test"]}</text>')
        parts.append(f'<rect x="{left}" y="{y + 3}" width="{row["ratio"] * scale:.1f}" height="{height - 6}" fill="#3b75af"/>')
        parts.append(f'<text x="{left + row["ratio"] * scale + 5:.1f}" y="{y + 13}" {text}>{row["ratio"]:.2f}</text>')
    parts.append(f'<line x1="{left + scale:.1f}" x2="{left + scale:.1f}" y1="{top}" y2="{bottom}" stroke="#c33"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def parser_of(doc, shape):
    """The options that every comparison has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlxr", type=pathlib.Path, required=True, help="the release binary")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target" / "compare")
    parser.add_argument("--out", type=pathlib.Path, help="where the results go [default: the work folder]")
    parser.add_argument("--python", type=pathlib.Path, help="a Python that has llama_cpp and gguf")
    parser.add_argument("--shape", default=shape)
    parser.add_argument("--cpu", choices=BUILDS, default="native", help="instruction set of both [default: native, the processor's own]")
    return parser


def main():
    parser = parser_of(__doc__, "tinyllama")
    parser.add_argument("--types", type=lambda text: text.split(","), default=["q4_0", "q4_k", "q8_0", "q6_k", "f16"])
    parser.add_argument("--tests", type=lambda text: text.split(","), default=["prefill", "batch", "depth"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=lambda text: [int(n) for n in text.split(",")], default=[128, 512])
    parser.add_argument("--decode", type=int, default=32, help="tokens to decode")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4, 8, 16])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    engines = prepared(args)
    rows = []
    for kind in args.types:
        path = model_file(engines.python, args.work, args.shape, kind)
        for asked in plan(args):
            rows += measure(engines, path, kind, asked, args.rounds)
        report = dict(processor=processor(), cpu=args.cpu, shape=args.shape, threads=args.threads, rounds=args.rounds, rows=rows)
        (args.out / "compare.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    title = f"{args.shape}, {args.threads} threads, {processor()}" + ("" if args.cpu == "native" else f", {args.cpu} alone")
    (args.out / "compare.md").write_text(table(rows), encoding="utf-8")
    (args.out / "compare.svg").write_text(plot(rows, title), encoding="utf-8")
    print(table(rows), end="")


if __name__ == "__main__":
    main()
