"""Score images on disk and write what was found: predictions.jsonl, and a map of each image."""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image as PILImage

from haloae.data.folders import find_images
from haloae.data.images import shown_path
from haloae.detection.prediction import Prediction, Predictor
from haloae.errors import DataError, ImageError
from haloae.files import cannot_write, claim_folder, write_atomic

PREDICTIONS = "predictions.jsonl"
PARTIAL = "predictions.partial.jsonl"
MAPS = "maps"
TINY = 1e-30
MASKS = "ground_truth"
LONGEST_NAME = 255
"""Bytes a file name may have on the usual file systems."""
MapFormat = Literal["none", "png", "tiff"]
Progress = Callable[[Sequence["Input"]], Iterable["Input"]]


class Input(NamedTuple):
    """One image to score."""

    path: Path
    relative: PurePosixPath
    """Where its map goes, below the folder of maps and with another suffix."""


class Counts(NamedTuple):
    """What came of a folder of images."""

    normal: int
    anomalous: int
    failed: int
    skipped: int
    """Found but left out before decoding: links in a loop, unreadable folders."""


def predict_to_folder(
    detector: Predictor,
    inputs: Sequence[Path],
    out: Path,
    *,
    maps: MapFormat = "png",
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress = iter,
    report: Callable[[str], None] = lambda message: None,
) -> Counts:
    """Score every image of `inputs`, in constant memory.

    A run that is stopped leaves its whole lines in predictions.partial.jsonl.

    Args:
        detector: the fitted detector.
        inputs: image files, and folders that are searched recursively.
        out: folder for predictions.jsonl and maps/.
        maps: ``png``, 16 bits, where half the range is the pixel threshold; ``tiff``, float32,
            the values themselves; ``none``.
        strict: True: stop at the first image that cannot be scored.
        overwrite: True: replace the predictions and maps that `out` holds.
        progress: wraps the images where someone wants to watch.
        report: is told of each image that could not be scored.

    Raises:
        DataError: an input is missing, or there is no image in them.
        ImageError: with `strict`, an image cannot be scored.
        OutputError: `out` is not empty, or cannot be written to.
    """
    images, skipped = collect(inputs, out)
    if strict and skipped:
        raise DataError(skipped[0])
    claim_folder(out, overwrite=overwrite)
    _remove_old(out)
    for message in skipped:
        report(message)
    partial = out / PARTIAL
    normal = anomalous = failed = 0
    targets = dict(zip(images, _targets([item.relative for item in images], maps), strict=True))
    try:
        with partial.open("w", encoding="utf-8") as lines:
            for item, result in _score(detector, progress(images)):
                if isinstance(result, ImageError):
                    if strict:
                        raise result
                    failed += 1
                    report(str(result))
                    line = _line(item, None, None, error=str(result))
                else:
                    anomalous += result.is_anomalous
                    normal += not result.is_anomalous
                    target = targets[item]
                    if target is not None:
                        _write_map(detector, result, out / target)
                    line = _line(item, result, target, error=None)
                lines.write(line + "\n")
                lines.flush()
        os.replace(partial, out / PREDICTIONS)  # noqa: PTH105 - says which it replaces
    except OSError as error:
        raise cannot_write(partial, error) from error
    return Counts(normal, anomalous, failed, len(skipped))


