"""Retraining, as the service starts it: on which images, and how it goes."""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock, Thread

from haloae.data.folders import GOOD, find_images
from haloae.data.limits import current_limits
from haloae.errors import HaloaeError, MissingExtraError
from haloae.files import write_atomic
from haloae.server.images import Kept
from haloae.server.inspection import Inspection
from haloae.server.models import Models, Person
from haloae.server.problems import RefusedError
from haloae.server.recipes import Recipes
from haloae.server.records import Records
from haloae.server.rows import Stored

log = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "scipy")
"""Of the extra `train`."""
JOB, LOG = "job.json", "retrain.log"
PATIENCE = 5.0
"""Seconds that a retraining has to end when it is told to."""


def missing() -> str | None:
    """Why nothing can be retrained here, in a sentence; None: it can."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            return str(MissingExtraError(package, "train"))
    return None


class GoodImages:
    """What models are fitted to: a folder a recipe, and those that were added in the page.

    Args:
        records: beside which those lie that were added, a folder a recipe.
        given: other folders, by recipe.
    """

    def __init__(self, records: Records, given: Mapping[str, Path]) -> None:
        self._records, self._given = records, given

    def add(self, recipe: str, inspection: Inspection, kept: Kept) -> None:
        """Add an image; one that is there already stays.

        Raises:
            OutputError: it cannot be written.
        """
        write_atomic(
            self._records.folder / GOOD / recipe / f"{inspection.image}.{kept.suffix}", kept.data
        )

    def paths(self, recipe: str) -> list[Path]:
        """All of them.

        Raises:
            DataError: the folder that was given cannot be read.
        """
        found = list(find_images(self._given[recipe]).images) if recipe in self._given else []
        with suppress(HaloaeError):  # nothing was added yet
            found += find_images(self._records.folder / GOOD / recipe).images
        return found


def is_defective(stored: Stored) -> bool | None:
    """What a person's word on an inspection says of the image; None: nothing."""
    verdict, review = stored.inspection.verdict, stored.review
    if review is None or verdict == "unusable":
        return None
    return (verdict == "anomalous") == (review.word == "confirm")


@dataclass(frozen=True)
class RetrainingState:
    """How a retraining goes, or how the last one went."""

    recipe: str
    since: datetime
    step: str | None
    """What it is at, see `haloae.server.retrain.Step`; None: it has ended."""
    error: str | None = None
    """Why it failed."""

    def as_record(self) -> dict[str, str | None]:
        """Plain values, as JSON holds them."""
        return asdict(self) | {"since": self.since.isoformat()}


class Retraining:
    """One at a time, in a process of its own.

    Args:
        models: where new ones are left.
        recipes: those in use.
        records: what was reviewed.
        good: images to fit to.
    """

    def __init__(
        self, models: Models, recipes: Recipes, records: Records, good: GoodImages
    ) -> None:
        self.good = good
        self._models, self._recipes, self._records = models, recipes, records
        self._lock = Lock()
        self._state: RetrainingState | None = None
        self._process: subprocess.Popen[str] | None = None

    def state(self) -> RetrainingState | None:
        """How it goes; None: there was none since the service was started."""
        return self._state

    def start(self, recipe: str, person: Person) -> None:
        """Begin to retrain a recipe's model, as it was fitted before, to the good images of now.

        Raises:
            HaloaeError: one is running, there are no good images, it cannot be recorded, …
        """
        if (reason := missing()) is not None:
            raise RefusedError(409, reason)
        with self._lock:
            if self._state is not None and self._state.step is not None:
                raise RefusedError(409, f"{self._state.recipe!r} is being retrained: wait.")
            good = self.good.paths(recipe)
            if not good:
                raise RefusedError(
                    409,
                    f"there are no good images of {recipe!r}: add some in the page, or name their "
                    f"folder in serve.toml, under retraining.good.",
                )
            loaded = self._recipes.get(recipe)
            self._records.store.audit(
                "retrain",
                recipe,
                before=loaded.sha256,
                after={"good": len(good)},
                who=person.who,
                role=person.role,
            )
            self._run(recipe, loaded.detector.provenance.data, good)

    def stop(self) -> None:
        """End one that is running."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)

    def _run(self, recipe: str, data: str, good: list[Path]) -> None:
        out = self._models.new_folder(recipe)
        shutil.rmtree(out, ignore_errors=True)
        reviewed = [
            (path, is_bad)
            for stored in self._records.store.history.reviewed(recipe=recipe)
            if (is_bad := is_defective(stored)) is not None
            and (path := self._records.images.path_of(stored.inspection)) is not None
        ]
        job = {
            "model": str(self._recipes.path_of(recipe).absolute()),
            "good": [str(path.absolute()) for path in good],
            "data": data,
            "reviewed": [(str(path.absolute()), is_bad) for path, is_bad in reviewed],
            "out": str(out.absolute()),
            "limits": current_limits().model_dump(),
        }
        write_atomic(out / JOB, json.dumps(job).encode())
        with (out / LOG).open("wb") as file:
            self._process = subprocess.Popen(  # noqa: S603 - this package's own program
                [sys.executable, "-m", "haloae.server.retrain", str(out / JOB)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                text=True,
            )
        self._state = RetrainingState(recipe, datetime.now(UTC), "starting")
        watch = Thread(target=self._watch, args=(self._process,), name="retraining", daemon=True)
        watch.start()

    def _watch(self, process: "subprocess.Popen[str]") -> None:
        state = self._state
        error = None
        with process:
            for line in process.stdout or ():
                with suppress(ValueError):
                    said = json.loads(line)
                    error = said.get("error")
                    if state is not None:
                        state = self._state = replace(state, step=said.get("step", state.step))
        if process.returncode and error is None:
            error = f"the retraining ended with code {process.returncode}: see its {LOG}."
        if state is not None:
            self._state = replace(state, step=None, error=error)
        log.info("retraining ended: %s", error or "a new model waits")
