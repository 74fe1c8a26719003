"""What predict and evaluate leave on disk."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from conftest import texture
from data.image_files import png16
from haloae.cli import main
from haloae.config import Config
from haloae.detector import Detector, fit_detector
from haloae.errors import OutputError
from haloae.outputs.folder import Counts, predict_to_folder


def on_disk(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == np.uint16:
        path.write_bytes(png16(pixels))
    else:
        PILImage.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def detector(tiny: Config, good_paths: list[Path]) -> Detector:
    return fit_detector(good_paths, tiny, name="textures", device="cpu").detector


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Two good images, two with a red square, and one that is empty."""
    folder = tmp_path / "parts"
    for i in range(2):
        on_disk(folder / f"good/{i}.png", texture(50 + i))
        spoilt = texture(60 + i)
        spoilt[10:26, 8 : 24 + 6 * i] = (255, 0, 0)
        on_disk(folder / f"bad/{i}.png", spoilt)
    (folder / "empty.png").write_bytes(b"")
    return folder


def lines_of(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_overlays_of_the_anomalous_all_or_none(
    detector: Detector, parts: Path, tmp_path: Path
) -> None:
    every = {f"overlays/{kind}/{i}.jpg" for kind in ("good", "bad") for i in range(2)}
    for overlays in ("anomalous", "all", "none"):
        out = tmp_path / overlays
        counts = predict_to_folder(detector, [parts], out, maps="none", overlays=overlays)  # type: ignore[arg-type]
        assert isinstance(counts, Counts)
        assert counts.failed == 1
        lines = lines_of(out)
        anomalous = {line["overlay"] for line in lines if line["is_anomalous"]}
        listed = {line["overlay"] for line in lines} - {None}
        assert listed == {"anomalous": anomalous, "all": every, "none": set()}[overlays]
        sheet = set() if overlays == "none" else {"contact_sheet.jpg"}
        assert files_in(out) == listed | sheet | {"predictions.jsonl"}
        scores = [entry.score for entry in counts.highest]
        assert scores == sorted((line["score"] for line in lines if line["score"]), reverse=True)
        assert {entry.thumbnail is None for entry in counts.highest} == {overlays == "none"}


def test_no_picture_of_an_earlier_run_is_left(
    detector: Detector, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    on_disk(parts / "a..b.png", texture(1))
    predict_to_folder(detector, [parts], out, overlays="all")
    mine = out / "overlays/mine.txt"
    mine.write_text("mine")
    predict_to_folder(detector, [parts / "good"], out, overlays="all", overwrite=True)
    assert files_in(out / "overlays") == {"mine.txt", "0.jpg", "1.jpg"}
    predict_to_folder(detector, [parts / "good"], out, maps="none", overlays="none", overwrite=True)
    assert files_in(out) == {"overlays/mine.txt", "predictions.jsonl"}


def test_a_prediction_without_overlays_or_of_something_else_is_replaced(
    detector: Detector, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outside = tmp_path / "outside.jpg"
    outside.write_text("mine")
    for line in (
        '{"map": "maps/old.png"}',
        '{"overlay": "overlays/../../outside.jpg"}',
        '{"overlay": "/etc/x", "map": 3}',
        "[1]",
        "nonsense",
    ):
        on_disk(out / "maps/old.png", np.zeros((2, 2), np.uint8))
        (out / "predictions.jsonl").write_text(line + "\n")
        predict_to_folder(detector, [parts], out, overwrite=True)
        assert len(lines_of(out)) == 5
        assert (out / "maps/old.png").exists() == ("old" not in line)
    assert outside.read_text() == "mine"


def test_pictures_are_no_inputs(detector: Detector, parts: Path) -> None:
    out = parts / "found"
    for again in (False, True):
        counts = predict_to_folder(detector, [parts], out, overlays="all", overwrite=again)
        assert counts.normal + counts.anomalous == 4
    counts = predict_to_folder(detector, [parts], parts, overlays="all", overwrite=True)
    counts = predict_to_folder(detector, [parts / "good"], parts / "good", overwrite=True)
    assert counts.normal + counts.anomalous == 2


def test_names_that_clash_or_are_too_long(detector: Detector, parts: Path, tmp_path: Path) -> None:
    on_disk(parts / "bad/0.jpg", texture(3))
    on_disk(parts / ("n" * 251 + ".png"), texture(4))
    out = tmp_path / "out"
    predict_to_folder(detector, [parts], out, overlays="all")
    overlays = [line["overlay"] for line in lines_of(out) if line["overlay"]]
    assert len(set(overlays)) == 6
    assert {"overlays/bad/0.jpg", "overlays/bad/0.png.jpg"} <= set(overlays)
    assert files_in(out / "overlays") == {str(name)[len("overlays/") :] for name in overlays}


@pytest.mark.parametrize("name", ["overlays", "contact_sheet.jpg"])
def test_a_picture_that_cannot_be_written(
    detector: Detector, parts: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    if name == "overlays":
        out.mkdir()
        (out / name).write_text("in the way")
    else:
        (out / name).mkdir(parents=True)
    with pytest.raises(OutputError, match=name):
        predict_to_folder(detector, [parts], out, overlays="all", overwrite=True)
    assert not (out / "predictions.jsonl").exists()


def test_hostile_images_get_overlays(detector: Detector, tmp_path: Path) -> None:
    folder, rng = tmp_path / "odd", np.random.default_rng(0)
    on_disk(folder / "one.png", np.zeros((1, 1), np.uint8))
    on_disk(folder / "grey16.png", rng.integers(0, 4000, (33, 40)).astype(np.uint16))
    on_disk(folder / "wide.png", rng.integers(0, 255, (3, 3000, 3)).astype(np.uint8))
    on_disk(folder / "tall.png", rng.integers(0, 255, (3000, 3, 3)).astype(np.uint8))
    out = tmp_path / "out"
    predict_to_folder(detector, [folder], out, overlays="all")
    assert files_in(out / "overlays") == {"one.jpg", "grey16.jpg", "wide.jpg", "tall.jpg"}


def test_the_sheet_and_the_screen_show_the_highest(
    detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = tmp_path / "m.safetensors", tmp_path / "many"
    detector.save(model)
    for i in range(44):
        on_disk(folder / f"{i:02}\n\t.png", texture(i))
    predict = ["predict", str(model), str(folder), "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main(predict) == 0
    printed = capsys.readouterr().out.splitlines()
    start = printed.index("  highest 10 of 44 scores:")
    header, *rows = printed[start + 1 :]
    assert header.split() == ["score", "p-value", "verdict", "image"]
    ranked = sorted(lines_of(tmp_path / "out"), key=lambda line: -float(str(line["score"])))[:10]
    assert [row.split()[-1] for row in rows] == [
        Path(str(line["path"])).name.replace("\n", "\\n").replace("\t", "\\t") for line in ranked
    ]
    assert [float(row.split()[0]) for row in rows] == pytest.approx(
        [line["score"] for line in ranked], rel=1e-3
    )
    assert {row.index(row.split()[-1]) for row in rows} == {header.index("image")}
    with PILImage.open(tmp_path / "out/contact_sheet.jpg") as sheet:
        assert sheet.width > 1600
    assert main([*predict, "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_a_machine_that_only_predicts_needs_no_extra() -> None:
    extras = ["torch", "scipy", "sklearn", "imagecodecs", "jinja2", "markupsafe", "onnx"]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({extras}));"
        "import haloae.deploy.runtime, haloae.outputs.folder, haloae.evaluation.evaluate"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
