"""Thresholds and models that people change: on record first, and nothing is lost."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from haloae.detection.calibration_file import calibration_path
from haloae.errors import HaloaeError, OutputError
from haloae.files import sha256_of, write_atomic
from haloae.server.models import ABOUT, MOST_FORMER, Models, Person
from haloae.server.problems import Problems, RefusedError
from haloae.server.recipes import Recipes
from haloae.server.records import Records
from haloae.server.settings import KeepSettings

ADA = Person("Ada", "engineer")


class Plant(NamedTuple):
    models: Models
    recipes: Recipes
    records: Records
    model: Path

    @property
    def threshold(self) -> float:
        return self.recipes.get("cap").detector.calibration.threshold.value

    def leave_new(self, path: Path) -> str:
        """As a retraining does."""
        folder = self.models.new_folder("cap")
        write_atomic(folder / self.model.name, path.read_bytes())
        about = {"sha256": sha256_of(path), "compared_with": sha256_of(self.model)}
        write_atomic(folder / ABOUT, json.dumps(about).encode())
        return about["sha256"]


@pytest.fixture
def plant(two_models: list[Path], tmp_path: Path) -> Iterator[Plant]:
    model = tmp_path / "recipes" / "cap.safetensors"
    model.parent.mkdir()
    shutil.copy(two_models[0], model)
    problems = Problems()
    recipes = Recipes(model.parent, threads=1, memory=2**30, look=1, problems=problems)
    records = Records(tmp_path / "data", KeepSettings(), problems)
    records.open()
    yield Plant(Models(recipes, records), recipes, records, model)
    records.close(10)


def test_a_threshold_is_set_beside_the_model_and_taken_back(plant: Plant) -> None:
    fitted, data = plant.threshold, plant.model.read_bytes()
    with pytest.raises(RefusedError, match="those the model was fitted with"):
        plant.models.unset_threshold("cap", ADA)
    plant.models.set_threshold("cap", 2 * fitted, ADA)
    assert plant.threshold == 2 * fitted
    plant.models.set_threshold("cap", 3 * fitted, ADA)
    kept = [*plant.records.folder.glob("models/cap/thresholds/*.json")]
    assert [json.loads(path.read_text())["threshold"] for path in kept] == [2 * fitted]
    plant.models.unset_threshold("cap", ADA)
    assert plant.threshold == fitted
    assert plant.model.read_bytes() == data
    changes = plant.records.store.history.changes(9)
    assert [change.action for change in changes] == ["threshold"] * 3
    assert changes[1].before["threshold"] == 2 * fitted
    assert changes[1].after["threshold"] == 3 * fitted
    for wrong in (-1.0, float("nan")):
        with pytest.raises(HaloaeError):
            plant.models.set_threshold("cap", wrong, ADA)
    assert plant.threshold == fitted


def test_a_new_model_takes_the_place_of_the_old_and_gives_it_back(
    plant: Plant, two_models: list[Path]
) -> None:
    old = sha256_of(plant.model)
    plant.models.set_threshold("cap", 5.0, ADA)
    with pytest.raises(RefusedError, match="retrain first"):
        plant.models.promote("cap", ADA)
    new = plant.leave_new(two_models[1])
    plant.models.promote("cap", ADA)
    assert plant.recipes.get("cap").sha256 == new == sha256_of(plant.model)
    assert plant.threshold != 5.0
    assert not calibration_path(plant.model).exists()
    assert plant.models.new("cap") is None
    (former,) = plant.models.former("cap")
    assert (former.sha256, former.who) == (old, "Ada")
    plant.models.roll_back("cap", old, ADA)
    assert plant.recipes.get("cap").sha256 == old
    assert plant.threshold == 5.0  # those that were set for it come back with it
    assert [former.sha256 for former in plant.models.former("cap")] == [new]
    for wrong in (old, "0" * 64, "../new"):
        with pytest.raises(RefusedError, match="no such former model"):
            plant.models.roll_back("cap", wrong, ADA)
    changes = plant.records.store.history.changes(2)
    assert [(c.action, c.before, c.after) for c in changes] == [
        ("roll back", new, old),
        ("promote", old, new),
    ]


def test_what_was_compared_with_another_model_is_not_promoted(
    plant: Plant, two_models: list[Path]
) -> None:
    plant.leave_new(two_models[1])
    data = bytearray(plant.model.read_bytes())
    plant.model.write_bytes(two_models[1].read_bytes())
    with pytest.raises(RefusedError, match="not the one that was compared"):
        plant.models.promote("cap", ADA)
    plant.model.write_bytes(data)
    plant.models.discard("cap", ADA)
    assert plant.models.new("cap") is None
    assert sha256_of(plant.model) == sha256_of(two_models[0])


def test_what_cannot_be_recorded_is_not_done(
    plant: Plant, two_models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plant.threshold
    plant.leave_new(two_models[1])

    def full(*_: object, **__: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(plant.records.store, "audit", full)
    for change in (
        lambda: plant.models.set_threshold("cap", 9.0, ADA),
        lambda: plant.models.promote("cap", ADA),
        lambda: plant.models.discard("cap", ADA),
    ):
        with pytest.raises(OutputError, match="full"):
            change()
    assert plant.threshold == before
    assert sha256_of(plant.model) == sha256_of(two_models[0])
    assert plant.models.new("cap") is not None
    assert plant.models.former("cap") == []


def test_the_oldest_former_models_go(plant: Plant, two_models: list[Path]) -> None:
    made = []
    for number in range(MOST_FORMER + 2):
        folder = plant.records.folder / "models" / "cap" / "former" / f"{number:064x}"
        about = {"sha256": folder.name, "until": f"2026-01-{number + 1:02}", "who": "Bo"}
        write_atomic(folder / ABOUT, json.dumps(about).encode())
        made.append(folder.name)
    plant.leave_new(two_models[1])
    plant.models.promote("cap", ADA)
    found = [former.sha256 for former in plant.models.former("cap")]
    assert found == [sha256_of(two_models[0]), *made[:-MOST_FORMER:-1]]
