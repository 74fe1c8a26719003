"""Commands that fit one detector, and its thresholds."""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from haloae.cli import options
from haloae.cli.screen import calibration_lines, fitting_lines, report_skipped, slide_lines
from haloae.cli.shared import (
    DONE,
    SKIPPED,
    choose_one,
    prepare,
    progress_bar,
    shown,
    wants_progress,
    workers,
)
from haloae.errors import ConfigError, DataError, ImageError, OutputError

if TYPE_CHECKING:
    from haloae.config import Config
    from haloae.data.folders import Masks
    from haloae.data.regions import Masked
    from haloae.data.source import ImageLike
    from haloae.detector import Detector

log = logging.getLogger(__name__)


def train(
    data: Annotated[
        Path,
        Argument(
            metavar="DATA", help="folder of good images, an MVTec-layout category, or good slides"
        ),
    ],
    *,
    out: Annotated[Path, Option(metavar="RUN", help="folder of the run")],
    preset: options.PresetName = None,
    config: Annotated[
        Path | None, Option(metavar="FILE.toml", help="settings over the preset")
    ] = None,
    settings: options.Assignments = None,
    backbone: options.Backbone = None,
    view: options.View = None,
    place: options.Place = None,
    image_size: Annotated[int | None, Option(metavar="N", help="side in pixels")] = None,
    seed: Annotated[int | None, Option(metavar="N", help="of all randomness (default: 0)")] = None,
    max_steps: options.Steps = None,
    max_minutes: options.Minutes = None,
    false_alarm_rate: options.FalseAlarmRate = None,
    roi: options.Roi = None,
    ignore: options.Ignore = None,
    regions: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            help="of one mask a region, for all images; each is called as its file is, and has a "
            "threshold of its own",
        ),
    ] = None,
    resume: Annotated[bool, Option("--resume", help="go on from RUN's checkpoint")] = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    strict: options.Strict = False,
    limits: options.Limits = None,
    quiet: options.Quiet = False,
) -> int:
    """Fit a detector to good images: writes RUN/model.safetensors."""
    from haloae.claims import unfinished
    from haloae.data.region_files import read_regions
    from haloae.presets import configure
    from haloae.training.run_folder import MODEL, RUN, claim_run, load_checkpoint

    choose_one(resume=resume, overwrite=overwrite)
    masks = read_regions(roi, ignore, regions)
    found = _Found.at(data, masks, strict=strict)
    saved = load_checkpoint(unfinished(out, RUN)) if resume else None
    configured = configure(
        preset,
        base=saved.config if saved else None,
        file=config,
        assignments=settings or (),
        flags={
            "backbone": backbone,
            "view.kind": view,
            "view.place": place,
            "image_size": image_size,
            "seed": seed,
            "detection.false_alarm_rate": false_alarm_rate,
        },
    )
    from haloae.detector import check_names, fit_detector

    check_names(configured)
    prepare(threads)
    with claim_run(out, resume=resume, overwrite=overwrite) as run:
        images = found.images(configured, strict=strict, quiet=quiet)
        fitted = fit_detector(
            images,
            configured,
            name=shown(data.resolve().name),
            run=run,
            device=device,
            max_steps=max_steps,
            max_minutes=max_minutes,
            resume=resume,
            strict=strict,
            progress=wants_progress(quiet),
            workers=workers(),
            slides_of=found.groups,
        )
        report_skipped(fitted.skipped)
        fitted.detector.save(run / MODEL)
    if not quiet:
        print(fitting_lines(fitted, out / MODEL, found.things))
    return SKIPPED if fitted.skipped or found.has_skipped else DONE


