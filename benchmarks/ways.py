"""What experiments share: many ways of scoring from one pass, what is asked, what was left."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.script import parser_of
from haloae.config import Config
from haloae.data.folders import Category, Sample
from haloae.data.images import Image, read_image, read_mask
from haloae.detection.prediction import resize_map
from haloae.evaluation.evaluate import pixel_difference
from haloae.evaluation.metrics import ImageMetrics, PixelMetrics, area_resize
from haloae.experiments.benchmark import run_benchmark
from haloae.experiments.grid import (
    MEAN,
    RUN,
    Measure,
    Point,
    baseline,
    cell,
    numbers,
    run_grid,
    spreads,
    to_json,
)
from haloae.outputs.tables import markdown

SIZE = 128
"""Side of the square on which maps and masks are compared."""
SHOWN = 3
"""Ways of which each variant is told."""


def measure_ways(
    category: Category,
    test: Sequence[Sample],
    maps: Callable[[Image], Mapping[str, Tensor]],
    scores: Mapping[str, Callable[[Tensor], Tensor]],
) -> dict[str, Any]:
    """Metrics of every way, which is a map and what makes a score of it.

    Args:
        category: whose test images they are.
        test: those to measure on.
        maps: an image's, (1, h, w) each, by name.
        scores: (1, h, w) → (1,), by name.

    Returns:
        ``image_auroc`` by ``<map>, <score>``; ``pixel_auroc`` and ``pixel_aupro`` by map, where
        every defect has a mask; and the pixel difference's image AUROC.
    """
    has_masks = all(sample.mask for sample in test if sample.is_anomalous)
    images: dict[str, ImageMetrics] = {}
    pixels: dict[str, PixelMetrics] = {}
    for sample in test:
        image = read_image(sample.path)
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        if sample.mask and has_masks:
            mask = area_resize(read_mask(sample.mask, shape=(image.height, image.width)), SIZE)
        for way, anomaly in maps(image).items():
            for name, score in scores.items():
                metrics = images.setdefault(f"{way}, {name}", ImageMetrics())
                metrics.update(score(anomaly).item(), sample.is_anomalous)
            if has_masks:
                pixel = pixels.setdefault(way, PixelMetrics())
                pixel.update(resize_map(anomaly[0].numpy(), (SIZE, SIZE)), mask)
    outlined = {way: pixel.compute() for way, pixel in pixels.items()}
    return {
        "image_auroc": {way: each.compute().auroc for way, each in images.items()},
        "pixel_auroc": {way: each.auroc for way, each in outlined.items()},
        "pixel_aupro": {way: each.aupro for way, each in outlined.items()},
        "pixel_difference_image_auroc": pixel_difference(category).auroc,
    }


def finished(*folders: Path) -> list[dict[str, Any]]:
    """What each finished run's file holds, and ``at``, its folder; in the order of the names.

    Raises:
        ValueError: a folder has none.
    """
    runs = []
    for given in folders:
        paths = sorted(given.rglob(RUN))
        found = [{**json.loads(path.read_text("utf-8")), "at": path.parent} for path in paths]
        done = [run for run in found if "metrics" in run]
        if not done:
            raise ValueError(f"{given}: no run in it is finished.")
        runs += done
    return runs


def counted_as(category: str) -> str:
    """The name of a set; papers are kinds of one product, and count as one."""
    return "paper" if category.startswith("paper_") else category


def options(description: str | None) -> argparse.ArgumentParser:
    """What the script asks for."""
    parser = parser_of(description)
    parser.add_argument("root", type=Path, help="folder of categories in MVTec layout")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--sets", metavar="A,B", help="categories (default: all)")
    parser.add_argument("--seeds", metavar="0,1", default="0")
    parser.add_argument("--threads", type=int)
    return parser


def benchmark(
    given: argparse.Namespace, configs: Mapping[str, Config], *, device: str, workers: int = 0
) -> None:
    """Fit and measure, as `haloae benchmark` does, what is missing of the given sets and seeds.

    Args:
        given: of `options`.
        configs: by name.
        device: of torch.
        workers: see `run_benchmark`.
    """
    run_benchmark(
        given.root,
        given.out,
        configs,
        categories=split(given.sets),
        seeds=[int(seed) for seed in given.seeds.split(",")],
        device=device,
        workers=workers,
        progress=sys.stderr.isatty(),
        report=lambda run: print(run["folder"], run.get("error", ""), flush=True),
    )


def run(points: Sequence[Point], out: Path, measure: Measure) -> None:
    """Do what is not done yet; write results.json and results.md, and print the latter."""
    runs: list[dict[str, Any]] = []
    for done in run_grid(out, points, measure):
        runs.append(done)
        print(f"{done['folder']}: {done.get('error') or format(done['seconds'], '.0f') + ' s'}")
        (out / "results.json").write_bytes(to_json({"runs": runs}))
    finished = [run for run in runs if "metrics" in run]
    if finished:
        (out / "results.md").write_text(tables(finished))
        print(tables(finished))


def tables(runs: Sequence[Mapping[str, Any]]) -> str:
    """The first variant's ways, best first; then every variant, scored in the best of them."""
    categories = list(dict.fromkeys(run["category"] for run in runs))
    variants = list(dict.fromkeys(run["variant"] for run in runs))
    first = [run for run in runs if run["variant"] == variants[0]]

    def quality(way: str) -> float:
        return (_spreads(first, "image_auroc", way, categories)[MEAN] or {"mean": 0.0})["mean"]

    ways = sorted(first[0]["metrics"]["image_auroc"], key=quality, reverse=True)
    rows = [[way, *_means(first, way, categories)] for way in ways]
    parts = [markdown(rows, [f"score of {variants[0]}", "image AUROC", "pixel AUROC", "AUPRO"])]
    plain = numbers(baseline(runs, categories), [*categories, MEAN])
    for way in ways[:SHOWN]:
        rows = []
        for variant in variants:
            mine = [run for run in runs if run["variant"] == variant]
            found = _spreads(mine, "image_auroc", way, categories)
            cells = [cell(found[name]) for name in (*categories, MEAN)]
            rows.append([variant, *cells, *_means(mine, way, categories)[1:]])
        rows.append(["pixel difference", *plain, "–", "–"])
        parts += [
            f"Image AUROC, {way}",
            markdown(rows, ["variant", *categories, MEAN, "pixel AUROC", "AUPRO"]),
        ]
    return "\n\n".join(parts) + "\n"


def _spreads(
    runs: Sequence[Mapping[str, Any]], metric: str, way: str, categories: Sequence[str]
) -> dict[str, dict[str, float] | None]:
    values = [(run["category"], run["seed"], run["metrics"][metric].get(way)) for run in runs]
    return spreads(values, categories)


def _means(runs: Sequence[Mapping[str, Any]], way: str, categories: Sequence[str]) -> list[str]:
    """Image AUROC, pixel AUROC and AUPRO; the latter two over the categories that have masks."""
    has_masks = {run["category"] for run in runs if run["metrics"]["pixel_aupro"]}
    outlined = [name for name in categories if name in has_masks]
    drawn = way.rsplit(", ", 1)[0]
    return [
        cell(_spreads(runs, "image_auroc", way, categories)[MEAN]),
        cell(_spreads(runs, "pixel_auroc", drawn, outlined)[MEAN]),
        cell(_spreads(runs, "pixel_aupro", drawn, outlined)[MEAN]),
    ]


def split(names: str | None) -> list[str] | None:
    """Names separated by commas."""
    return names.split(",") if names else None


def set_threads(count: int | None) -> None:
    """Of torch; None leaves them."""
    if count:
        torch.set_num_threads(count)
