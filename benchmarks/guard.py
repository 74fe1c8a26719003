"""What the input guard says of spoilt pictures, of good ones and of defects, and what it costs.

    python -m benchmarks.guard ROOT --out runs/guard [--spoilt cookie,tire] [--preset fast]

ROOT holds categories in MVTec layout. Of each, a detector is fitted, and all test images are
predicted. Good test images of the categories under `--spoilt`, `SPOILT` of each at most, are spoilt
as a camera may do it, in their own size. The cost is of the first of these categories, exported to
ONNX, on one thread. It leaves results.json.
"""

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageFilter

from benchmarks.machine import machine
from benchmarks.script import leave, parser_of
from benchmarks.tables import Table
from haloae.data.folders import GOOD, Category, load_category
from haloae.data.images import Image, read_image
from haloae.data.views import View
from haloae.deploy.export import export_model
from haloae.detection.guard import Guard
from haloae.detection.looks import look_at
from haloae.detection.prediction import VERDICTS, Prediction
from haloae.detector import Detector

SPOILT = 20
ROUNDS = 200
FEW, DRAWS, OTHERS = (8, 16, 32, 64), 10, 60
"""Good images that a guard is fitted to, how often, and how many others it is then asked of."""
Pixels = NDArray[np.uint8]


def beyond_the_edges(pixels: Pixels) -> Pixels:
    """Three times as high and as wide: what the camera would see is taken to be a mirror image."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((height, height), (width, width), (0, 0)), "symmetric")


def shifted(pixels: Pixels) -> Pixels:
    """By a quarter of the width."""
    height, width = pixels.shape[:2]
    left = width + width // 4
    return beyond_the_edges(pixels)[height : 2 * height, left : left + width]


def turned(pixels: Pixels) -> Pixels:
    """By ten degrees."""
    height, width = pixels.shape[:2]
    picture = PILImage.fromarray(beyond_the_edges(pixels))
    whole = picture.rotate(10, PILImage.Resampling.BILINEAR)
    return np.asarray(whole)[height : 2 * height, width : 2 * width]


def blurred(pixels: Pixels) -> Pixels:
    """By 1.5 % of the longer side."""
    radius = 0.015 * max(pixels.shape)
    return np.asarray(PILImage.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def noisy(pixels: Pixels) -> Pixels:
    """By a standard deviation of 26 grey levels; a grey picture stays grey."""
    is_grey = (pixels == pixels[..., :1]).all()
    noise = np.random.default_rng(0).normal(0, 26, (*pixels.shape[:2], 1 if is_grey else 3))
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def half_covered(pixels: Pixels) -> Pixels:
    """Black on the left."""
    covered = pixels.copy()
    covered[:, : pixels.shape[1] // 2] = 0
    return covered


WAYS: dict[str, Callable[[Pixels], Pixels]] = {
    "as it is": lambda pixels: pixels,
    "black": np.zeros_like,
    "white": lambda pixels: np.full_like(pixels, 255),
    "blurred": blurred,
    "noise": noisy,
    "half the exposure": lambda pixels: pixels // 2,
    "twice the exposure": lambda pixels: np.minimum(pixels.astype(int) * 2, 255).astype(np.uint8),
    "red and blue swapped": lambda pixels: pixels[..., ::-1],
    "shifted by a quarter": shifted,
    "turned by 10°": turned,
    "lens half covered": half_covered,
}


def spoil(detector: Detector, category: Category, other: Category) -> list[dict[str, Any]]:
    """What is said of pictures spoilt in each way, and of those of another product."""
    good = [sample.path for sample in category.test if sample.label == GOOD][:SPOILT]
    images = [read_image(path) for path in good]
    pictures = {
        name: [
            Image(np.ascontiguousarray(way(image.pixels)), image.depth, image.grey)
            for image in images
        ]
        for name, way in WAYS.items()
    }
    pictures["another product"] = [read_image(sample.path) for sample in other.test[:SPOILT]]
    told = []
    for name, spoilt in pictures.items():
        predictions = detector.predict(spoilt)
        score = statistics.median(each.score for each in predictions)
        reasons = Counter(each.unusable for each in predictions if each.unusable)
        told.append(
            {
                "set": category.root.name,
                "picture": name,
                "verdicts": Counter(each.verdict for each in predictions),
                "score": score / detector.calibration.threshold.value,
                "reason": reasons.most_common(1)[0][0] if reasons else None,
            }
        )
    return told


def alarms(detector: Detector, category: Category) -> dict[str, Any]:
    """What is said of the test images as they are."""
    assert detector.guard is not None  # noqa: S101 - it was just fitted
    found: dict[bool, list[Prediction]] = {False: [], True: []}
    for sample in category.test:
        found[sample.is_anomalous].append(detector.predict(sample.path))
    return {
        "set": category.root.name,
        "fitted to": detector.guard.images,
        "aligned": "yes" if detector.guard.is_aligned else "no",
        **{
            name: [len(found[kind]), sum(each.verdict == "unusable" for each in found[kind])]
            for name, kind in (("good", False), ("defects", True))
        },
        "few": refused_by_few(category, detector.view),
    }


def refused_by_few(category: Category, view: View) -> dict[str, list[int]]:
    """Of guards fitted to few good images, drawn from all: other good images, and those refused."""
    good = [sample.path for sample in category.test if sample.label == GOOD]
    views = [view.show(read_image(path)) for path in (*category.train, *good)]
    rng = np.random.default_rng(0)
    found = {}
    for few in FEW:
        counts = [0, 0]
        for _ in range(DRAWS if 2 * few <= len(views) else 0):
            order = rng.permutation(len(views)).tolist()
            guard = Guard.fit(look_at(views[place]) for place in order[:few])
            others = order[few : few + OTHERS]
            counts[0] += len(others)
            counts[1] += sum(guard.why_unusable(views[place]) is not None for place in others)
        found[str(few)] = counts
    return found


def cost(preset: str, category: Category) -> dict[str, Any]:
    """Milliseconds of guard and graph, by turns."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_model(Detector.fit(category.root, preset=preset), path, format="onnx", threads=1)
        detector = Detector.load(path, threads=1)
    assert detector.guard is not None  # noqa: S101 - it was just fitted
    size = detector.config.image_size
    views = [detector.view.show(read_image(sample.path)) for sample in category.test]
    times: dict[str, list[float]] = {"guard": [], "graph": []}
    for turn in range(ROUNDS):
        view = views[turn % len(views)]
        start = time.perf_counter()
        detector.guard.why_unusable(view)
        middle = time.perf_counter()
        detector.measure(view[None])
        times["guard"].append(1000 * (middle - start))
        times["graph"].append(1000 * (time.perf_counter() - middle))
    guard, graph = (statistics.median(times[name]) for name in ("guard", "graph"))
    return {"preset": preset, "size": size, "guard": guard, "graph": graph}


