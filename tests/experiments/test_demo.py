"""The demo from end to end, on a set and with a network that take seconds, and once in earnest."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from haloae.cli import main
from haloae.config import Config
from haloae.demo_set.pictures import CATEGORIES
from haloae.experiments.demo import Outcome, run_demo, table


def few_images(
    folder: Path, *, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> list[Path]:
    """Stands in for the set: one category of noise, its defect a white square."""
    rng = np.random.default_rng(0)
    parts = [("train/good", 12), ("test/good", 3), ("test/spot", 3)]
    for part, number in progress([(part, n) for part, count in parts for n in range(count)]):
        pixels = rng.integers(90, 150, (40, 40, 3)).astype(np.uint8)
        mask = np.zeros((40, 40), np.uint8)
        mask[10:20, 10:20] = 255
        images = {part: pixels}
        if part == "test/spot":
            images = {part: np.maximum(pixels, mask[..., None]), "ground_truth/spot": mask}
        for place, image in images.items():
            path = folder / "noise" / place / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PILImage.fromarray(image).save(path)
    return [folder / "noise"]


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "slow" not in request.keywords:
        monkeypatch.setattr("haloae.experiments.demo.write_demo", few_images)


def test_run_demo_leaves_all_there_is_to_see(tmp_path: Path, tiny: Config) -> None:
    (outcome,) = run_demo(tmp_path, tiny, device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "noise", "report.html"}
    files = {"model.safetensors", "checkpoint.pt", "losses.csv", "metrics.json", "scores.csv"}
    files.add("report.html")
    assert {path.name for path in (tmp_path / "noise").iterdir()} == files
    assert json.loads((tmp_path / "noise/metrics.json").read_text()) == outcome.metrics
    assert outcome.category == "noise"
    assert outcome.backbone == "tiny, random weights"
    assert outcome.seconds > 0


def test_the_table_is_aligned() -> None:
    metrics = dict.fromkeys(
        ("image_auroc", "pixel_auroc", "pixel_aupro", "pixel_difference_image_auroc"), 0.5
    )
    rates = {"detection_rate": 1.0, "false_alarm_rate": 0.0}
    outcomes = [Outcome(name, metrics | rates, 12.3, "tiny, random weights") for name in "ab"]
    first, header, *rows = table(outcomes).splitlines()
    assert first == "backbone: tiny, random weights"
    assert header.split()[0] == "category"
    assert len({len(line) for line in (header, *rows)}) == 1
    assert rows[0].split() == ["a", "0.500", "0.500", "0.500", "0.500", "1.000", "0.000", "12"]


@pytest.fixture
def small_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Config) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("haloae.presets.preset", lambda name: {"fast": tiny}[name])


@pytest.mark.usefixtures("small_preset")
def test_the_command_says_what_came_out_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "tiny, random weights" in out
    assert "image AUROC" in out
    assert "haloae-demo/data" in out
    assert "haloae-demo/noise" in out
    assert "haloae-demo/report.html" in out
    assert main(["demo"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "haloae: haloae-demo: is not empty: give --overwrite, or choose another --out.\n"
    )
    assert main(["demo", "--overwrite", "--device", "cpu", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("small_preset")
def test_the_command_refuses_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("mine")
    assert main(["demo", "--out", "file"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "file: cannot be written" in err
    assert Path("file").read_text() == "mine"


@pytest.mark.slow
def test_the_demo_needs_a_detector_and_has_one(tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), "--device", "cpu"]) == 0
    for category in CATEGORIES:
        metrics = json.loads((tmp_path / "demo" / category / "metrics.json").read_text())
        assert metrics["image_auroc"] >= 0.95, category
        assert metrics["pixel_auroc"] >= 0.95, category
        assert metrics["pixel_difference_image_auroc"] <= 0.8, category
