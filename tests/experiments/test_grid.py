"""The experiment loop: what is kept, what goes on, what is made anew, and what a failure does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import PLAIN
from haloae.data.folders import find_categories
from haloae.errors import DataError, TrainingError
from haloae.experiments.grid import (
    Point,
    Run,
    cell,
    grid_of,
    run_grid,
    run_point,
    spreads,
)


@pytest.fixture
def point(good_folder: Path) -> Point:
    return Point("fast, no_ssl", good_folder, PLAIN.replace(seed=3))


def measure(run: Run) -> dict[str, Any]:
    return {"metrics": {"images": len(run.category.train)}}


def refuse(run: Run) -> dict[str, Any]:
    raise AssertionError(f"{run.folder} is finished")


def failing(error: BaseException) -> Callable[[Run], dict[str, Any]]:
    def fail(run: Run) -> dict[str, Any]:
        raise error

    return fail


def test_a_finished_run_is_kept(point: Point, tmp_path: Path) -> None:
    first = run_point(tmp_path, point, measure)
    assert first["folder"] == f"fast-no_ssl/{point.data.name}/seed-3"
    assert first["metrics"] == {"images": 12}
    saved = json.loads((tmp_path / first["folder"] / "run.json").read_text())
    assert saved["config"] == point.config.model_dump(mode="json")
    assert first.items() <= saved.items()
    assert run_point(tmp_path, point, refuse) == first


def test_another_configuration_is_another_run(point: Point, tmp_path: Path) -> None:
    run_point(tmp_path, point, measure)
    other = Point(point.variant, point.data, point.config.replace(image_size=64))
    resumed = []
    run_point(tmp_path, other, lambda run: resumed.append(run.resume) or measure(run))
    assert resumed == [False]


def test_a_run_that_was_stopped_goes_on(point: Point, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_point(tmp_path, point, failing(KeyboardInterrupt()))
    resumed = []
    run_point(tmp_path, point, lambda run: resumed.append(run.resume) or measure(run))
    assert resumed == [True]


def test_a_file_that_was_cut_off_is_a_run_made_anew(point: Point, tmp_path: Path) -> None:
    folder = tmp_path / run_point(tmp_path, point, measure)["folder"]
    (folder / "run.json").write_text('{"variant": ')
    resumed = []
    run_point(tmp_path, point, lambda run: resumed.append(run.resume) or measure(run))
    assert resumed == [False]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TrainingError("the loss is nan."), "the loss is nan."),
        (ValueError("a bug"), "ValueError: a bug"),
        (MemoryError("too large"), "MemoryError: too large"),
        (KeyError("score"), "KeyError: 'score'"),
    ],
)
def test_whatever_goes_wrong_is_recorded_and_the_rest_goes_on(
    point: Point, tmp_path: Path, error: Exception, message: str
) -> None:
    later = Point("later", point.data, point.config)

    def sometimes(run: Run) -> dict[str, Any]:
        if "later" in str(run.folder):
            return measure(run)
        raise error

    failed, done = run_grid(tmp_path, [point, later], sometimes)
    assert failed["error"] == message
    assert "metrics" not in failed
    assert done["metrics"] == {"images": 12}


def test_a_category_that_is_gone_is_a_failed_run(point: Point, tmp_path: Path) -> None:
    gone = Point("fast", tmp_path / "gone", point.config)
    assert "gone" in run_point(tmp_path / "out", gone, measure)["error"]


def test_the_grid_is_every_configuration_on_every_category_with_every_seed(tmp_path: Path) -> None:
    for name in ("cloth", "felt"):
        (tmp_path / name / "train/good").mkdir(parents=True)
    configs = {"a": PLAIN, "b": PLAIN.replace(image_size=64)}
    points = grid_of(tmp_path, configs, seeds=(0, 7))
    assert [(p.variant, p.data.name, p.config.seed) for p in points] == [
        (variant, name, seed) for variant in "ab" for name in ("cloth", "felt") for seed in (0, 7)
    ]
    assert grid_of(tmp_path, configs, categories=["felt"])[1].config.image_size == 64


def test_categories_of_a_root(tmp_path: Path) -> None:
    for name in ("felt", "cloth", "scrap"):
        (tmp_path / "root" / name / "train/good").mkdir(parents=True)
    root = tmp_path / "root"
    (root / "notes").mkdir()
    assert [path.name for path in find_categories(root)] == ["cloth", "felt", "scrap"]
    assert [path.name for path in find_categories(root, ["felt"])] == ["felt"]
    with pytest.raises(DataError, match="holds no category 'silk': choose of cloth, felt, scrap"):
        find_categories(root, ["silk"])
    with pytest.raises(DataError, match="holds no category: give a folder of folders"):
        find_categories(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        find_categories(tmp_path / "missing")


def test_the_mean_is_over_categories_first_and_only_of_whole_seeds() -> None:
    values = [("a", 0, 0.5), ("b", 0, 0.7), ("a", 1, 0.9), ("b", 1, None)]
    found = spreads(values, ["a", "b"])
    assert found["a"] == pytest.approx({"mean": 0.7, "std": 0.2828, "n": 2}, abs=1e-4)
    assert found["mean"] == pytest.approx({"mean": 0.6, "std": 0.0, "n": 1})
    assert [cell(found[name]) for name in ("a", "b")] == ["0.700 ± 0.283", "0.700"]
    assert cell(spreads([], ["a"])["a"]) == "–"
