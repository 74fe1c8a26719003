"""How well a detector is trained after how many seconds.

    python -m benchmarks.curve ROOT --sets cookie,pill --out runs/curve [--preset autoencoder]

For each number of steps a training of its own, whose schedule is that long; seconds are those of
the whole fit, from reading to calibration. It is a benchmark, and leaves what `haloae benchmark`
does, and beside it curve.md and curve.svg.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from benchmarks.script import parser_of
from benchmarks.tables import Table, texts
from haloae.evaluation.metrics import Curve
from haloae.experiments.benchmark import run_benchmark
from haloae.experiments.grid import MEAN, spreads
from haloae.outputs.report.charts import Axis, Line, line_chart
from haloae.outputs.tables import markdown
from haloae.presets import preset

STEPS = (5, 10, 20, 40, 80, 160, 320)
STYLE = """<style>
:root { --card: #ffffff; --ink: #1b2026; --muted: #5b6570; --grid: #dfe2e6; --k0: #0072b2;
  --k1: #c24e00; --k2: #007f5f; --k3: #8f4e8b; }
@media (prefers-color-scheme: dark) { :root { --card: #1b1f25; --ink: #e9ecef; --muted: #9ba6b1;
  --grid: #313841; --k0: #56b4e9; --k1: #f58a42; --k2: #3ecf9b; --k3: #d99bd5; } }
svg { background: var(--card); }
text { font: 11.5px system-ui, sans-serif; fill: var(--muted); } text.label { fill: var(--ink); }
.grid { stroke: var(--grid); } .axis { stroke: var(--muted); }
.line { fill: none; stroke-width: 2; } .k0 { stroke: var(--k0); }
.k1 { stroke: var(--k1); stroke-dasharray: 7 4; } .k2 { stroke: var(--k2); stroke-dasharray: 2 3; }
.k3 { stroke: var(--k3); stroke-dasharray: 10 3 2 3; }
</style>"""


def table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each number of steps, fewest first, seeds averaged."""
    sets = list(dict.fromkeys(run["category"] for run in runs))
    rows = []
    for variant in sorted({run["variant"] for run in runs}, key=steps_of):
        of = [run for run in runs if run["variant"] == variant]
        quality, outlined = (
            spreads([(r["category"], r["seed"], r["metrics"][metric]) for r in of], sets)
            for metric in ("image_auroc", "pixel_aupro")
        )
        seconds = statistics.fmean(run["fit_seconds"] for run in of)
        cells = [quality[name] for name in (*sets, MEAN)]
        rows.append([steps_of(variant), round(seconds), *cells, outlined[MEAN]])
    return Table(["steps", "seconds", *sets, MEAN, "AUPRO"], rows, {})


def steps_of(variant: str) -> int:
    """The number that a variant's name begins with."""
    return int(variant.split()[0])


def chart(runs: Sequence[Mapping[str, Any]]) -> str:
    """A line for each set, seeds averaged."""
    lines: list[Line] = []
    seconds: list[float] = []
    qualities: list[float] = []
    for kind, name in enumerate(dict.fromkeys(run["category"] for run in runs)):
        of = [run for run in runs if run["category"] == name]
        points = []
        for variant in dict.fromkeys(run["variant"] for run in of):
            mine = [run for run in of if run["variant"] == variant]
            points.append(
                (
                    statistics.fmean(run["fit_seconds"] for run in mine),
                    statistics.fmean(run["metrics"]["image_auroc"] for run in mine),
                )
            )
        x, y = (np.array(values) for values in zip(*points, strict=True))
        lines.append(Line(name, Curve(x, y), kind))
        seconds += x.tolist()
        qualities += y.tolist()
    drawn = line_chart(
        lines, x_label="seconds of fitting", y_label="image AUROC",
        x=Axis.around(seconds), y=Axis.around(qualities),
    )  # fmt: skip
    return standalone(drawn, lines, top=190)


def standalone(drawn: Markup, lines: Sequence[Line], *, top: int) -> str:
    """A chart as a file of its own, with the names of its lines in it, from a height on."""
    names = Markup("").join(
        Markup('<text x="330" y="{}">{}</text><path class="line k{}" d="M296,{}H324"/>').format(
            top + 16 * place, line.label, line.kind, top - 4 + 16 * place
        )
        for place, line in enumerate(lines)
    )
    head, body = str(drawn).split(">", 1)
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    return f"{head}>{STYLE}{body.removesuffix('</svg>')}{names}</svg>\n"


def main() -> None:
    """Measure what is missing, and write table and chart."""
    parser = parser_of(__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--sets", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="autoencoder")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    configs = {
        f"{steps} steps": preset(arguments.preset).replace(training={"steps": int(steps)})
        for steps in arguments.steps.split(",")
    }
    results = run_benchmark(
        arguments.root,
        arguments.out,
        configs,
        categories=arguments.sets.split(","),
        seeds=[int(seed) for seed in arguments.seeds.split(",")],
        device="cpu",
        progress=sys.stderr.isatty(),
        report=lambda run: print(run["folder"], run.get("error", ""), flush=True),
    )
    runs = [run for run in results["runs"] if "metrics" in run]
    found = table(runs)
    text = markdown(texts(found), found.columns) + "\n"
    (arguments.out / "curve.md").write_text(text)
    (arguments.out / "curve.svg").write_text(chart(runs))
    print(text)


if __name__ == "__main__":
    main()