def collect(inputs: Sequence[Path], out: Path | None = None) -> tuple[list[Input], list[str]]:
    """Every image of the inputs, in order, and a sentence for each thing left out.

    Maps mirror the paths below each folder; with several inputs, the folder's name comes first.
    Maps that an earlier prediction left in `out`, and the masks of an MVTec layout, are no inputs.

    Raises:
        DataError: an input is missing, or there is no image in them.
    """
    images: list[Input] = []
    messages: list[str] = []
    for given in inputs:
        if not os.path.isdir(given):  # noqa: PTH112 - pathlib raises on names that are too long
            if not os.path.lexists(given):
                raise DataError(f"{shown_path(given)}: no such file or folder: check the path.")
            images.append(Input(given, PurePosixPath(given.name)))
            continue
        found = find_images(given)
        prefix = PurePosixPath(given.resolve().name if len(inputs) > 1 else "")
        is_layout = (given / "test").is_dir() and (given / MASKS).is_dir()
        images += [
            Input(path, prefix / path.relative_to(given))
            for path in found.images
            if not (is_layout and path.relative_to(given).parts[0] == MASKS)
        ]
        messages += [f"{shown_path(s.path)} is left out: {s.reason}." for s in found.skipped]
    if out is not None:
        own = (out / MAPS).resolve()
        images = [item for item in images if own not in item.path.resolve().parents]
    if not images:
        names = ", ".join(shown_path(path) for path in inputs)
        raise DataError(f"{names}: no image found: give image files, or a folder that holds some.")
    return images, messages


def _score(
    detector: Predictor, images: Iterable[Input]
) -> Iterator[tuple[Input, Prediction | ImageError]]:
    waiting: list[Input] = []

    def paths() -> Iterator[Path]:
        for item in images:
            waiting.append(item)
            yield item.path

    for result in detector.stream(paths()):
        yield waiting.pop(0), result


def _line(
    item: Input, prediction: Prediction | None, target: PurePosixPath | None, *, error: str | None
) -> str:
    values: dict[str, Any] = {
        "path": str(item.path),
        "score": prediction and prediction.score,
        "p_value": prediction and prediction.p_value,
        "is_anomalous": prediction and prediction.is_anomalous,
        "extrapolated": prediction and prediction.extrapolated,
        "map": str(target) if target else None,
        "error": error,
    }
    return json.dumps(values)


def _targets(relatives: Sequence[PurePosixPath], maps: MapFormat) -> list[PurePosixPath | None]:
    """Where each image's map goes, relative to the output folder; None where none is wanted.

    The image's path with another suffix; where that is taken (a.jpg beside a.png, or a folder of
    that name), the suffix is added, and then a number.
    """
    taken = {folder for relative in relatives for folder in relative.parents}
    targets: list[PurePosixPath | None] = []
    for relative in relatives:
        if maps == "none":
            targets.append(None)
            continue
        stem, target, number = relative.name, relative.with_suffix(f".{maps}"), 1
        while target in taken or len(os.fsencode(target.name)) > LONGEST_NAME:
            if len(os.fsencode(stem)) > LONGEST_NAME // 2:
                stem = stem[: len(stem) // 2]
            suffix = "" if number == 1 else f"~{number}"
            target = relative.with_name(f"{stem}{suffix}.{maps}")
            number += 1
        taken.add(target)
        targets.append(PurePosixPath(MAPS) / target)
    return targets


def _write_map(detector: Predictor, prediction: Prediction, path: Path) -> None:
    """Write one map, in the format of the path's suffix."""
    values = prediction.anomaly_map
    if path.suffix == ".png":
        threshold = max(detector.calibration.pixel_threshold.value, TINY)
        values = (np.clip(values / (2 * threshold), 0, 1) * 65535).round().astype(np.uint16)
    buffer = io.BytesIO()
    PILImage.fromarray(values).save(buffer, format=path.suffix[1:])
    write_atomic(path, buffer.getvalue(), durable=False)


def _remove_old(out: Path) -> None:
    """Remove what an earlier prediction left, and nothing else, so that no map is out of date."""
    for name in (PREDICTIONS, PARTIAL):
        try:
            with (out / name).open(encoding="utf-8") as lines:
                for line in lines:
                    target = json.loads(line)["map"]
                    if target and PurePosixPath(target).parts[0] == MAPS and ".." not in target:
                        (out / target).unlink(missing_ok=True)
            (out / name).unlink()
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError):
            (out / name).unlink()
        except OSError as error:
            raise cannot_write(out / name, error) from error
