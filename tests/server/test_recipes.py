"""Models come and go with their files, whole or not at all."""

import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from faults.models import small_export, with_text
from haloae.detection.calibration_file import write_calibration
from haloae.errors import DataError
from haloae.server.problems import Problems, RefusedError
from haloae.server.recipes import Recipes
from server.services import CONFIG


@pytest.fixture
def problems() -> Problems:
    return Problems()


@pytest.fixture
def folder(small_model: Path, tmp_path: Path) -> Path:
    shutil.copy(small_model, tmp_path / "a.onnx")
    shutil.copy(small_model, tmp_path / "b.onnx")
    return tmp_path


def recipes_of(models: Path, problems: Problems, memory: int = 2**40) -> Recipes:
    return Recipes(models, threads=1, memory=memory, look=0.02, problems=problems)


def replace(path: Path, new: Path) -> None:
    shutil.copy(new, path.with_name("incoming"))
    path.with_name("incoming").replace(path)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, as it states another threshold."""
    path = small_export(tmp_path_factory.mktemp("other") / "other.onnx", CONFIG)
    return with_text(path, '"threshold":0.5', '"threshold":0.25')


def test_recipes_are_listed_by_their_stems_and_loaded_when_asked_for(
    folder: Path, problems: Problems
) -> None:
    (folder / "notes.txt").write_text("no model")
    (folder / ".haloae-tmp-1.onnx").write_text("not whole yet")
    recipes = recipes_of(folder, problems)
    assert [(one.name, one.is_loaded) for one in recipes.listed()] == [("a", False), ("b", False)]
    assert recipes.get("a").detector.config == CONFIG
    assert [one.is_loaded for one in recipes.listed()] == [True, False]


def test_a_file_that_is_replaced_is_loaded_anew(
    folder: Path, other: Path, problems: Problems
) -> None:
    recipes = recipes_of(folder, problems)
    old = recipes.get("a")
    replace(folder / "a.onnx", other)
    recipes.refresh()
    assert recipes.get("a").sha256 != old.sha256
    assert recipes.get("a").detector.calibration.threshold.value == 0.25
    assert old.detector.calibration.threshold.value == 0.5


def test_a_damaged_file_leaves_the_old_model_in_use_and_is_reported(
    folder: Path, small_model: Path, other: Path, problems: Problems
) -> None:
    recipes = recipes_of(folder, problems)
    old = recipes.get("a")
    data = bytearray(small_model.read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "a.onnx").write_bytes(data)
    recipes.refresh()
    assert recipes.get("a") is old
    assert "its seal does not match" in (recipes.find("a").problem or "")
    [problem] = problems.now()
    assert problem.part == "recipe a"
    recipes.refresh()
    assert problems.now()[0].times == 1, "it is not tried again until it changes"
    replace(folder / "a.onnx", other)
    recipes.refresh()
    assert (recipes.get("a").detector.calibration.threshold.value, problems.now()) == (0.25, [])


def test_of_a_pair_half_replaced_the_old_stays_until_its_seal_matches(
    tmp_path: Path, problems: Problems
) -> None:
    (tmp_path / "new").mkdir()
    used = small_export(tmp_path / "m.xml", CONFIG)
    new = small_export(tmp_path / "new" / "m.xml", CONFIG, threshold=0.25)
    bytes_of_bin = new.with_suffix(".bin").read_bytes() + b"\0"
    recipes = recipes_of(used.parent, problems)
    old = recipes.get("m")
    used.with_suffix(".bin").write_bytes(bytes_of_bin)
    recipes.refresh()
    assert recipes.get("m") is old
    used.with_suffix(".bin").write_bytes(new.with_suffix(".bin").read_bytes())
    replace(used, new)
    recipes.refresh()
    assert recipes.get("m").detector.calibration.threshold.value == 0.25


def test_thresholds_that_someone_sets_are_taken_up(folder: Path, problems: Problems) -> None:
    recipes = recipes_of(folder, problems)
    old = recipes.get("a")
    write_calibration(
        folder / "a.onnx", threshold=0.125, pixel_threshold=1, who="QA", time=datetime.now(UTC)
    )
    recipes.refresh()
    assert recipes.get("a").detector.calibration.threshold.value == 0.125
    assert recipes.get("a").sha256 == old.sha256


def test_above_the_budget_the_least_recently_used_is_unloaded(
    folder: Path, small_model: Path, problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a process takes for the first of three differs from what it takes for the others.
    monkeypatch.setattr("haloae.server.recipes.resident_bytes", lambda: 0)
    shutil.copy(small_model, folder / "c.onnx")
    alone = recipes_of(folder, problems).get("a").bytes
    recipes = recipes_of(folder, problems, memory=alone + small_model.stat().st_size // 2)
    for name in ("a", "b", "c", "b", "a"):
        recipes.get(name)
        assert recipes.find(name).is_loaded
    assert [one.is_loaded for one in recipes.listed()] != [True, True, True]
    assert not recipes.find("c").is_loaded


def test_one_that_is_unloaded_on_purpose_stays_so(folder: Path, problems: Problems) -> None:
    recipes = recipes_of(folder, problems)
    recipes.get("a")
    recipes.unload("a")
    recipes.refresh()
    with pytest.raises(RefusedError, match="recipe 'a' was unloaded: load it first"):
        recipes.get("a")
    export = folder / "a.xml"  # which counts before an .onnx
    export.touch()
    recipes.refresh()
    with pytest.raises(RefusedError, match="recipe 'a' was unloaded: load it first"):
        recipes.get("a")
    export.unlink()
    recipes.refresh()
    recipes.load("a")
    assert recipes.find("a").is_loaded


@pytest.fixture
def looking(folder: Path, problems: Problems) -> Iterator[Recipes]:
    recipes = recipes_of(folder, problems)
    recipes.start()
    yield recipes
    recipes.stop()


def test_whoever_keeps_looking_sees_files_come_go_and_change(
    looking: Recipes, folder: Path, other: Path
) -> None:
    looking.get("a")
    replace(folder / "a.onnx", other)
    shutil.copy(other, folder / "new.onnx")
    (folder / "b.onnx").unlink()

    def is_seen() -> bool:
        loaded = looking.get("a").detector.calibration.threshold.value
        return looking.names() == ["a", "new"] and loaded == 0.25

    wait = threading.Event()
    for _ in range(200):
        if is_seen():
            break
        wait.wait(0.02)
    assert is_seen()


def test_a_folder_that_is_gone_takes_nothing_down(
    looking: Recipes, folder: Path, problems: Problems
) -> None:
    looking.get("a")
    folder.rename(folder.with_name("elsewhere"))
    wait = threading.Event()
    for _ in range(200):
        if any(problem.part == "recipes" for problem in problems.now()):
            break
        wait.wait(0.02)
    assert "cannot be read" in problems.now()[0].message
    assert looking.get("a").detector.config == CONFIG
    with pytest.raises(RefusedError, match="there is no recipe"):
        looking.get("c")


def test_what_is_no_model_is_said_at_once(tmp_path: Path, problems: Problems) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(DataError, match="no such model file or folder"):
        recipes_of(tmp_path / "none", problems)
    with pytest.raises(DataError, match="not a model file"):
        recipes_of(tmp_path / "notes.txt", problems)
