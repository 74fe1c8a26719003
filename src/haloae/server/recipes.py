"""The models of a folder by name: loaded on demand, anew when replaced, unloaded when unused."""

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, RLock, Thread
from typing import NamedTuple

from haloae.data.images import shown_path
from haloae.deploy.checks import weights_of
from haloae.deploy.runtime import is_exported
from haloae.detection.calibration_file import calibration_path
from haloae.detector import Detector
from haloae.errors import DataError, HaloaeError, ModelFileError
from haloae.files import sha256_of
from haloae.machine import resident_bytes
from haloae.server.problems import Problems, RefusedError

log = logging.getLogger(__name__)

SUFFIXES = (".xml", ".onnx", ".safetensors")
"""Of model files; where a name has several, the first counts, as it is the fastest."""
Stamp = tuple[tuple[int, int, int], ...]
"""Of each of a model's files and of the thresholds that stand beside it: when it was changed, its
size and its number on the disk."""


class Loaded(NamedTuple):
    """A model in memory."""

    detector: Detector
    sha256: str
    """Of its file, hexadecimal."""
    stamp: Stamp
    bytes: int
    """That it takes in memory, or so."""


class Listed(NamedTuple):
    """What is said of a recipe."""

    name: str
    file: str
    """Its name, without the folder."""
    is_loaded: bool
    is_parked: bool
    """True: someone unloaded it, and it stays so until it is loaded on purpose."""
    problem: str | None
    """Why its file, as it is now, cannot be loaded."""
    sha256: str | None
    """Of the file that is loaded."""


@dataclass
class _Recipe:
    path: Path
    loaded: Loaded | None = None
    is_parked: bool = False
    problem: str | None = None
    failed: Stamp | None = None
    """Of the files that could not be loaded: they are not tried again until they change."""
    used: float = field(default_factory=time.monotonic)
    lock: RLock = field(default_factory=RLock)
    """Held by who loads it."""


