"""Which backbone sees defects: the experiment behind docs/adr/0005.

    python -m benchmarks.probe ROOT --out runs/probe --trunk resnet18 --backbones random,bundled
    python -m benchmarks.probe --out runs/probe --table

Every backbone is measured on every set of a root in MVTec layout with two heads that learn nothing
but statistics of the good training images, and, where asked for, with this project's own presets:

- `nearest` (PatchCore-like): distance to the nearest of `BANK` cells of good images;
- `gaussian` (PaDiM-like): Mahalanobis distance to the good images' cells at the same place;
- `fast`, `default`: trained and evaluated as the command line does it.

Both heads see images of `SIZE`² pixels, features averaged over 3×3 cells, standardised and reduced
to `COMPONENTS` principal components of the good images; the map is smoothed by one cell and its
maximum is the score. Seeds draw the bank, the weights of `random`, and the presets' training.
Nothing of the test set sets anything. A result that is already in the output folder is kept.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from haloae.data.folders import Category, load_category
from haloae.data.images import read_image, read_mask
from haloae.data.views import resize
from haloae.detection.maps import smooth
from haloae.detection.predictor import resize_map
from haloae.detector import fit_detector
from haloae.evaluation.evaluate import evaluate, pixel_difference
from haloae.evaluation.metrics import PixelMetrics, area_resize, image_metrics
from haloae.network.features import FeatureExtractor
from haloae.network.reducer import FeatureReducer
from haloae.network.trunks import TRUNKS
from haloae.network.weights import random_weights
from haloae.presets import preset

SIZE = 128
COMPONENTS = 96
BANK = 8192
RIDGE = 0.01
"""Added to the variances, in units of the standardised features' own: as PaDiM does."""
PRESETS = ("fast", "default")
HEADS = ("nearest", "gaussian", *PRESETS)


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

    def __init__(self, images: Iterable[Tensor]) -> None:
        total: Tensor | float = 0.0
        products: Tensor | float = 0.0
        count = 0
        for features in images:
            cells = features.flatten(1).T
            total, count = total + cells, count + 1
            products = products + cells[:, :, None] * cells[:, None, :]
        self.mean = total / count
        covariance = products / count - self.mean[:, :, None] * self.mean[:, None, :]
        self.precision = torch.linalg.inv(covariance + RIDGE * torch.eye(covariance.shape[-1]))

    def distance(self, features: Tensor) -> Tensor:
        """(C, h, w) → (h, w)."""
        off = (features.flatten(1).T - self.mean).unsqueeze(1)
        squared = (off @ self.precision @ off.transpose(1, 2)).flatten()
        return squared.clamp_min(0).sqrt().view(features.shape[1:])


@torch.inference_mode()
def run_heads(category: Category, trunk: str, weights: str, seeds: list[int]) -> dict[str, Any]:
    """Both heads, all seeds, with one pass over the images each."""
    extractor = FeatureExtractor(weights, trunk)
    reducer = FeatureReducer([tap.channels for tap in extractor.taps], COMPONENTS)

    def features(path: Path) -> Tensor:
        image = torch.from_numpy(resize(read_image(path), SIZE))[None]
        return F.avg_pool2d(extractor(extractor.normalise(image)), 3, stride=1, padding=1,
                            count_include_pad=False)  # fmt: skip

    good = [features(path).half() for path in category.train]
    # No floor: figures stay comparable, whatever the product does.
    reducer.fit(good, floor=0)
    reduced = [reducer(each.float())[0] for each in good]
    cells = torch.cat([each.flatten(1).T for each in reduced])
    heads: dict[str, Any] = {f"nearest|{seed}": Nearest(cells, seed) for seed in seeds}
    heads["gaussian|0"] = Gaussian(reduced)
    scores: dict[str, list[float]] = {name: [] for name in heads}
    pixels = {name: PixelMetrics() for name in heads}
    has_masks = all(sample.mask for sample in category.test if sample.is_anomalous)
    for sample in category.test:
        image = read_image(sample.path)
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        if sample.mask and has_masks:
            mask = area_resize(read_mask(sample.mask, shape=(image.height, image.width)), SIZE)
        at = reducer(features(sample.path))[0]
        for name, head in heads.items():
            anomaly = smooth(head.distance(at)[None], 1.0)
            scores[name].append(anomaly.max().item())
            if has_masks:
                pixels[name].update(resize_map(anomaly[0].numpy(), (SIZE, SIZE)), mask)
    labels = np.array([sample.is_anomalous for sample in category.test])
    return {
        name: {"image_auroc": image_metrics(np.array(scores[name]), labels).auroc,
               "pixel_auroc": pixels[name].compute().auroc,
               "aupro": pixels[name].compute().aupro}
        for name in heads
    }  # fmt: skip


