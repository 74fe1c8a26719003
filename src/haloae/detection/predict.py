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
from haloae.detection.detector import Detector, Prediction
from haloae.errors import DataError, ImageError
from haloae.files import cannot_write, claim_folder, write_atomic

PREDICTIONS = "predictions.jsonl"
PARTIAL = "predictions.partial.jsonl"
MAPS = "maps"
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
    detector: Detector,
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
    images, skipped = collect(inputs)
    if strict and skipped:
        raise DataError(skipped[0])
    claim_folder(out, overwrite=overwrite)
    _remove_old(out)
    for message in skipped:
        report(message)
    partial = out / PARTIAL
    normal = anomalous = failed = 0
    taken: set[PurePosixPath] = set()
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
                    target = _write_map(detector, item, result, out, maps, taken)
                    line = _line(item, result, target, error=None)
                lines.write(line + "\n")
                lines.flush()
        os.replace(partial, out / PREDICTIONS)  # noqa: PTH105 - says which it replaces
    except OSError as error:
        raise cannot_write(partial, error) from error
    return Counts(normal, anomalous, failed, len(skipped))


def collect(inputs: Sequence[Path]) -> tuple[list[Input], list[str]]:
    """Every image of the inputs, in order, and a sentence for each thing left out.

    Maps mirror the paths below each folder; with several inputs, the folder's name comes first.

    Raises:
        DataError: an input is missing, or there is no image in them.
    """
    images: list[Input] = []
    messages: list[str] = []
    for given in inputs:
        if not given.is_dir():
            if not os.path.lexists(given):
                raise DataError(f"{shown_path(given)}: no such file or folder: check the path.")
            images.append(Input(given, PurePosixPath(given.name)))
            continue
        found = find_images(given)
        prefix = PurePosixPath(given.resolve().name if len(inputs) > 1 else "")
        images += [Input(path, prefix / path.relative_to(given)) for path in found.images]
        messages += [f"{shown_path(s.path)} is left out: {s.reason}." for s in found.skipped]
    if not images:
        names = ", ".join(shown_path(path) for path in inputs)
        raise DataError(f"{names}: no image found: give image files, or a folder that holds some.")
    return images, messages


def _score(
    detector: Detector, images: Iterable[Input]
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


def _write_map(
    detector: Detector,
    item: Input,
    prediction: Prediction,
    out: Path,
    maps: MapFormat,
    taken: set[PurePosixPath],
) -> PurePosixPath | None:
    """Write one map; its path relative to `out`, None where none is wanted."""
    if maps == "none":
        return None
    target = PurePosixPath(MAPS) / item.relative.with_suffix(f".{maps}")
    number = 1
    while target in taken:  # a.jpg beside a.png, or two inputs of one name
        number += 1
        target = PurePosixPath(MAPS) / item.relative.with_name(
            f"{item.relative.name}~{number}.{maps}"
            if number > 2
            else f"{item.relative.name}.{maps}"
        )
    taken.add(target)
    values = prediction.anomaly_map
    if maps == "png":
        threshold = detector.calibration.pixel_threshold.value
        values = (np.clip(values / (2 * threshold), 0, 1) * 65535).round().astype(np.uint16)
    buffer = io.BytesIO()
    PILImage.fromarray(values).save(buffer, format=maps)
    write_atomic(out / target, buffer.getvalue(), durable=False)
    return target


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
