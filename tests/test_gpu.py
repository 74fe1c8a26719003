"""On CUDA as on the CPU: fit, resume, predict, bfloat16, export."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import texture
from haloae.config import Config
from haloae.deploy.export import EXPORTS, export_model
from haloae.detector import Detector, Fitted, fit_detector
from haloae.machine import has_bfloat16

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CLOSE = 1e-3
"""Relative difference of scores and maps between devices, both in whole float32: sums are taken in
another order, and what is left of a residual once the usual one is taken from it has lost digits.
"""
ROUGH = 0.15
"""The same in bfloat16, whose numbers have 8 bits; and what is asked of exports in it."""
TRAINED = 1e-2
"""The same after some steps of training. CUDA adds up some gradients in whatever order its threads
come by, and Adam turns a gradient that is near 0 into a whole step one way or the other.
"""


@pytest.fixture(autouse=True)
def _whole_float32() -> Iterator[None]:
    """Convolutions without TF32, which keeps 10 bits of what it multiplies: not what is tested."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def model(good_paths: list[Path], tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fitted on the CPU, so that what tests compare is what computes with it."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    config = tiny.replace(detection={"normalisation": "channel_difference", "top_share": 0.1})
    fit_detector(good_paths, config, name="textures", device="cpu").detector.save(path)
    return path


def fit(
    paths: list[Path],
    config: Config,
    *,
    run: Path | None = None,
    max_steps: int | None = None,
    resume: bool = False,
    workers: int = 0,
) -> Fitted:
    return fit_detector(
        paths, config, name="textures", device="cuda", run=run, max_steps=max_steps,
        resume=resume, workers=workers,
    )  # fmt: skip


def losses(run: Path) -> list[float]:
    with (run / "losses.csv").open() as file:
        return [float(value) for row in csv.DictReader(file) for value in row.values()]


def assert_alike(found: Detector, wanted: Detector, paths: list[Path], relative: float) -> None:
    for one, other in zip(found.predict(paths), wanted.predict(paths), strict=True):
        assert one.score == pytest.approx(other.score, rel=relative)
        assert np.abs(one.grid_map - other.grid_map).max() <= relative * other.grid_map.max()


def test_a_fit_takes_the_steps_that_the_cpu_takes(
    good_paths: list[Path], tiny: Config, tmp_path: Path
) -> None:
    fitted = fit(good_paths, tiny, run=tmp_path / "cuda")
    assert fitted.is_finished
    assert {p.device.type for p in fitted.detector.network.parameters()} == {"cuda"}
    fit_detector(good_paths, tiny, name="textures", device="cpu", run=tmp_path / "cpu")
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=TRAINED)


def test_what_was_fitted_is_what_is_saved(
    good_paths: list[Path], tiny: Config, tmp_path: Path
) -> None:
    fitted = fit(good_paths, tiny, max_steps=2).detector
    fitted.save(tmp_path / "model.safetensors")
    loaded = Detector.load(tmp_path / "model.safetensors", device="cuda")
    assert_alike(loaded, fitted, good_paths[:2], CLOSE)
    assert loaded.calibration.scores == fitted.calibration.scores


def test_batches_made_by_other_processes_are_the_same(
    good_paths: list[Path], tiny: Config, tmp_path: Path
) -> None:
    fit(good_paths, tiny, run=tmp_path / "alone", max_steps=2)
    fit(good_paths, tiny, run=tmp_path / "helped", max_steps=2, workers=2)
    assert losses(tmp_path / "helped") == pytest.approx(losses(tmp_path / "alone"), rel=TRAINED)


def test_a_resumed_run_ends_as_one_that_was_never_stopped(
    good_paths: list[Path], tiny: Config, tmp_path: Path
) -> None:
    whole = fit(good_paths, tiny, run=tmp_path / "whole")
    assert not fit(good_paths, tiny, run=tmp_path / "parts", max_steps=3).is_finished
    resumed = fit(good_paths, tiny, run=tmp_path / "parts", resume=True)
    assert resumed.steps == whole.steps
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=TRAINED)
    assert_alike(resumed.detector, whole.detector, good_paths[:4], 10 * TRAINED)


def test_bfloat16_trains(good_paths: list[Path], tiny: Config, tmp_path: Path) -> None:
    config = tiny.replace(training={"precision": "bfloat16"})
    detector = fit(good_paths, config, run=tmp_path / "half").detector
    assert {p.dtype for p in detector.network.parameters()} == {torch.float32}
    assert np.isfinite(detector.calibration.scores).all()
    fit(good_paths, tiny, run=tmp_path / "whole")
    half, whole = losses(tmp_path / "half"), losses(tmp_path / "whole")
    assert half == pytest.approx(whole, rel=ROUGH)
    if has_bfloat16(torch.device("cuda")):
        assert half != whole


def test_predictions_are_those_of_the_cpu(model: Path, good_paths: list[Path]) -> None:
    cuda, cpu = (Detector.load(model, device=device) for device in ("cuda", "cpu"))
    assert_alike(cuda, cpu, good_paths, CLOSE)
    for one, other in zip(cuda.predict(good_paths), cpu.predict(good_paths), strict=True):
        assert one.is_anomalous == other.is_anomalous


def test_as_users_run_it_scores_are_near(model: Path, good_paths: list[Path]) -> None:
    torch.backends.cudnn.allow_tf32 = True
    cuda, cpu = (Detector.load(model, device=device) for device in ("cuda", "cpu"))
    assert_alike(cuda, cpu, good_paths, ROUGH)


def test_bfloat16_is_near(model: Path, good_paths: list[Path]) -> None:
    half = Detector.load(model, device="cuda", precision="bfloat16")
    whole = Detector.load(model, device="cuda")
    for one, other in zip(half.predict(good_paths), whole.predict(good_paths), strict=True):
        assert one.score == pytest.approx(other.score, rel=ROUGH)


def test_calibrating_anew_is_what_the_cpu_does(model: Path, good_paths: list[Path]) -> None:
    cuda, cpu = (
        Detector.load(model, device=device).calibrated(good_paths[:6]) for device in ("cuda", "cpu")
    )
    assert cuda.calibration.scores == pytest.approx(cpu.calibration.scores, rel=CLOSE)


@pytest.mark.parametrize("head", ["gaussian", "nearest", "nearest_halo", "halo"])
def test_heads_of_features_are_those_of_the_cpu(
    good_paths: list[Path], tiny: Config, head: str
) -> None:
    config = tiny.replace(
        network={"autoencoder": False, "classifier": False}, detection={"head": head}
    )
    cuda = fit(good_paths, config).detector
    cpu = fit_detector(good_paths, config, name="textures", device="cpu").detector
    # What is kept has 11 bits, and may round to either side.
    assert cuda.calibration.scores == pytest.approx(cpu.calibration.scores, rel=TRAINED)
    new = [texture(seed) for seed in (200, 201)]
    for one, other in zip(cuda.predict(new), cpu.predict(new), strict=True):
        assert one.score == pytest.approx(other.score, rel=TRAINED)


def test_an_export_agrees_with_the_detector_on_cuda(
    model: Path, good_paths: list[Path], tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    detector = Detector.load(model, device="cuda")
    export_model(detector, tmp_path / "model.onnx", format="onnx")
    assert {p.device.type for p in detector.network.parameters()} == {"cuda"}
    assert_alike(
        Detector.load(tmp_path / "model.onnx"), detector, good_paths, EXPORTS["onnx"].tolerance
    )