class Recipes:
    """The model files of a folder, or one file, each by its stem.

    Args:
        models: the folder, or the file.
        threads: that predict at one time, each on a core of its own.
        memory: bytes that all loaded ones may take.
        look: seconds between two looks at whether a file was replaced.
        problems: is told of files that cannot be loaded.

    Raises:
        DataError: there is no such file or folder.
    """

    def __init__(
        self, models: Path, *, threads: int, memory: int, look: float, problems: Problems
    ) -> None:
        if not models.exists():
            raise DataError(f"{shown_path(models)}: no such model file or folder: check the path.")
        self._models = models
        self._threads = threads
        self._memory = memory
        self._look = look
        self._problems = problems
        self._lock = RLock()
        self._recipes: dict[str, _Recipe] = {}
        self._is_stopped = Event()
        self._looking = Thread(target=self._keep_looking, name="recipes", daemon=True)
        self._scan()

    def start(self) -> None:
        """Look for files that come, go or are replaced, until `stop`."""
        self._looking.start()

    def stop(self) -> None:
        """Look no longer."""
        self._is_stopped.set()
        if self._looking.is_alive():
            self._looking.join()

    def names(self) -> list[str]:
        """In alphabetical order."""
        with self._lock:
            return sorted(self._recipes)

    def listed(self) -> list[Listed]:
        """All of them, in alphabetical order."""
        with self._lock:
            return [self._listed(name, self._recipes[name]) for name in sorted(self._recipes)]

    def find(self, name: str) -> Listed:
        """What is said of one.

        Raises:
            RefusedError: 404, there is none of this name.
        """
        return self._listed(name, self._known(name))

    def path_of(self, name: str) -> Path:
        """One's model file, as it was found: no part of the path comes from who asks.

        Raises:
            RefusedError: 404, there is none of this name.
        """
        return self._known(name).path

    def get(self, name: str) -> Loaded:
        """One's model, loaded where it is not; it stays usable whatever happens to its file.

        Raises:
            RefusedError: 404, there is none of this name; 409, it was unloaded on purpose; 503, it
                cannot be loaded.
        """
        recipe = self._known(name)
        recipe.used = time.monotonic()
        if recipe.is_parked:
            raise RefusedError(409, f"recipe {name!r} was unloaded: load it first.")
        if (loaded := recipe.loaded) is not None:
            return loaded
        with recipe.lock:
            loaded = recipe.loaded or self._load(name, recipe)
        if loaded is None:
            raise RefusedError(503, f"recipe {name!r} cannot be loaded: {recipe.problem}")
        return loaded

    def load(self, name: str) -> Loaded:
        """Load one on purpose, see `get`; one that was unloaded is in use again."""
        recipe = self._known(name)
        recipe.is_parked, recipe.failed = False, None
        return self.get(name)

    def unload(self, name: str) -> None:
        """Take one out of use, and of memory, until `load`.

        Raises:
            RefusedError: 404, there is none of this name.
        """
        recipe = self._known(name)
        with recipe.lock:
            recipe.is_parked, recipe.loaded = True, None

    def refresh(self) -> None:
        """Look at the folder now: what is loaded and was replaced whole is loaded anew.

        Raises:
            OSError: the folder cannot be read.
        """
        for name, recipe in self._scan():
            is_wanted = recipe.loaded is not None or recipe.problem is not None
            if is_wanted and not recipe.is_parked:
                with recipe.lock:
                    self._load(name, recipe)

    def _scan(self) -> list[tuple[str, _Recipe]]:
        """Which there are now; nothing is loaded."""
        found = _found(self._models)
        with self._lock:
            for name in self._recipes.keys() - found.keys():
                del self._recipes[name]
                self._problems.clear(f"recipe {name}")
            for name, path in found.items():
                if name not in self._recipes or self._recipes[name].path != path:
                    old = self._recipes.get(name)
                    self._recipes[name] = (
                        _Recipe(path, old.loaded, old.is_parked) if old else _Recipe(path)
                    )
            return list(self._recipes.items())

    def _known(self, name: str) -> _Recipe:
        if name not in self._recipes:
            with suppress(OSError):  # which is reported by who keeps looking
                self._scan()
        with self._lock:
            if name not in self._recipes:
                raise RefusedError(404, f"there is no recipe {name!r}: choose one that is listed.")
            return self._recipes[name]

    def _listed(self, name: str, recipe: _Recipe) -> Listed:
        loaded = recipe.loaded
        return Listed(
            name,
            shown_path(recipe.path.name),
            loaded is not None,
            recipe.is_parked,
            recipe.problem,
            loaded and loaded.sha256,
        )

    def _load(self, name: str, recipe: _Recipe) -> Loaded | None:
        """Load what the file holds now, unless it is loaded; where it cannot be, the old stays."""
        stamp = _stamp(recipe.path)
        old = recipe.loaded
        if old is not None and old.stamp == stamp:
            return old
        if stamp == recipe.failed:
            return old
        self._make_room(sum(size for _, size, _ in stamp), name)
        before = resident_bytes()
        _one_thread_each(recipe.path)
        try:
            detector = Detector.load(recipe.path, threads=self._threads, streams=self._threads)
            sha256 = sha256_of(recipe.path)
            if _stamp(recipe.path) != stamp:
                raise ModelFileError(f"{shown_path(recipe.path)}: it is being replaced.")
        except (HaloaeError, OSError) as error:
            recipe.problem, recipe.failed = str(error), stamp
            self._problems.report(f"recipe {name}", error)
            log.warning("recipe %s: %s", name, error)
            return old
        taken = max(sum(size for _, size, _ in stamp), resident_bytes() - before)
        recipe.loaded = Loaded(detector, sha256, stamp, taken)
        recipe.problem = recipe.failed = None
        self._problems.clear(f"recipe {name}")
        log.info("recipe %s: loaded %s, sha256 %s", name, recipe.path.name, sha256)
        self._make_room(0, name)
        return recipe.loaded

    def _make_room(self, wanted: int, keep: str) -> None:
        """Unload the least recently used, other than one, until so many bytes fit in."""
        with self._lock:
            others = sorted(
                (name for name, one in self._recipes.items() if one.loaded and name != keep),
                key=lambda name: self._recipes[name].used,
            )
            kept = self._recipes.get(keep)
            taken = wanted + (kept.loaded.bytes if kept and kept.loaded else 0)
            taken += sum(one.loaded.bytes for n in others if (one := self._recipes[n]).loaded)
            for name in others:
                if taken <= self._memory:
                    return
                loaded = self._recipes[name].loaded
                taken -= loaded.bytes if loaded else 0
                self._recipes[name].loaded = None
                log.info("recipe %s: unloaded, as others need the memory", name)

    def _keep_looking(self) -> None:
        while not self._is_stopped.wait(self._look):
            try:
                self.refresh()
                self._problems.clear("recipes")
            except OSError as error:
                self._problems.report(
                    "recipes", f"{shown_path(self._models)}: cannot be read ({error.strerror})."
                )


def _found(models: Path) -> dict[str, Path]:
    """Model files by their stems."""
    if models.is_file():
        paths = [models]
        if models.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{shown_path(models)}: not a model file: give a .safetensors, .onnx or .xml, or a "
                f"folder of them."
            )
    else:
        paths = [path for path in models.iterdir() if path.suffix.lower() in SUFFIXES]
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: -SUFFIXES.index(path.suffix.lower())):
        # A name that is no text, or hidden as a temporary file's, cannot be asked for.
        if path.stem.isprintable() and not path.name.startswith(".") and path.is_file():
            found[path.stem] = path
    return found


def files_of(path: Path) -> list[Path]:
    """A model's files: itself, its weights, thresholds that someone set, which may not be there."""
    weights = weights_of(path)
    return [path, *([] if weights is None else [weights]), calibration_path(path)]


def _stamp(path: Path) -> Stamp:
    """Of the model's files as they are now."""
    stamps = []
    for file in files_of(path):
        stamp = (0, 0, 0)
        with suppress(OSError):
            status = file.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        stamps.append(stamp)
    return tuple(stamps)


def _one_thread_each(path: Path) -> None:
    """Have torch, where it computes, use the thread that calls it and no other."""
    if not is_exported(path):
        with suppress(ImportError):  # which loading it says better
            import torch

            torch.set_num_threads(1)
