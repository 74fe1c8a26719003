"""Fitting end to end on a tiny network: what it refuses, and that stopping it changes nothing."""

import csv
import math
import os
import pickle
import shutil
import signal
import sys
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_trunk  # noqa: F401 - for the processes that import this file and no conftest
from haloae.config import Config
from haloae.detector import Fitted, fit_detector
from haloae.errors import DataError, ImageError, TrainingError
from haloae.network.features import FeatureExtractor
from haloae.training import loop
from haloae.training.losses import loss_weights
from haloae.training.run_folder import CHECKPOINT, LOSS_LOG, load_checkpoint

LONG = 24
"""Steps of the runs that are killed."""
DEADLINE = 120.0


def fit(paths: list[Path], config: Config, run: Path | None = None, **options: Any) -> Fitted:  # noqa: ANN401
    return fit_detector(paths, config, name="textures", run=run, device="cpu", **options)


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / LOSS_LOG).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same(found: Fitted, expected: Fitted) -> None:
    """Weights, statistics and thresholds are the same, bit for bit."""
    states = [fitted.detector.network.state_dict() for fitted in (found, expected)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    assert torch.equal(found.detector.head.usual.features, expected.detector.head.usual.features)
    assert found.detector.calibration == expected.detector.calibration
    assert found.detector.provenance == expected.detector.provenance
    assert found.steps == expected.steps


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def fitted(good_paths: list[Path], tiny: Config, finished_run: Path) -> Fitted:
    return fit(good_paths, tiny, finished_run)


def test_is_finished(fitted: Fitted) -> None:
    assert fitted.is_finished
    assert fitted.steps == 6
    assert fitted.skipped == []


def test_provenance(fitted: Fitted) -> None:
    provenance = fitted.detector.provenance
    assert (provenance.data, provenance.backbone) == ("textures", "random")
    assert (provenance.fitted_on, provenance.held_out, provenance.skipped) == (8, 4, 0)
    assert provenance.steps == 6
    assert len(provenance.backbone_sha256) == 64
    assert provenance.images.heights == (40, 40)


def test_trunk_is_unchanged_and_the_rest_is_trained(
    fitted: Fitted, good_paths: list[Path], tiny: Config
) -> None:
    network = fitted.detector.network
    trunk = FeatureExtractor("random", tiny.network.trunk).state_dict()
    assert trunk.keys() == network.extractor.state_dict().keys()
    for name, tensor in network.extractor.state_dict().items():
        assert torch.equal(tensor, trunk[name]), name
    assert not any(p.requires_grad for p in network.extractor.parameters())
    other = fit(good_paths, tiny, max_steps=1).detector.network.state_dict()
    for name, tensor in network.state_dict().items():
        is_frozen = name.startswith(("extractor.", "reducer."))
        assert torch.equal(tensor, other[name]) == is_frozen, name


def test_log_has_a_row_a_step_and_the_weights_of_its_epoch(
    finished_run: Path, fitted: Fitted, tiny: Config
) -> None:
    rows = rows_of(finished_run)
    assert [int(row["step"]) for row in rows] == list(range(1, fitted.steps + 1))
    for done, row in enumerate(rows):
        weights = loss_weights(done * 251 // 6, tiny.loss)
        # Without an image branch the other two weights are scaled to sum to one.
        both = weights["classification"] + weights["features"]
        applied = weights["classification"] / both
        assert float(row["classification_weight"]) == pytest.approx(applied)
        assert float(row["features_weight"]) == pytest.approx(1 - applied)
        assert math.isfinite(float(row["features"]))
        assert float(row["learning_rate"]) == tiny.training.learning_rate
    assert "image" not in rows[0]


def test_checkpoint_loads_without_pickle(finished_run: Path, fitted: Fitted) -> None:
    values = torch.load(finished_run / CHECKPOINT, weights_only=True)
    assert values["step"] == fitted.steps
    saved = load_checkpoint(finished_run)
    assert saved is not None
    assert saved.config == fitted.detector.config


def test_same_seed_same_detector(fitted: Fitted, good_paths: list[Path], tiny: Config) -> None:
    torch.manual_seed(12345)
    assert_same(fit(good_paths, tiny), fitted)
    other = fit(good_paths, tiny.replace(seed=1)).detector.calibration
    assert other != fitted.detector.calibration


def test_resuming_a_finished_run_changes_nothing(
    fitted: Fitted, good_paths: list[Path], tiny: Config, finished_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run, tmp_path / "copy")
    again = fit(good_paths, tiny, tmp_path / "copy", resume=True)
    assert_same(again, fitted)
    assert again.is_finished
    assert (tmp_path / "copy" / LOSS_LOG).read_text() == (finished_run / LOSS_LOG).read_text()


def test_training_lowers_the_loss(good_paths: list[Path], tiny: Config, tmp_path: Path) -> None:
    config = tiny.replace(training={"steps": 40, "learning_rate": 3e-3})
    fit(good_paths, config, tmp_path)
    losses = [float(row["features"]) for row in rows_of(tmp_path)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


@pytest.mark.parametrize(
    ("schedule", "all_stops"), [("constant", [(3,)]), ("cosine", [(1,), (2, 5)])]
)
def test_resumed_equals_uninterrupted(
    schedule: str,
    all_stops: list[tuple[int, ...]],
    good_paths: list[Path],
    tiny: Config,
    tmp_path: Path,
) -> None:
    config = tiny.replace(
        training={"schedule": schedule, "learning_rate": 1e-3},
        network={"bottleneck_noise": 0.1},
    )
    expected = fit(good_paths, config, tmp_path / "whole")
    for stops in all_stops:
        run = tmp_path / f"stopped at {stops}"
        for stop in stops:
            part = fit(good_paths, config, run, max_steps=stop, resume=True)
            assert part.steps == stop
            assert not part.is_finished
        assert_same(fit(good_paths, config, run, resume=True), expected)
        assert (run / LOSS_LOG).read_text() == (tmp_path / "whole" / LOSS_LOG).read_text()


def test_resuming_without_a_checkpoint_starts_anew(
    good_paths: list[Path], tiny: Config, tmp_path: Path
) -> None:
    assert fit(good_paths, tiny, tmp_path / "new", max_steps=2, resume=True).steps == 2


def test_not_resuming_starts_anew(good_paths: list[Path], tiny: Config, tmp_path: Path) -> None:
    fit(good_paths, tiny, tmp_path, max_steps=4)
    assert fit(good_paths, tiny, tmp_path, max_steps=2).steps == 2
    assert len(rows_of(tmp_path)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 7},
        {"training": {"learning_rate": 1e-3}},
        {"training": {"steps": 7}},
        {"network": {"head_channels": 6}},
        {"loss": {"clean_targets": True}},
    ],
)
def test_resuming_with_other_settings_is_refused(
    change: dict[str, Any], good_paths: list[Path], tiny: Config, stopped_run: Path
) -> None:
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: was made with other settings"):
        fit(good_paths, tiny.replace(**change), stopped_run, resume=True)


@pytest.fixture
def stopped_run(
    good_paths: list[Path], tiny: Config, tmp_path: Path, _stopped: dict[str, Path]
) -> Path:
    """A copy of a run that was stopped at step 2."""
    run = tmp_path / "stopped"
    if "run" not in _stopped:
        _stopped["run"] = run
        fit(good_paths, tiny, run, max_steps=2)
        kept = tmp_path.parent / "kept stopped run"
        shutil.copytree(run, kept)
        _stopped["run"] = kept
    else:
        shutil.copytree(_stopped["run"], run)
    return run


@pytest.fixture(scope="module")
def _stopped() -> dict[str, Path]:
    return {}


def test_settings_of_detection_may_change(
    good_paths: list[Path], tiny: Config, stopped_run: Path
) -> None:
    config = tiny.replace(detection={"false_alarm_rate": 0.2})
    fitted = fit(good_paths, config, stopped_run, resume=True)
    assert fitted.is_finished
    assert fitted.detector.calibration.false_alarm_rate == 0.2


def test_resuming_with_other_images_is_refused(
    good_paths: list[Path], tiny: Config, stopped_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="was made from other images"):
        fit(good_paths[1:], tiny, stopped_run, resume=True)
    folder = tmp_path / "images"
    folder.mkdir()
    copies = [Path(shutil.copy(path, folder)) for path in good_paths]
    assert fit(copies, tiny, stopped_run, resume=True, max_steps=2).steps == 2
    copies[3].write_bytes(copies[3].read_bytes() + b"\0")
    with pytest.raises(TrainingError, match="was made from other images"):
        fit(copies, tiny, stopped_run, resume=True)


class Exploit:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_damaged_checkpoints_are_refused(
    good_paths: list[Path], tiny: Config, stopped_run: Path, tmp_path: Path
) -> None:
    path = stopped_run / CHECKPOINT
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    cut = sorted(int(n) for n in rng.integers(1, len(whole), 4))
    torch.save({"step": 3}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    contents = [whole[:n] for n in (0, 1, 100, *cut, len(whole) - 1)]
    contents += [b"not a checkpoint", (tmp_path / "other.pt").read_bytes()]
    contents += [(tmp_path / "list.pt").read_bytes(), pickle.dumps(Exploit(tmp_path / "pwned"))]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(TrainingError, match=r"checkpoint\.pt: damaged") as caught:
            fit(good_paths, tiny, stopped_run, resume=True)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("key", ["network", "optimizer", "config"])
def test_checkpoints_with_parts_missing_are_refused(
    key: str, good_paths: list[Path], tiny: Config, stopped_run: Path
) -> None:
    path = stopped_run / CHECKPOINT
    values = torch.load(path, weights_only=True)
    values[key].popitem()
    if key == "config":
        values[key]["surprise"] = 1
    torch.save(values, path)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt"):
        fit(good_paths, tiny, stopped_run, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(
    good_paths: list[Path], tiny: Config, tmp_path: Path
) -> None:
    config = tiny.replace(training={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"the (\w+) loss is (nan|inf) at step 1:") as caught:
        fit(good_paths, config, tmp_path)
    assert str(caught.value).split()[1] in ("classification", "features", "image")
    # a run that cannot go on must not leave a checkpoint that cannot either
    saved = load_checkpoint(tmp_path)
    assert saved is not None
    assert all(tensor.isfinite().all() for tensor in saved.network.values())


@pytest.mark.parametrize("term", ["classification", "features", "image"])
def test_the_error_names_the_term(
    term: str, good_paths: list[Path], tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.replace(network={"image_decoder": (4,)})
    real = loop.loss_terms

    def broken(*arguments: Any) -> Any:  # noqa: ANN401
        terms = real(*arguments)
        return terms | {term: terms[term] * math.nan}

    monkeypatch.setattr(loop, "loss_terms", broken)
    with pytest.raises(TrainingError, match=f"the {term} loss is nan at step 0:"):
        fit(good_paths, config)


def test_a_network_that_diverged_in_its_last_step_is_no_detector(
    good_paths: list[Path], tiny: Config
) -> None:
    config = tiny.replace(training={"learning_rate": 1e30, "steps": 1})
    with pytest.raises(TrainingError, match="finite"):
        fit(good_paths, config)


def test_a_time_limit_stops_early(good_paths: list[Path], tiny: Config, tmp_path: Path) -> None:
    fitted = fit(good_paths, tiny, tmp_path, max_minutes=1e-9)
    assert not fitted.is_finished
    assert fitted.steps == 1
    assert fit(good_paths, tiny, tmp_path, resume=True).is_finished


@pytest.mark.parametrize(
    "change",
    [
        {"network": {"classifier": False}},
        {"network": {"image_decoder": (8, 4)}, "detection": {"image_weight": 0.5}},
        {"network": {"image_decoder": (4,), "classifier": False}},
        {"loss": {"clean_targets": True}},
        {"loss": {"clean_targets": True}, "network": {"classifier": False}},
        {"loss": {"feature_terms": ("cosine",), "fixed_weights": (0.0, 1.0, 0.0)}},
        {"training": {"precision": "bfloat16"}},
        {"network": {"reduced_channels": None}},
        {
            "network": {
                "trunk": "vgg19",
                "published_taps": True,
                "head_padding": False,
                "head_kernel": 5,
            }
        },
        {"training": {"batch_size": 1}},
        {"image_size": 48},
    ],
    ids=str,
)
def test_every_kind_of_network_trains(
    change: dict[str, Any], good_paths: list[Path], tiny: Config, tmp_path: Path
) -> None:
    config = tiny.replace(**change)
    fitted = fit(good_paths, config, tmp_path, max_steps=2)
    network = fitted.detector.network
    assert all(t.isfinite().all() for t in network.state_dict().values())
    assert all(t.dtype in (torch.float32, torch.int64) for t in network.state_dict().values())
    has_image = config.network.image_decoder is not None
    # Where no map looks at the image, nothing is kept of it.
    looks = config.detection.image_weight > 0
    assert (fitted.detector.head.usual.image is not None) == looks
    columns = set(rows_of(tmp_path)[0])
    assert ("classification" in columns) == config.network.classifier
    assert ("image" in columns) == has_image
    assert fitted.detector.predict(good_paths[0]).score > 0


@pytest.mark.parametrize("has_it", [False, True])
def test_bfloat16_only_where_the_device_has_it(
    has_it: bool, good_paths: list[Path], tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = fit(good_paths, tiny, max_steps=2)
    monkeypatch.setattr(loop, "has_bfloat16", lambda device: has_it)
    mixed = fit(good_paths, tiny.replace(training={"precision": "bfloat16"}), max_steps=2)
    expected = exact.detector.network.state_dict()
    differs = [
        name
        for name, tensor in mixed.detector.network.state_dict().items()
        if not torch.equal(tensor, expected[name])
    ]
    assert bool(differs) == has_it


def test_unreadable_images_are_skipped_or_refused(
    good_paths: list[Path], tiny: Config, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    fitted = fit([*good_paths, broken], tiny, max_steps=1)
    assert len(fitted.skipped) == fitted.detector.provenance.skipped == 1
    with pytest.raises(ImageError, match=r"broken\.png"):
        fit([*good_paths, broken], tiny, max_steps=1, strict=True)
    with pytest.raises(DataError, match="too few"):
        fit(good_paths[:5], tiny)


def run_in_child(paths: list[Path], config: Config, run: Path, checkpoint_seconds: float) -> None:
    """What a child process does: the exit code tells an interrupt from an end."""
    loop.CHECKPOINT_SECONDS = checkpoint_seconds
    try:
        fit(paths, config, run)
    except KeyboardInterrupt:
        sys.exit(130)


def stop_child(child: BaseProcess, run: Path, number: int, *, rows: int, delay: float) -> None:
    """Signal a child some time after its log has so many rows."""
    child.start()
    log = run / LOSS_LOG
    deadline = time.monotonic() + DEADLINE
    while not log.exists() or log.read_bytes().count(b"\n") < rows + 1:
        assert time.monotonic() < deadline, "the child takes no steps"
        assert child.is_alive(), f"the child ended on its own, with {child.exitcode}"
        time.sleep(0.001)
    time.sleep(delay)
    assert child.pid is not None
    os.kill(child.pid, number)
    child.join(DEADLINE)


@pytest.fixture(scope="module")
def long(tiny: Config) -> Config:
    return tiny.replace(training={"steps": LONG, "learning_rate": 1e-3})


@pytest.fixture(scope="module")
def whole(
    good_paths: list[Path], long: Config, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Fitted, str]:
    """An uninterrupted run and its log."""
    run = tmp_path_factory.mktemp("whole")
    return fit(good_paths, long, run), (run / LOSS_LOG).read_text()


@pytest.mark.parametrize(
    "moment", [*range(3), *(pytest.param(m, marks=pytest.mark.slow) for m in range(3, 10))]
)
def test_killed_at_any_moment_and_resumed(
    moment: int,
    good_paths: list[Path],
    long: Config,
    whole: tuple[Fitted, str],
    processes: ForkServerContext,
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(moment)
    arguments = good_paths, long, tmp_path, 0.0
    child = processes.Process(target=run_in_child, args=arguments)
    rows, delay = int(rng.integers(0, LONG // 2)), rng.uniform(0, 0.05)
    stop_child(child, tmp_path, signal.SIGKILL, rows=rows, delay=delay)
    assert child.exitcode == -signal.SIGKILL
    saved = load_checkpoint(tmp_path)
    assert saved is not None
    assert max(0, rows - 1) <= saved.step < LONG
    assert_same(fit(good_paths, long, tmp_path, resume=True), whole[0])
    assert (tmp_path / LOSS_LOG).read_text() == whole[1]


def test_interrupt_saves_a_checkpoint(
    good_paths: list[Path],
    long: Config,
    whole: tuple[Fitted, str],
    processes: ForkServerContext,
    tmp_path: Path,
) -> None:
    arguments = good_paths, long, tmp_path, 1e9
    child = processes.Process(target=run_in_child, args=arguments)
    stop_child(child, tmp_path, signal.SIGINT, rows=3, delay=0.0)
    assert child.exitcode == 130
    saved = load_checkpoint(tmp_path)
    assert saved is not None
    assert 3 <= saved.step == len(rows_of(tmp_path)) < LONG
    assert_same(fit(good_paths, long, tmp_path, resume=True), whole[0])
    assert (tmp_path / LOSS_LOG).read_text() == whole[1]


def test_half_a_row_left_in_the_log_is_dropped(
    good_paths: list[Path], tiny: Config, stopped_run: Path
) -> None:
    log = stopped_run / LOSS_LOG
    whole = log.read_text()
    log.write_text(whole + "3,0.1,0.2,0.3,0.4,1e-4\n4,0.5")
    fit(good_paths, tiny, stopped_run, resume=True, max_steps=3)
    rows = log.read_text().splitlines()
    assert log.read_text().startswith(whole)
    assert [row.split(",")[0] for row in rows] == ["step", "1", "2", "3"]
    assert rows[3] != "3,0.1,0.2,0.3,0.4,1e-4"


def test_a_run_leaves_no_temporary_files(
    good_paths: list[Path], tiny: Config, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    fit(good_paths, tiny, tmp_path, max_steps=2)
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, LOSS_LOG}
    assert signal.getsignal(signal.SIGINT) is handler
