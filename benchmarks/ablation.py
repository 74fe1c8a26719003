"""Which training and which score work best: the experiment behind docs/adr/0004.

    python -m benchmarks.ablation ROOT --out runs/ablation [--variants base,...] [--seeds 0,1]
    python -m benchmarks.ablation --out runs/ablation --table

Every training variant is one change to `base`; every score variant is taken from the same trained
model. A run that is already in the output folder is not repeated.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from haloae.config import Config
from haloae.data.folders import Category, load_category
from haloae.data.images import read_image, read_mask
from haloae.data.views import resize
from haloae.detection.maps import image_score, residual_map, residuals, smooth
from haloae.detection.predictor import resize_map
from haloae.detector import fit_detector
from haloae.evaluation.evaluate import pixel_difference
from haloae.evaluation.metrics import PixelMetrics, area_resize, image_metrics
from haloae.presets import FAST

BASE = FAST.replace(
    image_size=128,
    network={
        "trunk": "vgg19",
        "classifier": False,
        "image_decoder": None,
        "attention": {"mode": "halo"},
        "reduced_channels": 16,
        "head_channels": 48,
        "encoder": [{"channels": 48}, {"channels": 8}],
        "decoder": [{"channels": 8}, {"channels": 48}, {}],
    },
    loss={"feature_terms": ["mse"], "clean_targets": True},
    training={"steps": 40, "learning_rate": 2e-3, "schedule": "cosine", "precision": "bfloat16"},
)
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "published targets and SSL": {
        "network": {"classifier": True},
        "loss": {"clean_targets": False},
    },
    "published targets": {"loss": {"clean_targets": False}},
    "no attention": {"network": {"attention": {"mode": "none"}}},
    "96 components": {"network": {"reduced_channels": 96}},
    "mse and ssim": {"loss": {"feature_terms": ["mse", "ssim"]}},
    "image branch": {"network": {"image_decoder": [48, 24]}, "loss": {"fixed_weights": [0, 1, 1]}},
    "mse and cosine": {"loss": {"feature_terms": ["mse", "cosine"]}},
    "noise 0.5": {"network": {"bottleneck_noise": 0.5}},
    "three times the steps": {"training": {"steps": 120}},
    "no attention and three times the steps": {
        "training": {"steps": 120},
        "network": {"attention": {"mode": "none"}},
    },
} | {
    f"{trunk} {components} components {steps} steps": {
        "training": {"steps": steps},
        "network": {
            "trunk": trunk, "reduced_channels": components, "attention": {"mode": "none"},
            "head_channels": max(48, components),
        }
    }
    for trunk in ("vgg19", "resnet18")
    for components in (16, 48, 96)
    for steps in (40, 160)
} | {
    "fast": {
        "image_size": FAST.image_size, "training": {"steps": FAST.training.steps},
        "network": FAST.network.model_dump(),
    }
}  # fmt: skip
NORMALISATIONS = ("difference", "channel_difference", "none", "channel", "position", "both")
SIGMAS = (0.8, 1.6)
TOP_SHARES = (1.0, 0.1, 0.02, 0.01, 0.005)
PIXELS = 128
MAX_TEST = 240
"""Test images a set is measured on, evenly spread: a large set costs no more than others."""


def run(config: Config, category: Category) -> dict[str, Any]:
    """Train once, then score the test set in every way."""
    start = time.perf_counter()
    detector = fit_detector(category.train, config, name=category.root.name).detector
    seconds = time.perf_counter() - start
    weights = (0.0, 0.3, 1.0) if config.network.image_decoder else (0.0,)
    ways = list(itertools.product(NORMALISATIONS, SIGMAS, weights))
    scores: dict[str, list[float]] = {}
    pixels = {way: PixelMetrics() for way in ways}
    has_masks = all(sample.mask for sample in category.test if sample.is_anomalous)
    test = category.test[:: -(-len(category.test) // MAX_TEST)]
    for sample in test:
        image = read_image(sample.path)
        batch = detector.network.normalise(torch.from_numpy(resize(image, config.image_size))[None])
        mask = np.zeros((PIXELS, PIXELS), dtype=bool)
        if sample.mask and has_masks:
            mask = area_resize(read_mask(sample.mask, shape=(image.height, image.width)), PIXELS)
        with torch.inference_mode():
            residual = residuals(detector.network(batch), batch)
            for way in ways:
                normalisation, sigma, image_weight = way
                detection = config.detection.model_copy(
                    update={
                        "normalisation": normalisation,
                        "sigma": sigma,
                        "image_weight": image_weight,
                    }
                )
                unusual = residual_map(residual, detector.head.usual, detection)
                anomaly = smooth(unusual, detection.sigma)
                for share in TOP_SHARES:
                    key = f"{normalisation}|{sigma}|{image_weight}|{share}"
                    scores.setdefault(key, []).append(image_score(anomaly, share).item())
                if has_masks:
                    pixels[way].update(resize_map(anomaly[0].numpy(), (PIXELS, PIXELS)), mask)
    labels = np.array([sample.is_anomalous for sample in test])
    return {
        "seconds": seconds,
        "image_auroc": {k: image_metrics(np.array(v), labels).auroc for k, v in scores.items()},
        "pixel": {"|".join(map(str, w)): p.compute()._asdict() for w, p in pixels.items()},
    }


def table(out: Path) -> str:
    """Mean over sets and seeds of every variant, best score variant first."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    lines = []
    variants = sorted({r["variant"] for r in results})
    sets = sorted({r["set"] for r in results})
    base = [r for r in results if r["variant"] == "base"]
    keys = sorted(base[0]["image_auroc"], key=lambda k: -mean_of(base, k))
    lines += ["| score of base | image AUROC | pixel AUROC | AUPRO |", "|---|---|---|---|"]
    for key in keys:
        pixel = key.rsplit("|", 1)[0]
        lines.append(
            f"| {key.replace('|', ', ')} | {mean_of(base, key):.3f} | "
            f"{pixel_of(base, pixel, 'auroc'):.3f} | {pixel_of(base, pixel, 'aupro'):.3f} |"
        )
    for key in keys[:3]:
        lines += ["", f"Image AUROC, {key}", f"| variant | {' | '.join(sets)} | mean | AUPRO | s |"]
        lines.append("|---" * (len(sets) + 4) + "|")
        for variant in variants:
            of = [r for r in results if r["variant"] == variant]
            cells = [mean_of([r for r in of if r["set"] == s], key) for s in sets]
            aupro = pixel_of(of, key.rsplit("|", 1)[0], "aupro")
            lines.append(
                f"| {variant} | {' | '.join(f'{c:.3f}' for c in cells)} | "
                f"{statistics.mean(cells):.3f} | {aupro:.3f} | "
                f"{statistics.mean(r['seconds'] for r in of):.0f} |"
            )
        cells = [next(r["pixel_difference"] for r in results if r["set"] == s) for s in sets]
        lines.append(
            f"| pixel difference | {' | '.join(f'{c:.3f}' for c in cells)} | "
            f"{statistics.mean(cells):.3f} | | |"
        )
    return "\n".join(lines)


