"""Models over time: thresholds that are set, new models that wait, former ones to go back to.

Every change is put on record first; what cannot be recorded is not done. A model that is replaced
is kept, with the thresholds that were set for it.
"""

import json
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

from haloae.claims import write_together
from haloae.data.images import shown_path
from haloae.detection.calibration import Calibration
from haloae.detection.calibration_file import calibration_path, write_calibration
from haloae.errors import ModelFileError, OutputError
from haloae.files import cannot_write, read_regular, sha256_of, write_atomic
from haloae.server.problems import RefusedError
from haloae.server.recipes import Recipes, files_of
from haloae.server.records import Records
from haloae.server.safety import Role

MOST_FORMER = 10
"""Former models of a recipe that are kept; the oldest go."""
ABOUT = "about.json"
"""Written last: what has none is not whole."""
MOST_BYTES = 2**31
"""Of a model file."""


class Person(NamedTuple):
    """Who changes something."""

    who: str
    role: Role


class Former(NamedTuple):
    """A model that was in use."""

    sha256: str
    until: str
    """When it was replaced, ISO 8601."""
    who: str
    """Replaced it."""


class Models:
    """Changes thresholds and models, one change at a time.

    Args:
        recipes: those that are in use.
        records: beside which those are kept that are not; every change is put on record there.
    """

    def __init__(self, recipes: Recipes, records: Records) -> None:
        self._recipes, self._records = recipes, records
        self._lock = RLock()

    def _folder(self, recipe: str) -> Path:
        return self._records.folder / "models" / recipe

    # Thresholds

    def set_threshold(self, recipe: str, threshold: float, person: Person) -> None:
        """Set a recipe's threshold of scores; what marks a defect stays.

        Raises:
            HaloaeError: no such recipe, no such threshold, or it cannot be recorded or written.
        """
        with self._lock:
            path, calibration = self._in_use(recipe)
            before = _said(calibration)
            after = {"threshold": threshold, "pixel_threshold": calibration.pixel_threshold.value}
            self._audit("threshold", recipe, before, after, person)
            self._keep_calibration(recipe, path)
            write_calibration(
                path,
                threshold=threshold,
                pixel_threshold=calibration.pixel_threshold.value,
                who=person.who,
                time=datetime.now(UTC),
            )
            self._recipes.refresh()

    def unset_threshold(self, recipe: str, person: Person) -> None:
        """Go back to the thresholds that a recipe's model was fitted with.

        Raises:
            HaloaeError: no such recipe, none were set, or it cannot be recorded or done.
        """
        with self._lock:
            path, calibration = self._in_use(recipe)
            if calibration.set_by is None:
                raise RefusedError(409, "the thresholds are those the model was fitted with.")
            self._audit("threshold", recipe, _said(calibration), "as fitted", person)
            self._keep_calibration(recipe, path)
            _remove(calibration_path(path))
            self._recipes.refresh()

    def _keep_calibration(self, recipe: str, path: Path) -> None:
        """Thresholds that were set stay on the disk when others take their place."""
        old = calibration_path(path)
        if old.is_file():
            name = f"{datetime.now(UTC):%Y-%m-%dT%H%M%S.%f}.json"
            write_atomic(self._folder(recipe) / "thresholds" / name, _bytes(old))

    # Models

    def new_folder(self, recipe: str) -> Path:
        """Where a recipe's new model waits; empty or missing: there is none."""
        return self._folder(recipe) / "new"

    def new(self, recipe: str) -> dict[str, Any] | None:
        """What is said of a recipe's new model, as `haloae.server.retrain` left it; None: none."""
        return _about(self.new_folder(recipe))

    def discard(self, recipe: str, person: Person) -> None:
        """Remove a recipe's new model.

        Raises:
            HaloaeError: there is none, or it cannot be recorded.
        """
        with self._lock:
            self._audit("discard", recipe, self._known_new(recipe)["sha256"], None, person)
            shutil.rmtree(self.new_folder(recipe), ignore_errors=True)

    def promote(self, recipe: str, person: Person) -> None:
        """Have a recipe's new model take the place of the one in use, which is kept.

        Raises:
            HaloaeError: there is none, it was compared with another than is in use, or it cannot
                be recorded or written.
        """
        with self._lock:
            about = self._known_new(recipe)
            path = self._recipes.path_of(recipe)
            if about["compared_with"] != _sha256(path):
                raise RefusedError(
                    409, "the model in use is not the one that was compared: retrain anew."
                )
            self._replace(recipe, self.new_folder(recipe), about["sha256"], person, "promote")
            shutil.rmtree(self.new_folder(recipe), ignore_errors=True)

    def former(self, recipe: str) -> list[Former]:
        """A recipe's former models, the newest first."""
        folder = self._folder(recipe) / "former"
        found = []
        with suppress(OSError):
            abouts = [_about(each) for each in folder.iterdir()]
            found = [Former(**about) for about in abouts if about is not None]
        return sorted(found, key=lambda former: former.until, reverse=True)

    def roll_back(self, recipe: str, sha256: str, person: Person) -> None:
        """Have a former model take the place of the one in use, which is kept in turn.

        Args:
            recipe: its name.
            sha256: of the former model.
            person: who wants it.

        Raises:
            HaloaeError: there is no such model, or it cannot be recorded or written.
        """
        with self._lock:
            if sha256 not in [former.sha256 for former in self.former(recipe)]:
                raise RefusedError(404, "there is no such former model: choose one that is listed.")
            folder = self._folder(recipe) / "former" / sha256
            self._replace(recipe, folder, sha256, person, "roll back")
            shutil.rmtree(folder, ignore_errors=True)

    def _replace(self, recipe: str, folder: Path, sha256: str, person: Person, action: str) -> None:
        path = self._recipes.path_of(recipe)
        new = {path.with_name(each.name): _bytes(each) for each in _parts(folder / path.name)}
        if path not in new:
            raise OutputError(f"{shown_path(folder)}: holds no {shown_path(path.name)}.")
        before = _sha256(path)
        self._audit(action, recipe, before, sha256, person)
        self._keep_model(recipe, path, before, person)
        write_together(new)
        if calibration_path(path) not in new:
            # Of the model that was: until it is gone, it keeps the new one from being loaded.
            _remove(calibration_path(path))
        self._recipes.refresh()
        if self._recipes.load(recipe).sha256 != sha256:
            raise ModelFileError(
                f"{shown_path(path.name)}: stands in its place and cannot be loaded, and the model "
                f"before it inspects as long as the service runs: roll back, or put another there."
            )

    def _keep_model(self, recipe: str, path: Path, sha256: str, person: Person) -> None:
        folder = self._folder(recipe) / "former" / sha256
        shutil.rmtree(folder, ignore_errors=True)
        for part in _parts(path):
            write_atomic(folder / part.name, _bytes(part))
        former = Former(sha256, datetime.now(UTC).isoformat(), person.who)
        write_atomic(folder / ABOUT, json.dumps(former._asdict()).encode())
        for old in self.former(recipe)[MOST_FORMER:]:
            shutil.rmtree(self._folder(recipe) / "former" / old.sha256, ignore_errors=True)

    def _known_new(self, recipe: str) -> dict[str, Any]:
        about = self.new(recipe)
        if about is None:
            raise RefusedError(404, f"recipe {recipe!r} has no new model: retrain first.")
        return about

    def _in_use(self, recipe: str) -> tuple[Path, Calibration]:
        path = self._recipes.path_of(recipe)
        return path, self._recipes.get(recipe).detector.calibration

    def _audit(
        self, action: str, recipe: str, before: object, after: object, person: Person
    ) -> None:
        who, role = person
        self._records.store.audit(action, recipe, before=before, after=after, who=who, role=role)


def _said(calibration: Calibration) -> dict[str, Any]:
    return {
        "threshold": calibration.threshold.value,
        "pixel_threshold": calibration.pixel_threshold.value,
        "set_by": calibration.set_by,
    }


def _parts(path: Path) -> list[Path]:
    """A model's files that are there, with the thresholds that were set for it."""
    return [file for file in files_of(path) if file.is_file()]


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path, most=MOST_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ModelFileError:
    return ModelFileError(f"{shown_path(path)}: cannot be read ({error.strerror or error}).")


def _about(folder: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        about: dict[str, Any] = json.loads(read_regular(folder / ABOUT, most=2**20))
        return about
    return None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
