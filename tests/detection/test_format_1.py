"""Files of format 1, written before settings moved and went, still load and say what they said.

The kept files lack the trunk, which is that of the package: it is put back here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from conftest import texture
from haloae import ConfigError, Detector, ModelFileError
from haloae.config import parse_config, without_retired
from haloae.deploy.runtime import Metadata
from haloae.network.weights import BUNDLED

KEPT = Path(__file__).parent / "format_1"
TRUNKS = {"fast": "resnet18", "paper": "vgg19"}


def whole(name: str, folder: Path) -> Path:
    """A kept file with its trunk."""
    path = folder / f"{name}.safetensors"
    with safe_open(KEPT / path.name, framework="numpy") as file:
        metadata = file.metadata()
    trunk = load_file(BUNDLED / f"{TRUNKS[name]}.safetensors")
    layers = {
        f"network.extractor.layers.{key}": value.astype(np.float32) for key, value in trunk.items()
    }
    save_file({**load_file(KEPT / path.name), **layers}, path, metadata=metadata)
    return path


@pytest.mark.parametrize("name", TRUNKS)
def test_a_kept_model_says_what_it_said(name: str, tmp_path: Path) -> None:
    told = json.loads((KEPT / "told.json").read_text())[name]
    detector = Detector.load(whole(name, tmp_path), device="cpu")
    defective = texture(100)
    defective[8:20, 20:32] = (250, 40, 250)
    for found, wanted in zip(
        detector.predict([texture(50), defective]), told["predictions"], strict=True
    ):
        assert found.score == pytest.approx(wanted["score"], rel=1e-5)
        assert found.p_value == wanted["p_value"]
        assert found.is_anomalous == wanted["is_anomalous"]
        assert (found.unusable, detector.guard) == (None, None)
        assert found.grid_map.max() == pytest.approx(wanted["peak"], rel=1e-5)
    thresholds = [detector.calibration.threshold.value, detector.calibration.pixel_threshold.value]
    assert thresholds == pytest.approx(told["thresholds"], rel=1e-9)


def test_a_kept_model_is_saved_and_loaded_again(tmp_path: Path) -> None:
    before = Detector.load(whole("paper", tmp_path), device="cpu")
    before.save(tmp_path / "again.safetensors")
    after = Detector.load(tmp_path / "again.safetensors", device="cpu")
    assert after.config == before.config
    assert after.predict(texture(3)).score == before.predict(texture(3)).score
    assert before.calibration.fitted_threshold is None
    assert after.calibration.fitted_threshold == before.calibration.threshold.value


def test_the_metadata_of_a_kept_export_is_read() -> None:
    values = json.loads((KEPT / "export.json").read_text())
    assert "epochs" in values["config"]["training"]
    metadata = Metadata.model_validate({**values, "config": without_retired(values["config"])})
    told = json.loads((KEPT / "told.json").read_text())["fast"]["thresholds"]
    assert [metadata.threshold, metadata.pixel_threshold] == told
    assert metadata.stated(metadata.threshold, None).extrapolated


def test_what_can_no_longer_be_had_is_said(tmp_path: Path) -> None:
    values: dict[str, Any] = json.loads((KEPT / "export.json").read_text())["config"]
    values["network"]["attention"]["mask_padding"] = False
    with pytest.raises(ConfigError, match="mask_padding"):
        without_retired(values)
    with pytest.raises(ConfigError, match="no such setting"):
        parse_config(values)
    path = tmp_path / "short.safetensors"
    path.write_bytes((KEPT / "fast.safetensors").read_bytes())
    with pytest.raises(ModelFileError, match="checksum"):
        Detector.load(path)
