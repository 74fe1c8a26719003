"""How much of a patch that is pasted into the features comes back in what is rebuilt.

    python -m benchmarks.copying ROOT RUNS --out runs/copying

ROOT holds two categories or more in MVTec layout, RUNS what `haloae benchmark ROOT --out RUNS` has
left of them. The copy index is the change of the rebuilt features, projected on the change of the
features, both of the patch: 0 predicts, 1 copies. Patches are cells of another product, at the same
place; and, to compare with, of another good image of the same one, which ought to be rebuilt. It
leaves results.json.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine
from benchmarks.script import leave, parser_of
from benchmarks.tables import Table
from benchmarks.ways import set_threads
from haloae.data.folders import GOOD, Category, load_category
from haloae.data.images import read_image
from haloae.data.views import resize
from haloae.detection.heads.halo import HaloHead
from haloae.detection.scorer import see
from haloae.detector import Detector
from haloae.experiments.grid import RUN
from haloae.training.run_folder import MODEL

SIDES = (2, 6, 12)
"""Of a patch, in cells: a block, a window, and two."""
IMAGES = 6
"""Good test images that patches are pasted into."""
PLACES = 3
"""A side, where each patch is pasted."""
Rebuild = Callable[[Tensor], Tensor]


def rebuilding(detector: Detector) -> Rebuild:
    """How a detector rebuilds features, (B, C, h, w) → the same, but for a constant a place.

    Raises:
        ValueError: it does not.
    """
    head, network = detector.head, detector.network
    if isinstance(head, HaloHead):
        return head.rebuilt
    encoder, decoder = network.encoder, network.decoder
    if encoder is None or decoder is None:
        raise ValueError(f"the head {detector.config.detection.head} rebuilds nothing.")
    return lambda features: decoder(encoder(features), grid=features.shape[-2:])


@torch.inference_mode()
def copy_index(rebuild: Rebuild, features: Tensor, pasted: Tensor, side: int) -> float:
    """Share of a pasted patch that comes back: 0 predicts, 1 copies.

    Args:
        rebuild: see `rebuilding`.
        features: (B, C, h, w), of good images.
        pasted: likewise, what patches are taken from.
        side: of the square patches, in cells; a few are pasted into each image, one after another.
    """
    before = rebuild(features)
    came_back = changed = 0.0
    lasts = [features.shape[axis] - side for axis in (2, 3)]
    for i in range(PLACES):
        for j in range(PLACES):
            row, column = (last * n // (PLACES - 1) for last, n in zip(lasts, (i, j), strict=True))
            patch = (..., slice(row, row + side), slice(column, column + side))
            spoilt = features.clone()
            spoilt[patch] = pasted[patch]
            change = (spoilt - features)[patch]
            came_back += float((change * (rebuild(spoilt) - before)[patch]).sum())
            changed += float(change.square().sum())
    return came_back / changed


@torch.inference_mode()
def features_of(detector: Detector, category: Category, *, after: int = 0) -> Tensor:
    """(IMAGES, C, h, w) of good test images, from a number on."""
    good = [sample.path for sample in category.test if sample.label == GOOD]
    # All of one shape, that of the detector's own images, so that patches have a place in any.
    canvas = detector.config.canvas
    arrays = [resize(read_image(path), canvas) for path in good[after : after + IMAGES]]
    pixels = torch.stack([torch.from_numpy(array) for array in arrays])
    return see(detector.network, pixels).output.features.float()


def measure(root: Path, runs: Path) -> list[dict[str, Any]]:
    """A line for each finished run: its variant, its set, and the indices by size of the patch."""
    found = []
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    for path in sorted(runs.rglob(RUN)):
        run = json.loads(path.read_text("utf-8"))
        detector = Detector.load(path.parent / MODEL, device="cpu")
        other = names[(names.index(run["category"]) + 1) % len(names)]
        own = load_category(root / run["category"])
        features = features_of(detector, own)
        pasted = {
            "good": features_of(detector, own, after=IMAGES),
            "foreign": features_of(detector, load_category(root / other)),
        }
        found.append({
            "variant": run["variant"], "category": run["category"],
            **{
                name: [copy_index(rebuilding(detector), features, each, side) for side in SIDES]
                for name, each in pasted.items()
            },
        })  # fmt: skip
    return found


def table(results: Mapping[str, Any]) -> Table:
    """A row for each preset and set."""
    sizes = [f"{side}×{side}" for side in results["sides"]]
    columns = [f"{name}, {size}" for name in ("good", "foreign") for size in sizes]
    rows = [
        [f"`{run['variant']}`", run["category"], *run["good"], *run["foreign"]]
        for run in results["copied"]
    ]
    return Table(["preset", "images", *columns], rows, dict.fromkeys(columns, 2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and leave results.json."""
    parser = parser_of(__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    set_threads(given.threads)
    results = {
        "machine": machine(torch.get_num_threads()),
        "sides": SIDES,
        "copied": measure(given.root, given.runs),
    }
    leave(results, given.out)


if __name__ == "__main__":
    main()