def run_preset(
    name: str, category: Category, trunk: str, weights: str, seed: int
) -> dict[str, Any]:
    """Train and evaluate, as the command line does."""
    config = preset(name).replace(seed=seed, backbone=weights, network={"trunk": trunk})
    start = time.perf_counter()
    detector = fit_detector(category.train, config, name=category.root.name).detector
    seconds = time.perf_counter() - start
    metrics = evaluate(detector, category).metrics.as_dict()
    return {
        "image_auroc": metrics["image_auroc"],
        "pixel_auroc": metrics["pixel_auroc"],
        "aupro": metrics["pixel_aupro"],
        "seconds": seconds,
        "ms_per_image": metrics["ms_per_image"],
    }


def measure(arguments: argparse.Namespace) -> None:
    """Measure what is not in the output folder yet."""
    out: Path = arguments.out
    root: Path = arguments.root
    out.mkdir(parents=True, exist_ok=True)
    names = arguments.sets.split(",") if arguments.sets else sorted(
        path.name for path in root.iterdir() if path.is_dir()
    )  # fmt: skip
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    heads = arguments.heads.split(",")
    for backbone, name in itertools.product(arguments.backbones.split(","), names):
        category = load_category(root / name)
        path = out / f"difference--{name}.json"
        if not path.exists():
            value = pixel_difference(category).auroc
            _write(path, trunk="", backbone="pixel difference", set=name, head="", seed=0,
                   image_auroc=value)  # fmt: skip
        for seed in seeds:
            weights = _weights(backbone, arguments.trunk, seed, out)
            shown = Path(backbone).stem if Path(backbone).suffix else backbone
            stem = f"{arguments.trunk}--{shown}--{name}"
            rest = {"trunk": arguments.trunk, "backbone": shown, "set": name}
            # The weights of `random` differ by seed; others share one pass.
            if backbone == "random" or seed == seeds[0]:
                wanted = [seed] if backbone == "random" else seeds
                path = out / f"{stem}--nearest--{wanted[-1]}.json"
                if {"nearest", "gaussian"} & set(heads) and not path.exists():
                    for key, result in run_heads(
                        category, arguments.trunk, weights, wanted
                    ).items():
                        head, drawn = key.split("|")
                        drawn = str(seed) if head == "gaussian" else drawn
                        _write(out / f"{stem}--{head}--{drawn}.json", **rest, head=head,
                               seed=int(drawn), **result)  # fmt: skip
            for head in heads:
                path = out / f"{stem}--{head}--{seed}.json"
                if head in PRESETS and not path.exists():
                    result = run_preset(head, category, arguments.trunk, weights, seed)
                    _write(path, **rest, head=head, seed=seed, **result)


def _weights(backbone: str, trunk: str, seed: int, out: Path) -> str:
    if backbone != "random":
        return backbone
    path = out / f"random-{trunk}-{seed}.safetensors"
    if not path.exists():
        save_file(random_weights(TRUNKS[trunk].build().state_dict(), seed), path)
    return str(path)


def _write(path: Path, **result: Any) -> None:  # noqa: ANN401 - values of any kind
    path.write_text(json.dumps(result))
    print(f"{path.stem}: {result['image_auroc']:.4f}", flush=True)


def table(out: Path, metric: str) -> str:
    """A row for each trunk, backbone and head: mean ± standard deviation over seeds."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*--*.json"))]
    sets = sorted({r["set"] for r in results if r.get(metric) is not None})
    hard = [name for name in ("magnetic_tile", "pill", "cookie") if name in sets]
    lines = [f"| trunk | backbone | head | {' | '.join(sets)} | mean of {', '.join(hard)} |"]
    lines.append("|---" * (len(sets) + 4) + "|")
    rows = sorted({(r["head"], r["trunk"], r["backbone"]) for r in results})
    for head, trunk, backbone in rows:
        cells, means = [], {}
        for name in sets:
            values = [
                r[metric] for r in results
                if (r["head"], r["trunk"], r["backbone"], r["set"]) == (head, trunk, backbone, name)
                and r.get(metric) is not None
            ]  # fmt: skip
            if not values:
                cells.append("–")
                continue
            means[name] = statistics.fmean(values)
            spread = f" ± {statistics.pstdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{means[name]:.3f}{spread}")
        overall = (
            f"{statistics.fmean(means[name] for name in hard):.3f}"
            if all(name in means for name in hard) else "–"
        )  # fmt: skip
        lines.append(f"| {trunk} | {backbone} | {head} | {' | '.join(cells)} | {overall} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, nargs="?", help="folder of MVTec-layout sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trunk", choices=sorted(TRUNKS), default="resnet18")
    parser.add_argument("--backbones", default="random,bundled", help="names or weights files")
    parser.add_argument("--heads", default="nearest,gaussian", help=f"of {', '.join(HEADS)}")
    parser.add_argument("--sets")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--table", action="store_true", help="print what was measured")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not arguments.table:
        if arguments.root is None:
            parser.error("give ROOT, or --table")
        measure(arguments)
    for metric in ("image_auroc", "pixel_auroc", "aupro"):
        print(f"\n{metric}\n\n{table(arguments.out, metric)}")


if __name__ == "__main__":
    main()
