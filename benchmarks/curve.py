"""How well a detector is trained after how many seconds.

    python -m benchmarks.curve ROOT --sets cookie,pill --out runs/curve [--preset fast]

For each number of steps a training of its own, whose schedule is that long; seconds are those of
the whole fit, from reading to calibration. The folder gets results.json, curve.md and curve.svg. A
result that stands in results.json is kept.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from haloae.data.folders import load_category
from haloae.detector import fit_detector
from haloae.evaluation.evaluate import score
from haloae.evaluation.metrics import Curve
from haloae.outputs.report.charts import Axis, Line, line_chart
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


def measure(root: Path, name: str, which: str, steps: int, seed: int) -> dict[str, Any]:
    category = load_category(root / name)
    config = preset(which).replace(seed=seed, training={"steps": steps})
    start = time.perf_counter()
    detector = fit_detector(category.train, config, name=name).detector
    seconds = time.perf_counter() - start
    metrics = score(detector, category).metrics.as_dict()
    kept = {key: metrics[key] for key in ("image_auroc", "pixel_auroc", "pixel_aupro")}
    return {"set": name, "preset": which, "steps": steps, "seed": seed, "seconds": seconds, **kept}


def table(results: list[dict[str, Any]]) -> str:
    sets = list(dict.fromkeys(result["set"] for result in results))
    lines = [f"| steps | s | {' | '.join(sets)} | mean | AUPRO |", "|---" * (len(sets) + 4) + "|"]
    for steps in sorted({result["steps"] for result in results}):
        of = [result for result in results if result["steps"] == steps]
        cells = [
            statistics.fmean(r["image_auroc"] for r in of if r["set"] == name) for name in sets
        ]
        outlined = [r["pixel_aupro"] for r in of if r["pixel_aupro"] is not None]
        aupro = f"{statistics.fmean(outlined):.3f}" if outlined else "–"
        lines.append(
            f"| {steps} | {statistics.fmean(r['seconds'] for r in of):.0f} | "
            f"{' | '.join(f'{cell:.3f}' for cell in cells)} | {statistics.fmean(cells):.3f} | "
            f"{aupro} |"
        )
    return "\n".join(lines) + "\n"


def chart(results: list[dict[str, Any]]) -> str:
    """A line for each set, seeds averaged."""
    lines, seconds, qualities = [], [], []
    for kind, name in enumerate(dict.fromkeys(result["set"] for result in results)):
        of = [result for result in results if result["set"] == name]
        steps = sorted({result["steps"] for result in of})
        x, y = (
            np.array([statistics.fmean(r[k] for r in of if r["steps"] == s) for s in steps])
            for k in ("seconds", "image_auroc")
        )
        lines.append(Line(name, Curve(x, y), kind))
        seconds += x.tolist()
        qualities += y.tolist()
    drawn = line_chart(
        lines, x_label="seconds of fitting", y_label="image AUROC",
        x=Axis.around(seconds), y=Axis.around(qualities),
    )  # fmt: skip
    names = Markup("").join(
        Markup('<text x="330" y="{}">{}</text><path class="line k{}" d="M296,{}H324"/>').format(
            190 + 16 * kind, line.label, kind, 186 + 16 * kind
        )
        for kind, line in enumerate(lines)
    )
    head, body = str(drawn).split(">", 1)
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    return f"{head}>{STYLE}{body.removesuffix('</svg>')}{names}</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--sets", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    results: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    done = {(r["set"], r["preset"], r["steps"], r["seed"]) for r in results}
    for name in arguments.sets.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            for steps in map(int, arguments.steps.split(",")):
                if (name, arguments.preset, steps, seed) in done:
                    continue
                result = measure(arguments.root, name, arguments.preset, steps, seed)
                results.append(result)
                path.write_text(json.dumps(results, indent=2) + "\n")
                print(json.dumps(result), flush=True)
    (out / "curve.md").write_text(table(results))
    (out / "curve.svg").write_text(chart(results))
    print(table(results))


if __name__ == "__main__":
    main()
