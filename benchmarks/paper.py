"""The paper's system, trained: its mask right and as published, and without each ingredient.

    python -m benchmarks.paper ROOT --out runs/paper [--steps 800] [--image-size 256]
        [--precision bfloat16] [--device cuda] [--variants "paper;..."] [--sets A,B]

ROOT holds categories in MVTec layout with masks. The schedule, which weighs the losses by epoch, is
scaled to the steps. Beside the network's reconstruction error stands a Gaussian a place of the same
trunk's features (`paper, gaussian`). It leaves what `haloae benchmark` does, and losses.svg of all
runs in the folder.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.curve import standalone
from benchmarks.tables import Table
from benchmarks.ways import finished, options, set_threads, split
from haloae.config import Config
from haloae.evaluation.metrics import Curve
from haloae.experiments.benchmark import run_benchmark, variants
from haloae.outputs.report.charts import Axis, Line, line_chart
from haloae.outputs.report.loss_log import read_losses
from haloae.presets import PAPER
from haloae.training.run_folder import LOSS_LOG

WORKERS = 3
"""Processes that make batches ahead, on CUDA."""
ROWS = {
    "paper": "as the paper describes it",
    "paper, attention_published": "with the mask as published, which attends to nothing",
    "paper, attention_none": "no attention",
    "paper, no_ssl": "no CutPaste, no classifier (A)",
    "paper, no_image": "no image branch (D)",
    "paper, fixed_weights": "weights of the losses 1, 1, 1",
    "paper, gaussian": "a Gaussian a place of the same features, nothing trained",
}
"""By variant: what it is."""
POINTS = 40
"""Of a curve, means over as many steps each."""
SHORT = {"paper": "right", "paper, attention_published": "as published"}
"""In a chart."""
ABLATIONS = ("attention_published", "attention_none", "no_ssl", "no_image", "fixed_weights")


def configs(steps: int, image_size: int, precision: str) -> dict[str, Config]:
    """Every row's, by variant."""
    settings = {"image_size": image_size, "training": {"steps": steps, "precision": precision}}
    found = variants(["paper"], ABLATIONS, settings=settings)
    simple = {
        "network": {
            "autoencoder": False, "classifier": False, "image_decoder": None,
            "reduced_channels": 96, "published_taps": False,
        },
        "detection": {"head": "gaussian"},
    }  # fmt: skip
    return {**found, "paper, gaussian": PAPER.replace(**settings).replace(**simple)}


def table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each set, image size and variant."""
    rows = [
        [
            run["category"], run["config"]["image_size"], ROWS[run["variant"]],
            run["config"]["training"]["steps"] if run["config"]["network"]["autoencoder"] else None,
            run["metrics"]["image_auroc"], run["metrics"]["pixel_difference_image_auroc"],
            run["metrics"]["pixel_auroc"], run["metrics"]["pixel_aupro"], run["fit_seconds"],
        ]
        for run in sorted(runs, key=_place)
    ]  # fmt: skip
    columns = ["set", "side", "network", "steps", "image AUROC", "pixel difference"]
    columns += ["pixel AUROC", "AUPRO", "fit, seconds"]
    return Table(columns, rows, {"side": 0, "steps": 0, "fit, seconds": 0})


def chart(runs: Sequence[Mapping[str, Any]]) -> str:
    """The features' loss, before weighting, of the runs with the most steps."""
    steps = max(run["config"]["training"]["steps"] for run in runs)
    lines: list[Line] = []
    for run in sorted(runs, key=_place):
        if run["config"]["training"]["steps"] == steps:
            x, y = read_losses(run["at"] / LOSS_LOG)["features"]
            whole = len(x) // POINTS * POINTS
            curve = Curve(*(v[:whole].reshape(POINTS, -1).mean(1) for v in (x, y)))
            name = f"{run['category']}, {SHORT.get(run['variant'], run['variant'])}"
            lines.append(Line(name, curve, len(lines)))
    y_axis = Axis.around(np.concatenate([line.curve.y for line in lines]))
    drawn = line_chart(
        lines, x_label="step", y_label="loss of the features",
        x=Axis(0.0, float(steps), False), y=y_axis,
    )  # fmt: skip
    return standalone(drawn, lines, top=34)


def _place(run: Mapping[str, Any]) -> tuple[str, int, int]:
    return run["category"], run["config"]["image_size"], list(ROWS).index(run["variant"])


def main() -> None:
    """Train and measure what is missing."""
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--variants", metavar="A;B", default=";".join(ROWS))
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    wanted = configs(arguments.steps, arguments.image_size, arguments.precision)
    run_benchmark(
        arguments.root,
        arguments.out,
        {name: wanted[name] for name in arguments.variants.split(";")},
        categories=split(arguments.sets),
        seeds=[int(seed) for seed in arguments.seeds.split(",")],
        device=arguments.device,
        workers=WORKERS,
        progress=sys.stderr.isatty(),
        report=lambda run: print(run["folder"], run.get("error", ""), flush=True),
    )
    trained = [run for run in finished(arguments.out) if run["config"]["network"]["autoencoder"]]
    if trained:
        (arguments.out / "losses.svg").write_text(chart(trained))


if __name__ == "__main__":
    main()
