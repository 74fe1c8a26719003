"""What is written to a folder of images that were scored."""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple

from haloae.claims import Results, claim_folder
from haloae.data.folders import Masks, find_images, is_mask
from haloae.data.images import Image, shown_path
from haloae.data.regions import Masked
from haloae.detection.calibration import Calibration
from haloae.detection.prediction import VERDICTS, Prediction, UnlikeCounts, Verdict
from haloae.detection.predictor import Predictor
from haloae.errors import DataError, ImageError
from haloae.files import cannot_write, open_regular, sync_folder, write_atomic
from haloae.outputs.encode import as_record, encode_map
from haloae.outputs.pictures import draw_overlay, readable, thumbnail
from haloae.outputs.sheet import Highest, Ranked, draw_sheet

if TYPE_CHECKING:
    from haloae.evaluation.evaluate import Progress

PREDICTIONS = "predictions.jsonl"
PARTIAL = "predictions.partial.jsonl"
MAPS = "maps"
OVERLAYS = "overlays"
SHEET = "contact_sheet.jpg"
LONGEST_NAME = 255
"""Bytes a file name may have on the usual file systems."""
MapFormat = Literal["none", "png", "tiff"]
Overlays = Literal["anomalous", "all", "none"]


class Input(NamedTuple):
    """One image to score."""

    path: Path
    relative: PurePosixPath
    """Where its map and overlay go, below their folders and with another suffix."""
    masks: Masks | None = None
    """Which of its pixels count; None: all."""

    @property
    def image(self) -> Path | Masked:
        """As a detector takes it.

        Raises:
            DataError: its mask is missing.
        """
        return self.path if self.masks is None else self.masks.item(self.path, self.relative)


class Counts(NamedTuple):
    """What came of a folder of images."""

    normal: int
    anomalous: int
    unusable: int
    failed: int
    skipped: int
    """Found but left out before decoding: links in a loop, unreadable folders."""
    highest: list[Ranked]
    """The unusable images and then the highest-scored ones, highest first."""


class Targets(NamedTuple):
    """Where an image's pictures go, relative to the output folder; None where none is wanted."""

    map: PurePosixPath | None
    overlay: PurePosixPath | None


def predict_to_folder(
    detector: Predictor,
    inputs: Sequence[Path],
    out: Path,
    *,
    maps: MapFormat = "png",
    overlays: Overlays = "anomalous",
    masks: Masks | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: "Progress" = iter,
    report: Callable[[str], None] = lambda message: None,
) -> Counts:
    """Score every image of `inputs`, in constant memory.

    A run that is stopped leaves its whole lines in predictions.partial.jsonl, where there were no
    older results; where there were, it leaves those.

    Args:
        detector: the fitted detector.
        inputs: image files, and folders that are searched recursively.
        out: folder for predictions.jsonl, maps/, overlays/ and contact_sheet.jpg.
        maps: ``png``, 16 bits, where half the range is the pixel threshold; ``tiff``, float32,
            the values themselves; ``none``.
        overlays: which images get a picture for people: ``anomalous``, with the unusable ones,
            ``all``, or ``none``, which leaves out the contact sheet too.
        masks: which pixels count, by the images' paths as maps have them; None: those that the
            model says, of all images.
        strict: True: stop at the first image that cannot be scored.
        overwrite: True: replace the predictions and pictures that `out` holds.
        progress: wraps the images where someone wants to watch.
        report: is told of each image that could not be scored.

    Raises:
        DataError: an input or a mask is missing, or there is no image in them.
        ConfigError: the detector takes no such masks.
        ImageError: with `strict`, an image cannot be scored.
        OutputError: `out` is not empty, cannot be written to, or is being written to.
    """
    images, skipped = collect(inputs, out)
    if strict and skipped:
        raise DataError(skipped[0])
    images = _with_masks(detector, images, masks)
    failed, verdicts, unlike = 0, Counter[Verdict](), UnlikeCounts()
    with claim_folder(out, PREDICTION, overwrite=overwrite) as folder:
        for message in skipped:
            report(message)
        targets = _targets([item.relative for item in images], maps, overlays)
        places = dict(zip(images, targets, strict=True))
        pictures = _Pictures(detector.calibration, folder, overlays, Highest())
        with _lines(folder) as write_line:
            for item, image, result in _score(detector, progress(images)):
                written = Targets(None, None)
                if isinstance(result, ImageError):
                    if strict:
                        raise result
                    failed += 1
                    report(str(result))
                else:
                    verdicts[result.verdict] += 1
                    unlike.add(result)
                    written = pictures.write(item, image, result, places[item])
                write_line(_line(item, result, written))
            ranked = pictures.highest.ranked()
            if ranked:
                pictures.write_sheet(ranked, verdicts)
    unlike.log()
    normal, anomalous, unusable = (verdicts[word] for word in VERDICTS)
    return Counts(normal, anomalous, unusable, failed, len(skipped), ranked)


