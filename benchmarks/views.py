"""What the network sees of images, set beside each other: squashed, fitted, in tiles, as chosen.

    python -m benchmarks.views ROOT --out runs/views [--sets A,B] [--seeds 0,1] [--views A;B]

It leaves what `haloae benchmark` does; views that come to the same are one row of the table.
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
"""Of an image, decoding in it: the quickest of a row's runs, as others may be disturbed."""


def table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each set and what was seen of it, by whichever views: figures over seeds."""
    seen: dict[tuple[str, str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for run in runs:
        preset, _, view = run["variant"].partition(", ")
        header, _ = read_model(run["at"] / MODEL)
        views = seen.setdefault((preset, run["category"], header.config.seen), {})
        views.setdefault(view, []).append(run)
    rows = []
    for (preset, name, what), views in sorted(seen.items()):
        mine = next(iter(views.values()))  # of the same images, all come to the same
        figures = [
            spreads([(name, run["seed"], run["metrics"][metric]) for run in mine], [name])[name]
            for metric in FIGURES
        ]
        took = min(run["metrics"]["ms_per_image"] for of in views.values() for run in of)
        rows.append([preset, name, ", ".join(sorted(views)), what, *figures, took])
    digits = dict(FIGURES.values()) | {TIME: 0}
    columns = ["preset", "set", "view", "images are", *digits]
    return Table(columns, rows, digits)


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
