"""The paper's system, trained: its mask right and as published, and without each ingredient.

    python -m benchmarks.paper ROOT --out runs/paper [--steps 800] [--image-size 256]
        [--precision bfloat16] [--device cuda] [--variants "paper;..."] [--sets A,B]

ROOT holds categories in MVTec layout with masks. The schedule, which weighs the losses by epoch, is
scaled to the steps. Beside the network's reconstruction error stands a Gaussian a place of the same
trunk's features (`paper, gaussian`). It leaves what `haloae benchmark` does.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import Table
from benchmarks.ways import options, set_threads, split
from haloae.config import Config
from haloae.experiments.benchmark import run_benchmark, variants
from haloae.presets import PAPER

WORKERS = 3
"""Processes that make batches ahead, on CUDA."""
ROWS = {
    "paper": "as the paper describes it",
    "paper, attention_published": "the published mask: attention to padding alone",
    "paper, attention_none": "no attention",
    "paper, no_ssl": "no CutPaste, no classifier (A)",
    "paper, no_image": "no image branch (D)",
    "paper, fixed_weights": "weights of the losses 1, 1, 1",
    "paper, gaussian": "a Gaussian a place of the same features, nothing trained",
}
"""By variant: what it is."""
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
    """A row for each variant and set."""
    rows = [
        [
            run["category"], ROWS[run["variant"]], run["metrics"]["image_auroc"],
            run["metrics"]["pixel_auroc"], run["metrics"]["pixel_aupro"], run["fit_seconds"],
        ]
        for name in dict.fromkeys(run["category"] for run in runs)
        for variant in ROWS
        for run in runs
        if (run["category"], run["variant"]) == (name, variant)
    ]  # fmt: skip
    columns = ["set", "network", "image AUROC", "pixel AUROC", "AUPRO", "fit, seconds"]
    return Table(columns, rows, {"fit, seconds": 0})


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


if __name__ == "__main__":
    main()
