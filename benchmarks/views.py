"""What the network sees of images, set beside each other: squashed, fitted, in tiles, as chosen.

    python -m benchmarks.views ROOT --out runs/views [--sets A,B] [--seeds 0,1] [--views A;B]

It leaves what `haloae benchmark` does; of two views that come to the same, both are measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import Table
from benchmarks.ways import benchmark, options, set_threads
from haloae.detection.model_file import read_model
from haloae.experiments.benchmark import variants
from haloae.experiments.grid import spreads
from haloae.training.run_folder import MODEL

VIEWS = {
    "squash": {"kind": "squash"},
    "fit, aligned": {"kind": "fit", "place": "aligned"},
    "fit, anywhere": {"kind": "fit", "place": "anywhere"},
    "auto": {"kind": "auto"},
    "tiles": {"kind": "tiles"},
}
SHOWN = "squash;auto"
"""Measured unless others are asked for: what is squashed against what the images choose."""
FIGURES = {
    "image_auroc": ("image AUROC", 3),
    "pixel_auroc": ("pixel AUROC", 3),
    "pixel_aupro": ("AUPRO", 3),
    "outline_iou": ("IoU", 3),
    "outline_iou_best": ("best IoU", 3),
}
"""A run's metrics: the column each becomes, and its digits."""
TIME = "ms"
"""Of an image, decoding in it: the quickest of the seeds' runs, as others may be disturbed."""


def table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each set and view: what was seen with the first seed, and figures over seeds."""
    rows = []
    for name in dict.fromkeys(run["category"] for run in runs):
        for variant in dict.fromkeys(run["variant"] for run in runs):
            mine = [run for run in runs if (run["category"], run["variant"]) == (name, variant)]
            if not mine:
                continue
            preset, _, view = variant.partition(", ")
            header, _ = read_model(mine[0]["at"] / MODEL)
            figures = [
                spreads([(name, run["seed"], run["metrics"][metric]) for run in mine], [name])[name]
                for metric in FIGURES
            ]
            took = min(run["metrics"]["ms_per_image"] for run in mine)
            rows.append([preset, name, view, header.config.seen, *figures, took])
    digits = dict(FIGURES.values()) | {TIME: 0}
    return Table(["preset", "set", "view", "images are", *digits], rows, digits)


def main() -> None:
    """Measure what is missing."""
    parser = options(__doc__)
    parser.add_argument("--presets", metavar="A,B", default="default")
    parser.add_argument("--views", metavar="A;B", default=SHOWN, help="; ".join(VIEWS))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    configs = {
        f"{preset}, {view}": variants([preset], settings={"view": VIEWS[view]})[preset]
        for preset in arguments.presets.split(",")
        for view in arguments.views.split(";")
    }
    benchmark(arguments, configs, device=arguments.device)


if __name__ == "__main__":
    main()