class _Found:
    """What there is to fit on: good images, or good slides to draw tiles from."""

    def __init__(self, train: "Sequence[ImageLike]", slides: Sequence[Path], skipped: int) -> None:
        self.train = train
        self.slides = slides
        self.has_skipped = skipped > 0
        self.groups: list[int] | None = None
        """Of each image, which slide it is of."""
        self.things = f"parts of {len(slides)} slides" if slides else "images"

    @classmethod
    def at(cls, data: Path, masks: "Masks | None", *, strict: bool) -> "_Found":
        """In a folder."""
        from haloae.data.folders import load_category
        from haloae.slides.sample import find_slides

        if slides := find_slides(data):
            if masks is not None:
                raise ConfigError(f"{data}: holds slides, of which all counts: leave out --roi.")
            return cls((), slides, 0)
        category = replace(load_category(data, strict=strict), masks=masks)
        if not category.train:
            raise DataError(f"{data}: there are no good images in train/good to fit on.")
        images = [category.item(path) for path in category.train]
        return cls(images, (), len(category.skipped))

    def images(self, config: "Config", *, strict: bool, quiet: bool) -> "Sequence[ImageLike]":
        """To fit on."""
        if not self.slides:
            return self.train
        from haloae.detection.viewing import in_parts
        from haloae.slides.sample import sample_tiles

        bar = progress_bar("drawing parts", quiet=quiet)
        sampled = sample_tiles(self.slides, in_parts(config), progress=bar)
        if sampled.skipped and strict:
            raise sampled.skipped[0]
        report_skipped(sampled.skipped)
        self.groups = sampled.groups
        self.has_skipped = bool(sampled.skipped)
        return sampled.tiles


def calibrate(
    model: options.Model,
    good_images: Annotated[
        Path | None,
        Argument(
            metavar="GOOD_IMAGES",
            help="folder of good images, or of what `haloae slide` left of good slides, none of "
            "which it was fitted on",
        ),
    ] = None,
    *,
    false_alarm_rate: options.FalseAlarmRate = None,
    roi: options.Roi = None,
    ignore: options.Ignore = None,
    out: Annotated[Path | None, Option(metavar="MODEL2", help="default: MODEL itself")] = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    strict: options.Strict = False,
    limits: options.Limits = None,
    quiet: options.Quiet = False,
) -> int:
    """Set thresholds anew, by rate or by good images."""
    out = out or model
    is_other = os.path.realpath(out) != os.path.realpath(model)
    if os.path.lexists(out) and is_other and not overwrite:
        raise OutputError(f"{out}: exists: give --overwrite, or choose another --out.")
    if good_images is None and false_alarm_rate is None:
        raise ConfigError("nothing to do: give GOOD_IMAGES, --false-alarm-rate, or both.")
    if good_images is None and (roi or ignore):
        raise ConfigError("what counts is of images: give GOOD_IMAGES with --roi and --ignore.")
    from haloae.data.folders import load_held_out
    from haloae.data.images import readable_images
    from haloae.data.region_files import read_regions
    from haloae.detection.calibration_file import calibration_path
    from haloae.detector import Detector

    prepare(threads)
    detector = Detector.load(model, device=device)
    images: list[Path | Masked] | None = None
    skipped: list[ImageError] = []
    slides = _good_slides(good_images, detector) if good_images is not None else None
    if good_images is not None and slides is None:
        found = load_held_out(good_images, strict=strict)
        category = replace(found, masks=read_regions(roi, ignore, None))
        readable, skipped = readable_images(progress_bar("reading", quiet=quiet)(found.train))
        images = [category.item(path) for path in readable]
        if skipped and strict:
            raise skipped[0]
        report_skipped(skipped)
    calibrated = detector.calibrated(images, false_alarm_rate=false_alarm_rate, slides=slides)
    calibrated.save(out)
    with suppress(OSError):
        # Those that were set are of the model that stood there, and no other takes them.
        calibration_path(out).unlink()
        log.warning("%s: removed, as the model has new ones.", shown(calibration_path(out)))
    if not quiet:
        print(f"{shown(out)}: calibrated")
        if slides is not None:
            print(slide_lines(calibrated.calibration))
        print(calibration_lines(calibrated.calibration))
    return SKIPPED if skipped else DONE


def _good_slides(folder: Path, detector: "Detector") -> list[float] | None:
    """Scores of the slides whose results stand in a folder; None: it is none of results.

    Raises:
        DataError: some are of another detector, or damaged.
    """
    from haloae.slides.folder import SUMMARY, model_of, read_outcome

    found = sorted(path.parent for path in folder.glob(f"*/{SUMMARY}"))
    if not found:
        return None
    outcomes = [read_outcome(path) for path in found]
    for path, outcome in zip(found, outcomes, strict=True):
        if outcome["model"] != model_of(detector):
            raise DataError(
                f"{path}: was scored by another model: score it again with the one to calibrate."
            )
    return [outcome["score"] for outcome in outcomes]
