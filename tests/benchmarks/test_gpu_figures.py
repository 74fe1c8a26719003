"""The script for CUDA devices measures, here on the CPU, and refuses where there is none."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from haloae.config import Config


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SECONDS", 0.0)
    monkeypatch.setattr(gpu, "FEW_STEPS", 1)
    monkeypatch.setattr(gpu, "GOOD", 12)
    monkeypatch.setattr(gpu, "SIDE", 40)


def test_throughput_of_every_preset_precision_and_batch(tiny: Config) -> None:
    found = gpu.throughputs({"tiny": tiny}, (1, 3), "cpu")
    assert [(row["precision"], row["batch"]) for row in found] == [
        ("float32", 1), ("float32", 3), ("bfloat16", 1), ("bfloat16", 3),
    ]  # fmt: skip
    for row in found:
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["ms"])
        assert row["calls"] == 1


def test_what_the_images_would_settle_is_that_of_squares(tiny: Config) -> None:
    found = gpu.throughputs({"tiny": tiny.replace(view={"kind": "auto"})}, (1,), "cpu")
    assert all(row["images_per_second"] > 0 for row in found)


def test_training_is_timed_by_steps_and_as_a_whole(tiny: Config) -> None:
    (row,) = gpu.trainings({"tiny": tiny}, {"tiny": 5}, "cpu")
    assert (row["preset"], row["steps"], row["schedule"]) == ("tiny", 5, tiny.training.steps)
    assert row["seconds"] > 0
    assert row["steps_per_second"] is None or row["steps_per_second"] > 0


def test_a_fit_without_training_is_timed_as_a_whole(tiny: Config) -> None:
    config = tiny.replace(
        network={"autoencoder": False, "classifier": False}, detection={"head": "halo"}
    )
    (row,) = gpu.trainings({"untrained": config}, {"untrained": 0}, "cpu")
    assert (row["steps"], row["schedule"], row["steps_per_second"]) == (0, 0, None)
    assert row["seconds"] > 0


@pytest.mark.parametrize("head", ["gaussian", "nearest", "nearest_halo", "halo"])
def test_throughput_of_what_looks_at_features(tiny: Config, head: str) -> None:
    config = tiny.replace(
        network={"autoencoder": False, "classifier": False}, detection={"head": head}
    )
    (row, _) = gpu.throughputs({head: config}, (2,), "cpu")
    assert row["images_per_second"] > 0


def test_without_a_device_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "results.json")])
    assert gpu.main() == 2
    assert capsys.readouterr().err == "There is no CUDA device to measure.\n"
    assert list(tmp_path.iterdir()) == []
