"""Thresholds that a person has set, beside models of every kind; the model itself is untouched."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from conftest import texture
from faults.models import small_export
from haloae.cli import main
from haloae.config import Config
from haloae.detection.calibration_file import calibration_path, write_calibration
from haloae.detector import Detector, load
from haloae.errors import ConfigError, ModelFileError
from haloae.files import sha256_of

TIME = datetime(2026, 3, 1, 14, 5, tzinfo=UTC)


@pytest.fixture(params=[".safetensors", ".onnx", ".xml"])
def model(
    request: pytest.FixtureRequest, tiny: Config, two_models: list[Path], tmp_path: Path
) -> Path:
    path = tmp_path / f"cap{request.param}"
    if request.param == ".safetensors":
        shutil.copy(two_models[0], path)
        return path
    return small_export(path, tiny)


def set_threshold(model: Path, threshold: float) -> Path:
    return write_calibration(
        model, threshold=threshold, pixel_threshold=0.75, who="line 3's engineer", time=TIME
    )


def test_every_kind_of_model_loads_the_thresholds_that_were_set(model: Path) -> None:
    before, fitted = sha256_of(model), load(model)
    score = fitted.predict(texture(50)).score
    for factor in (0.5, 2.0):
        path = set_threshold(model, score * factor)
        assert path.name == f"{model.name}.calibration.json"
        changed = load(model)
        prediction = changed.predict(texture(50))
        assert (prediction.score, prediction.is_anomalous) == (score, factor < 1)
        assert prediction.pixel_threshold == 0.75
        assert not prediction.extrapolated
        assert changed.calibration.scores == fitted.calibration.scores
        assert changed.calibration.set_by == (
            f"set by line 3's engineer on 2026-03-01 14:05 UTC in {path.name}"
        )
    path.unlink()
    assert load(model).calibration.threshold == fitted.calibration.threshold
    assert fitted.calibration.set_by is None
    assert sha256_of(model) == before


def test_thresholds_of_another_model_are_refused(model: Path) -> None:
    path = set_threshold(model, 1.0)
    other = json.loads(path.read_text()) | {"model": "0" * 64}
    path.write_text(json.dumps(other))
    with pytest.raises(ModelFileError, match=r"is for a model of sha256 000000000000…, and cap\."):
        load(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid: delete it"),
        ("[" * 70_000, "larger than 65,536 bytes"),
        ('{"threshold": NaN}', "is not valid"),
        ('{"format_version": 2}', "is not valid at format_version"),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(
    two_models: list[Path], tmp_path: Path, text: str, message: str
) -> None:
    model = Path(shutil.copy(two_models[0], tmp_path / "m.safetensors"))
    calibration_path(model).write_text(text)
    with pytest.raises(ModelFileError, match=message) as raised:
        load(model)
    assert str(raised.value).startswith(str(calibration_path(model)))


@pytest.mark.parametrize("threshold", [-1.0, float("nan"), float("inf")])
def test_what_is_no_threshold_is_not_written(
    two_models: list[Path], tmp_path: Path, threshold: float
) -> None:
    model = Path(shutil.copy(two_models[0], tmp_path / "m.safetensors"))
    path = set_threshold(model, 1.5)
    with pytest.raises(ConfigError, match="threshold: input should be"):
        set_threshold(model, threshold)
    with pytest.raises(ModelFileError, match="cannot be read"):
        set_threshold(tmp_path / "none.safetensors", 1.5)
    assert load(model).calibration.threshold.value == 1.5
    assert sorted(tmp_path.iterdir()) == [model, path]


def test_copies_exports_and_a_new_calibration(
    two_models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copy(two_models[0], tmp_path / "m.safetensors"))
    path = set_threshold(model, 7.25)
    detector = load(model, device="cpu")
    assert detector.calibrated().calibration.threshold.value == 7.25
    other = detector.calibrated(false_alarm_rate=0.3).calibration
    assert (other.set_by, other.threshold) == (
        None,
        Detector.load(two_models[0], device="cpu")
        .calibrated(false_alarm_rate=0.3)
        .calibration.threshold,
    )
    detector.save(tmp_path / "copy.safetensors")
    assert load(tmp_path / "copy.safetensors").calibration.threshold.value == 7.25
    assert main(["info", str(model)]) == 0
    assert f"7.25 set by line 3's engineer on 2026-03-01 14:05 UTC in {path.name}" in (
        capsys.readouterr().out
    )
    assert main(["info", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["set_by"] == detector.calibration.set_by
    assert main(["calibrate", str(model), "--false-alarm-rate", "0.3", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert f"{path}: removed" in said.err
    assert not path.exists()
    assert load(model).calibration.threshold == other.threshold
