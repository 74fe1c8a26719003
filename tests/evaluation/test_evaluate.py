"""What a test set says of a detector: typed, as in metrics.json, and without a file."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import texture
from haloae.config import Config
from haloae.data.folders import Category, load_category
from haloae.detector import Detector, fit_detector
from haloae.evaluation.evaluate import COMPARED, PROTOCOL, compare, evaluate, score

KEYS = [
    *("image_auroc", "image_ap", "image_f1max"),
    *("pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro", "pixel_aupro_005"),
    *("outline_iou", "outline_iou_best"),
    *("false_alarm_rate", "detection_rate", "wanted_false_alarm_rate"),
    *("threshold", "extrapolated", "images_needed", "held_out", "good", "defective"),
    *("backbone", "preset", "engine", "protocol", "reasons"),
    *("ms_per_image", "skipped", "unusable", "pixel_difference_image_auroc"),
]
"""Of metrics.json, in its order."""


@pytest.fixture(scope="module")
def detector(tiny: Config, good_paths: list[Path]) -> Detector:
    return fit_detector(good_paths, tiny, name="textures", device="cpu").detector


@pytest.fixture
def category(tmp_path: Path) -> Category:
    """Two training images, two good ones to test on, two with a white square, one of nothing."""
    mask = np.zeros((40, 40), np.uint8)
    mask[8:24, 10:30] = 255
    for number in range(2):
        spoilt = np.maximum(texture(30 + number), mask[..., None])
        for place, pixels in {
            f"train/good/{number}.png": texture(number),
            f"test/good/{number}.png": texture(20 + number),
            f"test/square/{number}.png": spoilt,
            f"ground_truth/square/{number}_mask.png": mask,
        }.items():
            path = tmp_path / "parts" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (tmp_path / "parts/test/good/empty.png").write_bytes(b"")
    return load_category(tmp_path / "parts")


def test_metrics_are_those_of_the_file_and_frozen(detector: Detector, category: Category) -> None:
    before = sorted(category.root.rglob("*"))
    evaluation = evaluate(detector, category)
    metrics = evaluation.metrics
    values = metrics.as_dict()
    assert list(values) == KEYS
    assert json.loads(json.dumps(values)) == values
    assert (metrics.good, metrics.defective, metrics.skipped) == (2, 2, 1)
    assert len(evaluation.skipped) == 1
    assert values["protocol"] == PROTOCOL
    assert values["reasons"] == {}
    assert evaluation.curves is not None
    assert [sample.label for sample in evaluation.samples] == [
        row["label"] for row in evaluation.rows
    ]
    assert None not in {values[name] for name in KEYS[:12]} | {values[KEYS[-1]]}
    with pytest.raises(FrozenInstanceError):
        metrics.good = 3  # type: ignore[misc]
    assert sorted(category.root.rglob("*")) == before


def test_an_unusable_image_counts_and_is_counted(detector: Detector, category: Category) -> None:
    before = score(detector, category).metrics
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(category.root / "test/good/black.png")
    found = score(detector, load_category(category.root))
    assert (before.unusable, found.metrics.unusable) == (0, 1)
    assert found.metrics.good == before.good + 1
    words = {row["path"]: row["unusable"] for row in found.rows if row["unusable"]}
    assert list(words) == ["test/good/black.png"]
    assert words["test/good/black.png"].startswith("darker")


def test_a_detector_compared_with_itself(detector: Detector, category: Category) -> None:
    metrics = score(detector, category).metrics
    assert metrics.pixel_difference_image_auroc is None
    expected = [(name, *2 * [getattr(metrics, name)]) for name in COMPARED]
    assert compare(detector, detector, category) == expected
