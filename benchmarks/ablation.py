"""Which training and which score work best: the experiment behind docs/adr/0004.

    python -m benchmarks.ablation ROOT --out runs/ablation [--variants base,...] [--seeds 0,1]

Every training variant is one change to `base`; every way of scoring is taken from the same trained
model. A finished run that is in the output folder is not repeated.
"""

import itertools
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.ways import measure_ways, options, run, set_threads, split
from haloae.data.images import Image
from haloae.data.views import resize
from haloae.detection.heads.autoencoder import AutoencoderHead
from haloae.detection.maps import image_score, residual_map, residuals, smooth
from haloae.detector import Detector, fit_detector
from haloae.experiments.grid import Run, grid_of
from haloae.presets import AUTOENCODER
from haloae.training.run_folder import CHECKPOINT

BASE = AUTOENCODER.replace(
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
VARIANTS: Mapping[str, Mapping[str, Any]] = {
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
    **{
        f"{trunk} {components} components {steps} steps": {
            "training": {"steps": steps},
            "network": {
                "trunk": trunk,
                "reduced_channels": components,
                "attention": {"mode": "none"},
                "head_channels": max(48, components),
            },
        }
        for trunk in ("vgg19", "resnet18")
        for components in (16, 48, 96)
        for steps in (40, 160)
    },
    "autoencoder": {
        "image_size": AUTOENCODER.image_size,
        "training": {"steps": AUTOENCODER.training.steps},
        "network": AUTOENCODER.network.model_dump(),
    },
}
NORMALISATIONS = ("difference", "channel_difference", "none", "channel", "position", "both")
SIGMAS = (0.8, 1.6)
TOP_SHARES = (1.0, 0.1, 0.02, 0.01, 0.005)
MAX_TEST = 240
"""Test images a set is measured on, evenly spread: a large set costs no more than others."""


def measure(run: Run) -> dict[str, Any]:
    """Train once, then score the test set in every way."""
    start = time.perf_counter()
    detector = fit_detector(
        run.category.train,
        run.config,
        name=run.category.root.name,
        run=run.folder,
        device="cpu",
        resume=run.resume,
    ).detector
    seconds = time.perf_counter() - start
    test = run.category.test[:: -(-len(run.category.test) // MAX_TEST)]
    scores = {f"top {share:g}": partial(image_score, top_share=share) for share in TOP_SHARES}
    metrics = measure_ways(run.category, test, partial(maps, detector), scores)
    (run.folder / CHECKPOINT).unlink(missing_ok=True)
    return {"fit_seconds": seconds, "metrics": metrics}


@torch.inference_mode()
def maps(detector: Detector, image: Image) -> dict[str, Tensor]:
    """(1, h, w) each, by normalisation, smoothing and weight of the image branch."""
    config = detector.config
    batch = detector.network.normalise(torch.from_numpy(resize(image, config.image_size))[None])
    residual = residuals(detector.network(batch), batch)
    assert isinstance(detector.head, AutoencoderHead)  # noqa: S101 - no variant has another
    weights = (0.0, 0.3, 1.0) if config.network.image_decoder else (0.0,)
    found = {}
    for how, sigma, weight in itertools.product(NORMALISATIONS, SIGMAS, weights):
        changed = config.replace(
            detection={"normalisation": how, "sigma": sigma, "image_weight": weight}
        )
        name = f"{how}, σ {sigma:g}, image {weight:g}"
        unusual = residual_map(residual, detector.head.usual, changed.detection)
        found[name] = smooth(unusual, sigma)
    return found


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = options(__doc__)
    parser.add_argument("--variants", metavar="A,B", default=",".join(VARIANTS))
    parser.add_argument("--backbone", default="auto")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    configs = {
        name: BASE.replace(**VARIANTS[name]).replace(backbone=arguments.backbone)
        for name in arguments.variants.split(",")
    }
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    sets = split(arguments.sets)
    run(grid_of(arguments.root, configs, categories=sets, seeds=seeds), arguments.out, measure)


if __name__ == "__main__":
    main()
