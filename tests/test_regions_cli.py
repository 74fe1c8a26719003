"""Regions on the command line: one mask for all, one an image, named ones, and wrong ones."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from PIL import Image as PILImage

import tiny_trunk  # noqa: F401 - registers it
from haloae.cli import main
from haloae.detection.model_file import read_model

SETTINGS = ("network.trunk=tiny", "network.reduced_channels=8", "network.stride=4")
FIT = ("--preset", "gaussian", "--image-size", "32", "--backbone", "random", "--device", "cpu")
FIT += tuple(word for setting in SETTINGS for word in ("--set", setting))
SHAPE = (40, 40)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def haloae(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Run:
    """Run a command; its exit code, stdout and stderr."""
    monkeypatch.setenv("HALOAE_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def save(path: Path, *boxes: tuple[int, int, int, int], shape: tuple[int, int] = SHAPE) -> Path:
    mask = np.zeros(shape, np.uint8)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(mask).save(path)
    return path


def spoil(folder: Path) -> None:
    """A black corner in each image of a folder."""
    for path in folder.iterdir():
        pixels = np.array(PILImage.open(path))
        pixels[:8, :12] = 0
        PILImage.fromarray(pixels).save(path)


def test_what_is_ignored_raises_no_alarm_and_is_not_counted(
    haloae: Run, labelled: Path, tmp_path: Path
) -> None:
    data = Path(copytree(labelled, tmp_path / "cloth"))
    for number in range(2):
        save(data / f"ground_truth/hole/{number}_mask.png", (10, 26, 8, 24), (0, 8, 0, 12))
    spoil(data / "test/good")
    corner = save(tmp_path / "corner.png", (0, 9, 0, 13))
    assert haloae("train", data, "--out", "run", *FIT, "--ignore", corner, "--quiet")[0] == 0
    model = Path("run/model.safetensors")
    code, out, _ = haloae("info", model)
    assert code == 0
    assert "of 40×40 pixels 92.7 %" in out
    assert haloae("predict", model, data / "test/good", "--out", "p", "--quiet")[0] == 0
    lines = [json.loads(line) for line in Path("p/predictions.jsonl").read_text().splitlines()]
    assert [line["is_anomalous"] for line in lines] == [False, False]
    assert not np.asarray(PILImage.open("p/maps/0.png"))[:9, :13].any()
    assert haloae("evaluate", model, data, "--out", "e", "--quiet")[0] == 0
    metrics = json.loads(Path("e/metrics.json").read_text())
    assert metrics["detection_rate"] == 1
    assert metrics["pixel_auroc"] > 0.95, "the corner of the masks is not counted as missed"
    assert "outside" in Path("e/report.html").read_text()


def test_named_regions_are_told_apart(haloae: Run, labelled: Path, tmp_path: Path) -> None:
    save(tmp_path / "parts/upper.png", (0, 20, 0, 40))
    save(tmp_path / "parts/lower.png", (30, 40, 0, 40))
    code, out, _ = haloae("train", labelled, "--out", "run", *FIT, "--regions", "parts")
    assert code == 0
    assert "regions lower, upper" in out
    assert haloae("predict", "run/model.safetensors", labelled / "test/hole", "--out", "p")[0] == 0
    lines = [json.loads(line) for line in Path("p/predictions.jsonl").read_text().splitlines()]
    for line in lines:
        assert list(line["regions"]) == ["lower", "upper"]
        assert line["regions"]["upper"]["is_anomalous"]
        assert set(line["regions"]["lower"]) == {"score", "threshold", "is_anomalous"}


def test_masks_of_single_images_go_by_path(haloae: Run, labelled: Path, tmp_path: Path) -> None:
    for path in sorted(labelled.rglob("*.png")):
        save(tmp_path / "masks" / path.relative_to(labelled), (4, 36, 4, 36))
    assert haloae("train", labelled, "--out", "run", *FIT, "--roi", "masks", "--quiet")[0] == 0
    model = Path("run/model.safetensors")
    assert read_model(model)[0].region == "each"
    code, _, err = haloae("predict", model, labelled / "test", "--out", "p")
    assert code == 2
    assert "was fitted to images with masks of their own" in err
    given = ("predict", model, labelled / "test/good", "--out", "p", "--roi", "masks/test/good")
    assert haloae(*given)[0] == 0
    (tmp_path / "masks/test/good/1.png").unlink()
    before = Path("p/predictions.jsonl").read_text()
    code, _, err = haloae(*given, "--overwrite")
    assert code == 2
    assert "masks/test/good/1.png: there is no mask for this image" in err
    assert Path("p/predictions.jsonl").read_text() == before


def test_masks_that_are_wrong_stop_before_anything_is_written(
    haloae: Run, labelled: Path, tmp_path: Path
) -> None:
    other = save(tmp_path / "other.png", (4, 36, 4, 36), shape=(50, 60))
    nothing = save(tmp_path / "nothing.png")
    roi = save(tmp_path / "roi.png", (4, 36, 4, 36))
    words = tmp_path / "words.png"
    words.write_text("no image")
    save(tmp_path / "parts/a.png", (0, 20, 0, 40))
    save(tmp_path / "parts/b.png", (19, 40, 0, 40))
    cases = [
        (("--roi", other), "the image is 40×40 pixels, and the region is for 60×50"),
        (("--roi", nothing), "nothing is left that counts"),
        (("--roi", roi, "--ignore", roi), "nothing is left that counts"),
        (("--roi", words), "words.png: expected an image"),
        (("--roi", "missing.png"), "missing.png: no such file"),
        (("--regions", "parts"), "overlaps parts/a.png in 40 pixels"),
        (("--regions", "parts", "--roi", roi), "leave --roi out"),
    ]
    for options, part in cases:
        code, out, err = haloae("train", labelled, "--out", "run", *FIT, *options)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert part in err
        assert not Path("run/model.safetensors").exists()
