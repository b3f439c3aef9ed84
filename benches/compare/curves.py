"""How mlxr and llama.cpp scale: tokens/s against threads, sequences decoded at once and tokens stored.

usage: python benches/compare/curves.py --mlxr target/release/mlxr [--type q4_0] [--curve threads|batch|context]
           [--values 1,2,...] [--threads N] [--decode 12] [--shape tinyllama-long] [--work FOLDER] [--out FOLDER]

The engines, models and options are those of `compare.py`. A call measures one curve, or some values of one, once, each
value with one engine and then the other, and adds what it found to `curves.json`; so a machine need not be quiet for
long at a time. `curves.svg` and `curves.md` show the medians of all calls so far.
"""

import json
import math
import statistics

import compare

CURVES = {
    "threads": dict(values=[1, 2], asked=lambda n, args: dict(prefill=[128], batch=[1], depth=0, threads=n)),
    "batch": dict(values=[1, 2, 4, 8, 16, 32], asked=lambda n, args: dict(prefill=[0], batch=[n], depth=0, threads=args.threads)),
    "context": dict(
        values=[128, 512, 2048, 8192, 32768],
        asked=lambda n, args: dict(prefill=[0], batch=[1], depth=n, threads=args.threads),
    ),
}
# What a panel shows: its curve, how names of its tests begin, its title.
PANELS = [
    ("threads", "pp", "prefill of 128 tokens, by threads"),
    ("threads", "tg", "decode of one sequence, by threads"),
    ("batch", "tg", "decode in total, by sequences"),
    ("context", "tg", "decode of one sequence, by tokens stored"),
]
ENGINES = {"ours": ("mlxr", "#3b75af"), "theirs": ("llama.cpp", "#c33")}
SIZE, LEFT, TOP, LINE = (300, 190), 54, 64, 'font-family="sans-serif" font-size="12"'


def add(points, kind, curve, value, rows):
    for row in rows:
        key = dict(type=kind, curve=curve, value=value, test=row["test"])
        point = next((point for point in points if key.items() <= point.items()), None)
        if point is None:
            point = dict(key, ours=[], theirs=[])
            points.append(point)
        for engine in ENGINES:
            point[engine].extend(row["all"][engine])
    points.sort(key=lambda point: (point["type"], list(CURVES).index(point["curve"]), point["test"][:2], point["value"]))


def of_panel(points, kind, panel):
    curve, test, _ = panel
    return [point for point in points if (point["type"], point["curve"], point["test"][:2]) == (kind, curve, test)]


def table(points):
    lines = ["| type | varied | test | llama.cpp, tok/s | mlxr, tok/s | ratio | runs |", "|---|---|---|---|---|---|---|"]
    for point in points:
        ours, theirs = (statistics.median(point[engine]) for engine in ENGINES)
        cells = [point["type"].upper(), f"{point['curve']} {point['value']}", point["test"], f"{theirs:.1f}", f"{ours:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{ours / theirs:.2f}", str(len(point["ours"]))]) + " |")
    return "\n".join(lines) + "\n"


def panel_svg(points, title, x0, y0):
    """Lines over a logarithmic axis of values, from zero up."""
    values = [point["value"] for point in points]
    first, last = math.log2(min(values)), math.log2(max(values))
    top = 1.1 * max(statistics.median(point[engine]) for point in points for engine in ENGINES)

    def at(value, speed):
        x = x0 + SIZE[0] * ((math.log2(value) - first) / (last - first) if last > first else 0.5)
        return x, y0 + SIZE[1] * (1 - speed / top)

    parts = [f'<text x="{x0}" y="{y0 - 8}" {LINE} font-weight="bold">{title}</text>',
             f'<rect x="{x0}" y="{y0}" width="{SIZE[0]}" height="{SIZE[1]}" fill="none" stroke="#999"/>']
    step = 10 ** math.floor(math.log10(top))
    step = next(part for part in (step / 5, step / 2, step, 2 * step) if top / part <= 6)
    for i in range(int(top / step) + 1):
        _, y = at(values[0], i * step)
        parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" {LINE} text-anchor="end">{i * step:g}</text>')
        parts.append(f'<line x1="{x0}" x2="{x0 + SIZE[0]}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
    for value in values:
        parts.append(f'<text x="{at(value, 0)[0]:.1f}" y="{y0 + SIZE[1] + 16}" {LINE} text-anchor="middle">{value}</text>')
    for engine, (_, colour) in ENGINES.items():
        marks = [at(point["value"], statistics.median(point[engine])) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in marks)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.extend(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in marks)
    return parts


def plot(points, title):
    """A row of panels for each type."""
    kinds = sorted({point["type"] for point in points})
    across, down = SIZE[0] + LEFT + 16, SIZE[1] + 60
    width, height = across * len(PANELS), TOP + down * len(kinds)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
             '<rect width="100%" height="100%" fill="white"/>',
             f'<text x="10" y="20" {LINE} font-weight="bold">{title}, tokens/s</text>']
    for i, (name, colour) in enumerate(ENGINES.values()):
        parts.append(f'<text x="{width - 90 * (i + 1)}" y="20" {LINE} fill="{colour}">{name}</text>')
    for i, kind in enumerate(kinds):
        for j, panel in enumerate(PANELS):
            shown = of_panel(points, kind, panel)
            if shown:
                parts += panel_svg(shown, f"{kind.upper()}: {panel[2]}", LEFT + across * j, TOP + down * i)
    return "\n".join([*parts, "</svg>"]) + "\n"


def main():
    parser = compare.parser_of(__doc__, "tinyllama-long")
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--curve", choices=CURVES, action="append", help="again for more than one [default: all]")
    parser.add_argument("--values", type=lambda text: [int(n) for n in text.split(",")], help="of one curve")
    parser.add_argument("--threads", type=int, default=2, help="of the other curves")
    parser.add_argument("--decode", type=int, default=12, help="tokens to decode")
    args = parser.parse_args()
    args.bf16 = False
    curves = args.curve or list(CURVES)
    if args.values and len(curves) != 1:
        parser.error("--values are those of one --curve")
    engines = compare.prepared(args)
    path = compare.model_file(engines.python, args.work, args.shape, args.type)
    file = args.out / "curves.json"
    report = dict(processor=compare.processor(), cpu=args.cpu, shape=args.shape, points=[])
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if any(before.get(key) != report[key] for key in ("processor", "cpu", "shape")):
            parser.error(f"{file} is of another machine, instruction set or shape: give another --out")
        report = before
    for curve in curves:
        for value in args.values or CURVES[curve]["values"]:
            asked = dict(CURVES[curve]["asked"](value, args), decode=args.decode)
            add(report["points"], args.type, curve, value, compare.measure(engines, path, args.type, asked, 1))
            file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (args.out / "curves.svg").write_text(plot(report["points"], f"{report['shape']}, {report['processor']}"), encoding="utf-8")
    (args.out / "curves.md").write_text(table(report["points"]), encoding="utf-8")
    print(table(report["points"]), end="")


if __name__ == "__main__":
    main()