def spoilt_table(results: Mapping[str, Any]) -> Table:
    """A row for each set and way: how many are unusable, anomalous and normal; the median score."""
    rows = [
        [
            told["set"],
            told["picture"],
            " · ".join(str(told["verdicts"].get(word, 0)) for word in reversed(VERDICTS)),
            told["score"],
            told["reason"],
        ]
        for told in results["spoilt"]
    ]
    return Table(["set", "picture", "verdicts", "score", "reason"], rows, {"score": 2})


def alarm_table(results: Mapping[str, Any]) -> Table:
    """A row for each set: of how many good test images and defects, how many are unusable."""
    columns = ["good test images", "unusable", "defects", "unusable defects"]
    rows = [
        [told["set"], told["fitted to"], told["aligned"], *told["good"], *told["defects"]]
        for told in results["alarms"]
    ]
    total = [sum(row[place] for row in rows) for place in range(3, 7)]
    rows.append(["**all**", None, None, *total])
    return Table(["set", "fitted to", "aligned", *columns], rows, {})


def few_table(results: Mapping[str, Any]) -> Table:
    """A row for each number of images that a guard is fitted to; all sets together."""
    rows = []
    for few in FEW:
        counts = [told["few"][str(few)] for told in results["alarms"]]
        judged, refused = (sum(count[place] for count in counts) for place in (0, 1))
        rows.append([few, sum(count[0] > 0 for count in counts), judged, refused])
    return Table(["fitted to", "sets", "other good images", "unusable"], rows, {})


def cost_table(results: Mapping[str, Any]) -> Table:
    """A row for each preset."""
    rows = [
        [
            f"`{told['preset']}`, {told['size']}²",
            told["guard"],
            told["graph"],
            100 * told["guard"] / (told["guard"] + told["graph"]),
        ]
        for told in results["cost"]
    ]
    digits = {"guard, ms": 2, "graph, ms": 1, "share, %": 1}
    return Table(["preset", *digits], rows, digits)


def main() -> None:
    """Measure and write."""
    parser = parser_of(__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--spoilt", default="cookie,magnetic_tile,kolektor,tire,board")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = arguments.spoilt.split(",")
    categories = {
        path.name: load_category(path) for path in sorted(arguments.root.iterdir()) if path.is_dir()
    }
    results: dict[str, Any] = {"machine": machine(arguments.threads), "spoilt": [], "alarms": []}
    for name in [*chosen, *(name for name in categories if name not in chosen)]:
        detector = Detector.fit(categories[name].root, preset=arguments.preset, seed=0)
        results["alarms"].append(alarms(detector, categories[name]))
        if name in chosen:
            other = chosen[(chosen.index(name) + 1) % len(chosen)]
            results["spoilt"] += spoil(detector, categories[name], categories[other])
        print(name, flush=True)
    results["cost"] = [cost(preset, categories[chosen[0]]) for preset in ("fast", "default")]
    leave(results, arguments.out)


if __name__ == "__main__":
    main()