def mean_of(results: list[dict[str, Any]], key: str) -> float:
    """Mean image AUROC; NaN where nothing was run."""
    return statistics.fmean(r["image_auroc"][key] for r in results) if results else float("nan")


def pixel_of(results: list[dict[str, Any]], key: str, metric: str) -> float:
    """Mean pixel metric over the sets that have masks."""
    values = [r["pixel"][key][metric] for r in results if r["pixel"][key][metric] is not None]
    return statistics.fmean(values) if values else float("nan")


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--sets")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.out))
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    sets = arguments.sets.split(",") if arguments.sets else sorted(
        path.name for path in arguments.root.iterdir() if path.is_dir()
    )  # fmt: skip
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    for variant, name, seed in itertools.product(arguments.variants.split(","), sets, seeds):
        path = arguments.out / f"{variant.replace(' ', '_')}--{name}--{seed}.json"
        if path.exists():
            continue
        config = BASE.replace(**VARIANTS[variant]).replace(seed=seed, backbone=arguments.backbone)
        category = load_category(arguments.root / name)
        result = run(config, category)
        result |= {"variant": variant, "set": name, "seed": seed}
        result["pixel_difference"] = pixel_difference(category).auroc
        path.write_text(json.dumps(result))
        best = max(result["image_auroc"], key=lambda k: result["image_auroc"][k])
        print(f"{path.stem}: {result['seconds']:.0f} s, best {best} "
              f"{result['image_auroc'][best]:.3f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
