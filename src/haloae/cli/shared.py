"""What the commands share: exit codes, progress bars, threads, any kind of model."""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haloae.cli.options import Device, Precision
from haloae.errors import OutputError
from haloae.machine import keep_freed_memory

if TYPE_CHECKING:
    from haloae.detector import Detector

DONE, SKIPPED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: all of it; all but what could not be read or judged, or what failed among others;
nothing, for the reason that is said; stopped by Ctrl-C."""
MAX_WORKERS = 8


def prepare(threads: int | None) -> None:
    """Set the machine up for torch."""
    keep_freed_memory()
    if threads:
        import torch

        torch.set_num_threads(threads)


def choose_one(*, resume: bool, overwrite: bool) -> None:
    """Refuse both: to go on with what is there, and to replace it.

    Raises:
        OutputError: both are wanted.
    """
    if resume and overwrite:
        raise OutputError("--resume and --overwrite exclude each other: choose one.")


def workers() -> int:
    """Processes that read images."""
    return min(MAX_WORKERS, os.cpu_count() or 1)


def load_any(
    model: Path, *, device: Device, precision: Precision, threads: int | None
) -> "Detector":
    """The detector of a file, native or exported: the latter without torch."""
    from haloae.deploy.runtime import is_exported
    from haloae.detector import load

    if not is_exported(model):
        prepare(threads)
    return load(model, device=device, precision=precision, threads=threads)


def wants_progress(quiet: bool) -> bool:
    """Bars are for someone who watches."""
    return not quiet and sys.stderr.isatty()


def progress_bar(title: str, *, quiet: bool) -> Callable[[Iterable[Any]], Any]:
    """Wraps what is gone through."""

    def wrap(items: Iterable[Any]) -> Any:  # noqa: ANN401 - tqdm is not typed
        from tqdm import tqdm

        return tqdm(items, title, disable=not wants_progress(quiet), leave=False)

    return wrap


def shown(path: str | Path) -> str:
    """A path, or a sentence with one in it, as one printable line."""
    if str(path).isprintable():
        return str(path)
    from haloae.data.images import shown_path

    return shown_path(path)
