"""Tables of the quality experiments, made from runs as the experiment loop gives them."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from benchmarks.tables import texts
from PIL import Image as PILImage
from torch import Tensor

from benchmarks import curve, ways
from haloae.data.folders import load_category
from haloae.data.images import Image


@pytest.fixture(scope="module")
def spotted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images; those with a spot are defective."""
    root = tmp_path_factory.mktemp("sets") / "spotted"
    plain, mask = np.full((32, 32, 3), 100, np.uint8), np.zeros((32, 32), np.uint8)
    mask[8:16, 8:16] = 255
    images = {"test/spot/0": np.maximum(plain, mask[..., None]), "ground_truth/spot/0": mask}
    images |= {"train/good/0": plain, "test/good/0": plain}
    for name, pixels in images.items():
        path = (root / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(pixels).save(path)
    return root


def test_every_way_is_measured_on_the_same_maps(spotted: Path) -> None:
    def maps(image: Image) -> dict[str, Tensor]:
        bright = torch.from_numpy(image.pixels[..., 0].astype(np.float32))[None]
        return {"bright": bright, "dark": 255 - bright}

    scores = {"highest": lambda anomaly: anomaly.amax((1, 2))}
    category = load_category(spotted)
    found = ways.measure_ways(category, category.test, maps, scores)
    assert found["image_auroc"] == {"bright, highest": 1.0, "dark, highest": 0.5}
    assert found["pixel_auroc"]["bright"] > 0.99
    assert found["pixel_auroc"]["dark"] < 0.01
    assert found["pixel_difference_image_auroc"] == 1.0


def run(variant: str, seed: int, value: float) -> dict[str, Any]:
    metrics = {
        "image_auroc": {"a, top": value, "b, top": 0.5},
        "pixel_auroc": {"a": 0.8, "b": 0.8},
        "pixel_aupro": {"a": 0.4, "b": 0.3},
        "pixel_difference_image_auroc": 0.6,
    }
    return {"variant": variant, "category": "cloth", "seed": seed, "metrics": metrics}


def test_ways_are_ranked_by_the_first_variant_and_variants_shown_in_the_best() -> None:
    text = ways.tables([run("base", 0, 0.7), run("base", 1, 0.9), run("other", 0, 0.65)])
    ranked, *shown = text.split("\n\n")
    assert [line.split(" | ")[0] for line in ranked.splitlines()[2:]] == ["| a, top", "| b, top"]
    assert shown[0] == "Image AUROC, a, top"
    assert "| base | 0.800 ± 0.141 | 0.800 ± 0.141 | 0.800 ± 0.000 | 0.400 ± 0.000 |" in shown[1]
    assert "| other | 0.650 | 0.650 | 0.800 | 0.400 |" in shown[1]
    assert "| pixel difference | 0.600 | 0.600 | – | – |" in shown[1]


def test_the_curve_has_a_row_for_each_training_and_a_line_for_each_set() -> None:
    runs = [
        {
            "variant": f"{steps} steps", "category": name, "seed": 0, "fit_seconds": steps / 10,
            "metrics": {"image_auroc": 0.5 + steps / 1000, "pixel_aupro": None},
        }
        for steps in (200, 20)
        for name in ("cloth", "felt")
    ]  # fmt: skip
    found = curve.table(runs)
    assert found.columns == ["steps", "seconds", "cloth", "felt", "mean", "AUPRO"]
    assert texts(found) == [
        ["20", "2", "0.520", "0.520", "0.520", "–"],
        ["200", "20", "0.700", "0.700", "0.700", "–"],
    ]
    root = ElementTree.fromstring(curve.chart(runs))  # noqa: S314 - our own
    shown = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"cloth", "felt"} <= set(shown)
