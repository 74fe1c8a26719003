"""Whether thresholds hold the false-alarm rate they are made for, on good images alone.

    python -m benchmarks.thresholds ROOT --out runs/thresholds [--preset fast] [--splits 20]
        [--device cuda]

ROOT holds categories in MVTec layout. All good images of one, of training and test, are split at
random: a detector without auto-encoder is fitted to some, the others are scored. The trunk sees
each image once, squashed; components and head are fitted anew for every split. It leaves
results.json.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from benchmarks.machine import machine
from benchmarks.script import leave, parser_of
from benchmarks.tables import Table
from haloae.config import Config
from haloae.data.folders import GOOD, Category, load_category
from haloae.data.images import read_image
from haloae.data.views import resize
from haloae.detection.calibration import threshold_at
from haloae.detection.good import measure_seen
from haloae.detection.heads import Seen
from haloae.detection.scorer import judge
from haloae.network.haloae import HaloAE, HaloAEOutput
from haloae.network.reducer import FeatureReducer
from haloae.presets import preset
from haloae.training.fit import REDUCER_IMAGES

SIZES = (20, 50)
"""Good images that a detector is fitted to, besides half of them."""
MANY = 100
"""Sets with fewer good images are told of together; of larger halves no more are fitted to."""
SCORED = 30
"""Of the others, drawn anew for every split."""
RATES = (0.01, 0.05, 0.1)
BATCH = 16


def features_of(category: Category, network: HaloAE, size: int) -> Tensor:
    """What the trunk sees in all good images: (N, channels, h, w) float16, where the network is."""
    paths = [*category.train, *(each.path for each in category.test if each.label == GOOD)]
    device = next(network.parameters()).device
    seen = []
    with torch.inference_mode():
        for path in paths:
            pixels = torch.from_numpy(resize(read_image(path), size)[None]).to(device)
            seen.append(network.extractor(network.normalise(pixels)).half())
    return torch.cat(seen).clone()


def split(
    features: Tensor, reducer: FeatureReducer, config: Config, *, size: int, seed: int
) -> dict[str, Any]:
    """Fit to `size` images drawn at random: the scores that calibrate, and others'."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(features)))
    known, new = features[order[:size]], features[order[size : size + SCORED]]
    reducer.fit(each[None].float() for each in known[:: max(1, size // REDUCER_IMAGES)])
    seen = list(_seen(known, reducer))
    good = measure_seen(lambda: seen, config)
    with torch.inference_mode():
        scores = [
            judge(good.head(*each), config.detection)[0].item() for each in _seen(new, reducer)
        ]
    return {"known": good.scores, "new": scores}


def _seen(features: Tensor, reducer: FeatureReducer) -> Iterator[Seen]:
    for batch in features.split(BATCH):
        for reduced in reducer(batch.float()).split(1):
            # No head that is measured here looks at the image.
            yield Seen(HaloAEOutput(reduced, reduced, None, None), reduced)


def measure(category: Category, config: Config, splits: int, device: str) -> list[dict[str, Any]]:
    """Every split of a set."""
    network = HaloAE(config.network, image_size=config.image_size, weights=config.backbone).eval()
    network.to(device)
    reducer = network.reducer
    if not isinstance(reducer, FeatureReducer):
        raise TypeError("the preset's features are not reduced.")
    features = features_of(category, network, config.image_size)
    count = len(features)
    half = min(count // 2, MANY)
    found = []
    for size in (*(each for each in SIZES if count >= MANY and each < half), half):
        for seed in range(splits):
            told = split(features, reducer, config, size=size, seed=seed)
            found.append(
                {"set": category.root.name, "good": count, "size": size, "seed": seed, **told}
            )
    return found


def table(results: Mapping[str, Any]) -> Table:
    """Shares of new good images above the thresholds, a row for each set and size."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in results["splits"]:
        is_few = each["good"] < MANY
        key = ("fewer than 100", "half") if is_few else (each["set"], str(each["size"]))
        groups.setdefault(key, []).append(each)
    rows = []
    for (name, size), group in groups.items():
        cells = [_interval(group, rate) for rate in RATES]
        rows.append([name, size, *cells])
    for size in sorted({size for name, size in groups if size.isdigit()}, key=int):
        rows_of = [each for (_, found), group in groups.items() if found == size for each in group]
        rows.append(["**all of these**", size, *(_interval(rows_of, rate) for rate in RATES)])
    return Table(["set", "fitted to", *(f"at {100 * rate:g} %" for rate in RATES)], rows, {})


def _interval(group: Sequence[Mapping[str, Any]], rate: float) -> str:
    """Mean over splits in percent, with its interval by Student's t over them."""
    by_seed: dict[int, list[bool]] = {}
    for each in group:
        limit = threshold_at(each["known"], rate).value
        by_seed.setdefault(each["seed"], []).extend(score > limit for score in each["new"])
    shares = [100 * fmean(above) for above in by_seed.values()]
    n = len(shares)
    reach = stdtrit(n - 1, 0.975) * stdev(shares) / math.sqrt(n)
    mean = fmean(shares)
    return f"{mean:.1f} ({max(0.0, mean - reach):.1f} to {mean + reach:.1f})"


def main() -> None:
    """Measure and write."""
    parser = parser_of(__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", metavar="A,B", help="categories (default: all)")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = preset(arguments.preset).replace(view={"kind": "squash"})
    wanted = arguments.sets.split(",") if arguments.sets else None
    results: dict[str, Any] = {"machine": machine(arguments.threads), "splits": []}
    for path in sorted(arguments.root.iterdir()):
        if path.is_dir() and (wanted is None or path.name in wanted):
            results["splits"] += measure(
                load_category(path), config, arguments.splits, arguments.device
            )
            print(path.name, flush=True)
            leave(results, arguments.out)


if __name__ == "__main__":
    main()