def collect(inputs: Sequence[Path], out: Path | None = None) -> tuple[list[Input], list[str]]:
    """Every image of the inputs, in order, and a sentence for each thing left out.

    Maps and overlays mirror the paths below each folder; with several inputs, the folder's name
    comes first. Pictures that an earlier prediction left in `out`, and the masks of an MVTec
    layout, are no inputs.

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
        images += [
            Input(path, prefix / path.relative_to(given))
            for path in found.images
            if not is_mask(path, given)
        ]
        messages += [f"{shown_path(s.path)} is left out: {s.reason}." for s in found.skipped]
    if out is not None:
        own = {Path(os.path.realpath(out / name)) for name in (MAPS, OVERLAYS, SHEET)}
        images = [item for item in images if not own & _with_parents(item.path)]
    if not images:
        names = ", ".join(shown_path(path) for path in inputs)
        raise DataError(f"{names}: no image found: give image files, or a folder that holds some.")
    return images, messages


def _with_masks(detector: Predictor, images: Sequence[Input], masks: Masks | None) -> list[Input]:
    """The images with their masks, all of which are looked for before anything is written."""
    detector.check_masks(masks)
    found = [item._replace(masks=masks) for item in images]
    for item in found:
        item.image  # noqa: B018 - raises where the mask is missing
    return found


def _with_parents(path: Path) -> set[Path]:
    real = Path(os.path.realpath(path))  # pathlib's own raises on a link that leads back to itself
    return {real, *real.parents}


@contextmanager
def _lines(folder: Path) -> Iterator[Callable[[str], None]]:
    """Write predictions.jsonl, which has another name until it is whole."""
    partial = folder / PARTIAL
    try:
        with partial.open("w", encoding="utf-8") as lines:

            def write(line: str) -> None:
                lines.write(line + "\n")
                lines.flush()

            yield write
            os.fsync(lines.fileno())
        os.replace(partial, folder / PREDICTIONS)  # noqa: PTH105 - says which it replaces
        sync_folder(folder)
    except OSError as error:
        raise cannot_write(partial, error) from error


def _score(
    detector: Predictor, images: Iterable[Input]
) -> Iterator[tuple[Input, Image | None, Prediction | ImageError]]:
    """Each image, decoded once for both the score and the pictures; None where it cannot be."""
    waiting: deque[Input] = deque()

    def given() -> Iterator[Path | Masked]:
        for item in images:
            waiting.append(item)
            yield item.image

    for image, result in detector.stream_with_images(given()):
        yield waiting.popleft(), image, result


class _Pictures(NamedTuple):
    """Writes what people look at, one image after the other."""

    calibration: Calibration
    out: Path
    overlays: Overlays
    highest: Highest

    def write(
        self, item: Input, image: Image | None, result: Prediction, targets: Targets
    ) -> Targets:
        """Write the map and, where it is wanted, the overlay; says what was written."""
        if targets.map is not None:
            data = encode_map(result, "png" if targets.map.suffix == ".png" else "tiff")
            write_atomic(self.out / targets.map, data, durable=False)
        if image is None or self.overlays == "none":
            self.highest.add(str(item.relative), result)
            return Targets(targets.map, None)
        self.highest.add(str(item.relative), result, lambda: thumbnail(image, result))
        is_wanted = self.overlays == "all" or result.verdict != "normal"
        if targets.overlay is None or not is_wanted:
            return Targets(targets.map, None)
        data = draw_overlay(image, result, self.calibration)
        write_atomic(self.out / targets.overlay, data, durable=False)
        return targets

    def write_sheet(self, ranked: Sequence[Ranked], verdicts: Mapping[Verdict, int]) -> None:
        """Write the contact sheet, unless no pictures for people are wanted."""
        if self.overlays == "none":
            return
        threshold = readable(self.calibration.threshold.value)
        scored = sum(verdicts.values())
        headline = f"{verdicts['anomalous']} of {scored} anomalous, threshold {threshold}"
        if verdicts["unusable"]:
            headline = f"{verdicts['unusable']} unusable, {headline}"
        if len(ranked) < scored:
            headline += f", the {len(ranked)} highest scores"
        write_atomic(self.out / SHEET, draw_sheet(ranked, headline), durable=False)


def _line(item: Input, result: Prediction | ImageError, written: Targets) -> str:
    record = as_record(
        str(item.path),
        result,
        map=None if written.map is None else str(written.map),
        overlay=None if written.overlay is None else str(written.overlay),
    )
    return json.dumps(record)


def _targets(
    relatives: Sequence[PurePosixPath], maps: MapFormat, overlays: Overlays
) -> list[Targets]:
    return [
        Targets(*both)
        for both in zip(
            _mirrored(relatives, MAPS, None if maps == "none" else maps),
            _mirrored(relatives, OVERLAYS, None if overlays == "none" else "jpg"),
            strict=True,
        )
    ]


def _mirrored(
    relatives: Sequence[PurePosixPath], folder: str, suffix: str | None
) -> list[PurePosixPath | None]:
    """Where each image's picture goes, relative to the output folder; None without a suffix.

    The image's path with another suffix; where that is taken (a.jpg beside a.png, or a folder of
    that name), the suffix is added, and then a number.
    """
    if suffix is None:
        return [None] * len(relatives)
    taken = {parent for relative in relatives for parent in relative.parents}
    targets: list[PurePosixPath | None] = []
    for relative in relatives:
        stem, target, number = relative.name, relative.with_suffix(f".{suffix}"), 1
        while target in taken or len(os.fsencode(target.name)) > LONGEST_NAME:
            if len(os.fsencode(stem)) > LONGEST_NAME // 2:
                stem = stem[: len(stem) // 2]
            count = "" if number == 1 else f"~{number}"
            target = relative.with_name(f"{stem}{count}.{suffix}")
            number += 1
        taken.add(target)
        targets.append(PurePosixPath(folder) / target)
    return targets


def _pictures_in(out: Path) -> Iterator[PurePosixPath]:
    """Pictures that an earlier prediction says it wrote, none of them anyone else's."""
    for name in (PREDICTIONS, PARTIAL):
        # What cannot be read names no pictures.
        with (
            suppress(OSError, ValueError, AttributeError, TypeError),
            open_regular(out / name) as file,
        ):
            for line in file:
                values = json.loads(line)
                for key, folder in (("map", MAPS), ("overlay", OVERLAYS)):
                    target = PurePosixPath(values.get(key) or ".")
                    if target.parts[:1] == (folder,):
                        yield target


PREDICTION = Results(
    "prediction", (PREDICTIONS, PARTIAL, SHEET), folders=(MAPS, OVERLAYS), listed=_pictures_in
)
