"""Which backbone sees defects: the experiment behind docs/adr/0005.

    python -m benchmarks.probe ROOT --out runs/probe --trunk resnet18 --backbones random,bundled

Every backbone is measured on every set with two heads that learn nothing but statistics of the good
training images:

- `nearest` (PatchCore-like): distance to the nearest of `BANK` cells of good images;
- `gaussian` (PaDiM-like): Mahalanobis distance to the good images' cells at the same place.

Both see images of `SIZE`² pixels, features averaged over 3×3 cells, standardised and reduced to
`COMPONENTS` principal components of the good images; the map is smoothed by one cell and its
maximum is the score. Seeds draw the bank and the weights of `random`. Nothing of the test set sets
anything. A finished run that is in the output folder is not repeated. What a backbone does in this
project's own presets is measured by `haloae benchmark --backbone`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.ways import SIZE, measure_ways, options, run, set_threads, split
from haloae.data.images import Image, read_image
from haloae.data.views import resize
from haloae.detection.maps import smooth
from haloae.experiments.grid import Run, grid_of
from haloae.network.features import FeatureExtractor
from haloae.network.reducer import FeatureReducer
from haloae.network.trunks import TRUNKS
from haloae.network.weights import random_weights
from haloae.presets import FAST

COMPONENTS = 96
BANK = 8192
RIDGE = 0.01
"""Added to the variances, in units of the standardised features' own: as PaDiM does."""


class Nearest:
    """Distance to the nearest cell of a random bank.

    Args:
        cells: (N, C), of good images.
        seed: of the choice.
    """

    def __init__(self, cells: Tensor, seed: int) -> None:
        chosen = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))[:BANK]
        self.bank = cells[chosen]
        self.norms = self.bank.square().sum(1)

    def distance(self, features: Tensor) -> Tensor:
        """(C, h, w) → (h, w)."""
        cells = features.flatten(1).T
        squared = cells.square().sum(1) + (self.norms - 2 * cells @ self.bank.T).amin(1)
        return squared.clamp_min(0).sqrt().view(features.shape[1:])


class Gaussian:
    """Mahalanobis distance, mean and covariance of each place.

    Args:
        images: (C, h, w) each, of good images.
    """

    def __init__(self, images: Sequence[Tensor]) -> None:
        total, products = torch.zeros(()), torch.zeros(())
        for features in images:
            cells = features.flatten(1).T
            total = total + cells
            products = products + cells[:, :, None] * cells[:, None, :]
        self.mean = total / len(images)
        covariance = products / len(images) - self.mean[:, :, None] * self.mean[:, None, :]
        self.precision: Tensor = torch.linalg.inv(
            covariance + RIDGE * torch.eye(covariance.shape[-1])
        )

    def distance(self, features: Tensor) -> Tensor:
        """(C, h, w) → (h, w)."""
        off = (features.flatten(1).T - self.mean).unsqueeze(1)
        squared = (off @ self.precision @ off.transpose(1, 2)).flatten()
        return squared.clamp_min(0).sqrt().view(features.shape[1:])


@torch.inference_mode()
def measure(run: Run) -> dict[str, Any]:
    """Both heads, with one pass over the images."""
    extractor = FeatureExtractor(weights_of(run), run.config.network.trunk)
    reducer = FeatureReducer([tap.channels for tap in extractor.taps], COMPONENTS)

    def features(image: Image) -> Tensor:
        batch = extractor.normalise(torch.from_numpy(resize(image, SIZE))[None])
        return F.avg_pool2d(extractor(batch), 3, stride=1, padding=1, count_include_pad=False)

    good = [features(read_image(path)).half() for path in run.category.train]
    # No floor: figures stay comparable, whatever the product does.
    reducer.fit(good, floor=0)
    reduced = [reducer(each.float())[0] for each in good]
    cells = torch.cat([each.flatten(1).T for each in reduced])
    heads: dict[str, Nearest | Gaussian] = {
        "nearest": Nearest(cells, run.config.seed),
        "gaussian": Gaussian(reduced),
    }

    def maps(image: Image) -> dict[str, Tensor]:
        at = reducer(features(image))[0]
        return {name: smooth(head.distance(at)[None], 1.0) for name, head in heads.items()}

    scores = {"maximum": lambda anomaly: anomaly.amax((1, 2))}
    return {"metrics": measure_ways(run.category, run.category.test, maps, scores)}


def weights_of(run: Run) -> str:
    """The backbone's; those of `random` differ by seed."""
    if run.config.backbone != "random":
        return run.config.backbone
    path = run.folder / "random.safetensors"
    state = TRUNKS[run.config.network.trunk].build().state_dict()
    save_file(random_weights(state, run.config.seed), path)
    return str(path)


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = options(__doc__)
    parser.add_argument("--trunk", choices=sorted(TRUNKS), default="resnet18")
    parser.add_argument("--backbones", default="random,bundled", help="names or weights files")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    configs = {
        f"{arguments.trunk} {Path(backbone).stem}": FAST.replace(
            backbone=backbone, network={"trunk": arguments.trunk}
        )
        for backbone in arguments.backbones.split(",")
    }
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    sets = split(arguments.sets)
    run(grid_of(arguments.root, configs, categories=sets, seeds=seeds), arguments.out, measure)


if __name__ == "__main__":
    main()
