"""What a run leaves in its folder while it trains: a checkpoint to go on from, and a CSV log."""

import csv
import io
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from haloae.claims import Results, claim_folder, is_empty, unfinished
from haloae.config import Config, parse_config, without_retired
from haloae.errors import HaloaeError, OutputError, TrainingError
from haloae.files import cannot_write, open_regular, write_atomic

MODEL = "model.safetensors"
CHECKPOINT = "checkpoint.pt"
LOSS_LOG = "losses.csv"
RUN = Results("run", (MODEL, CHECKPOINT, LOSS_LOG), goes_on_from=CHECKPOINT)


class Checkpoint(NamedTuple):
    """A moment of training, all that is needed to go on from it."""

    step: int
    """Steps taken."""
    config: Config
    images: str
    """Fingerprint of the list of images."""
    backbone: tuple[str, str]
    """Name and hash of the backbone's weights."""
    network: dict[str, Tensor]
    optimizer: dict[str, Any]


def claim_run(run: Path, *, resume: bool, overwrite: bool) -> AbstractContextManager[Path]:
    """Make the folder of a run, or refuse one that holds something, see `claim_folder`.

    Args:
        run: the folder.
        resume: True: it may hold a checkpoint to go on from.
        overwrite: True: what it holds may be replaced, once the new model is whole.

    Raises:
        OutputError: it holds what it must not, is not a folder, or cannot be written to.
    """

    def goes_on(folder: Path) -> bool:
        return resume and (folder / CHECKPOINT).is_file()

    if resume and not goes_on(unfinished(run, RUN)) and run.is_dir() and not is_empty(run):
        raise OutputError(f"{run}: holds no checkpoint to resume: give --overwrite to start anew.")
    way_out = "give --resume to go on or --overwrite to start anew"
    return claim_folder(run, RUN, overwrite=overwrite, goes_on=goes_on, way_out=way_out)


def forget(run: Path) -> None:
    """Remove what an older run left to go on from: it is not of a new one.

    The older model stays until the new one takes its place.

    Raises:
        OutputError: it cannot be removed.
    """
    for name in (CHECKPOINT, LOSS_LOG):
        path = run / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint, atomically.

    Raises:
        OutputError: it cannot be written; the one before is untouched.
    """
    buffer = io.BytesIO()
    values = checkpoint._asdict() | {"config": checkpoint.config.model_dump(mode="json")}
    torch.save(values, buffer)
    write_atomic(run / CHECKPOINT, buffer.getvalue())


def load_checkpoint(run: Path) -> Checkpoint | None:
    """The checkpoint of a run, None where it has none yet.

    Raises:
        TrainingError: the file cannot be read, is damaged or not a checkpoint.
    """
    path = run / CHECKPOINT
    if not os.path.lexists(path):
        return None
    try:
        file = open_regular(path)
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot be read ({error.strerror}): start anew with --overwrite."
        ) from error
    try:
        with file:
            values = torch.load(file, map_location="cpu", weights_only=True)
        name, sha256 = values.pop("backbone")
        return Checkpoint(
            **values
            | {
                "config": parse_config(without_retired(values["config"])),
                "backbone": (name, sha256),
            }
        )
    except HaloaeError as error:
        raise TrainingError(f"{path}: {error}") from error
    except Exception as error:  # damaged files fail in as many ways as there are bytes
        raise TrainingError(
            f"{path}: damaged, or not a checkpoint: start anew with --overwrite."
        ) from error


def check_same_run(saved: Checkpoint, config: Config, images: str, run: Path) -> None:
    """Refuse to go on from another run's checkpoint; what comes after training may change.

    Args:
        saved: of the run's folder.
        config: to go on with.
        images: fingerprint of those to go on with.
        run: the folder.

    Raises:
        TrainingError: it has other settings, or other images.
    """
    path = run / CHECKPOINT
    if saved.config.replace(detection=config.detection.model_dump()) != config:
        raise TrainingError(
            f"{path}: was made with other settings: resume with the same ones, or start anew with "
            f"--overwrite."
        )
    if saved.images != images:
        raise TrainingError(
            f"{path}: was made from other images: restore them, or start anew with --overwrite."
        )


@contextmanager
def loss_log(run: Path | None, step: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """Append rows to the run's CSV, having dropped those after `step`, which are taken anew.

    Args:
        run: None: rows go nowhere.
        step: steps already taken.

    Raises:
        OutputError: the file cannot be written.
    """
    if run is None:
        yield lambda row: None
        return
    path = run / LOSS_LOG
    write_atomic(path, _rows_until(path, step).encode())
    # One open a row: a file left open would try once more to write when it is closed.
    has_header = path.stat().st_size > 0

    def write(row: dict[str, float]) -> None:
        nonlocal has_header
        try:
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
                if not has_header:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise cannot_write(path, error) from error
        has_header = True

    yield write


def _rows_until(path: Path, step: int) -> str:
    """The log's header and its whole rows up to a step; a killed run may have left half a row."""
    if not step or not path.exists():
        return ""
    try:
        with open_regular(path) as file:
            text = file.read().decode(errors="replace")
    except OSError as error:
        raise cannot_write(path, error) from error
    rows = text.splitlines(keepends=True)
    kept = [
        row
        for row in rows
        if row.endswith("\n") and row.split(",")[0].isdigit() and int(row.split(",")[0]) <= step
    ]
    return "".join([*rows[:1], *kept])
