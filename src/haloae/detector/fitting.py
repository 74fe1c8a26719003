"""Fitting a detector to good images, step by step: network, head, thresholds, guard."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from haloae.config import Config
from haloae.data.regions import Mask, Region, region_of
from haloae.data.source import ImageLike
from haloae.detection.calibration import Calibration
from haloae.detection.guard import Guard
from haloae.detection.looks import Looks
from haloae.detection.model_file import Provenance
from haloae.detection.parts import stored
from haloae.detector.detector import Detector
from haloae.errors import ConfigError, ImageError
from haloae.machine import resolve_device

if TYPE_CHECKING:
    from haloae.detection.good import Good
    from haloae.detection.slide_parts import SlideRegions
    from haloae.training.fit import Trained


class Fitted(NamedTuple):
    """A detector and how its fitting went."""

    detector: Detector
    skipped: list[ImageError]
    """One for each image that could not be read."""
    steps: int
    is_finished: bool
    """False: stopped before the end of its schedule, by `max_steps` or `max_minutes`."""


def check_names(config: Config) -> None:
    """Look up what the config names in tables, before anything is read or written.

    Raises:
        ConfigError: there is no such trunk, kind of attention or detector head, or the head cannot
            be fitted with this config.
    """
    from haloae.detection.heads import head_of
    from haloae.network.attention import attention_named
    from haloae.network.trunks import trunk_named

    trunk_named(config.network.trunk)
    attention_named(config.network.attention.mode)
    head_of(config).check(config)


def fit_detector(
    images: Sequence[ImageLike],
    config: Config,
    *,
    name: str,
    run: Path | None = None,
    device: str = "auto",
    max_steps: int | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    strict: bool = False,
    progress: bool = False,
    workers: int = 0,
    slides_of: Sequence[int] | None = None,
) -> Fitted:
    """Fit a detector to good images: its network, if it has an auto-encoder, and its head.

    Args:
        images: the good images: paths, PIL images or arrays.
        config: of everything.
        name: what the images are called in the model file.
        run: folder for checkpoint and loss log; None keeps neither.
        device: ``auto``, ``cpu`` or ``cuda``.
        max_steps: stop there; the schedule stays the config's.
        max_minutes: stop after that time; `resume` goes on later.
        resume: go on from the run's checkpoint, if it has one.
        strict: True: an image that cannot be read is an error; False: it is skipped.
        progress: True: show bars on stderr.
        workers: processes that make batches ahead, on CUDA.
        slides_of: of each image, which slide it is a part of, see `haloae.slides.sample`:
            thresholds are of heads that saw no other part of it either; None: images are whole.

    Raises:
        HaloaeError: what `haloae.training.fit.fit` and `measure_good` raise.
        KeyboardInterrupt: after the checkpoint was saved.
    """
    where = resolve_device(device)
    from haloae.detection.good import tail_of
    from haloae.detection.native import Native, parts_of
    from haloae.detection.viewing import in_parts, in_slides, settled
    from haloae.training.fit import fit

    check_names(config)
    region = region_of(images)
    wanted = config.view.canvas
    config = settled(config if slides_of is None else in_parts(config), images)
    check_names(config)
    trained = fit(
        _enough(images, config, region),
        config,
        device=where,
        run=run,
        max_steps=max_steps,
        max_minutes=max_minutes,
        resume=resume,
        strict=strict,
        progress=progress,
        workers=workers,
    )
    good, regions, guard = _measured(trained, config, region, slides_of, progress=progress)
    if slides_of is not None:
        config = in_slides(config, wanted)
    detector = Detector(
        config,
        Calibration(
            scores=good.scores,
            peaks=good.peaks,
            false_alarm_rate=config.detection.false_alarm_rate,
            tail=tail_of(good.head),
            units=good.units,
            **({} if regions is None else regions._asdict()),
        ).fitted(),
        _provenance(name, trained, config),
        Native(config, trained.network, good.head, parts=parts_of(region, config, good.units)),
        guard,
        region,
    )
    is_finished = not config.network.autoencoder or trained.steps >= config.training.steps
    return Fitted(detector, trained.skipped, trained.steps, is_finished)


class _Measured(NamedTuple):
    """What a trained network finds good images to look like."""

    good: "Good"
    regions: "SlideRegions | None"
    """None: images are whole."""
    guard: Guard


def _measured(
    trained: "Trained",
    config: Config,
    region: Region | Literal["each"] | None,
    slides_of: Sequence[int] | None,
    *,
    progress: bool,
) -> _Measured:
    """Fit head and guard, and score the images that were held out; see `fit_detector`."""
    from haloae.detection.good import measure_good
    from haloae.detection.slide_parts import SlideParts, measure_slide_parts

    order = (*trained.held_out, *trained.fitted_on)

    def inside(number: int) -> Mask | None:
        return trained.images.inside(order[number])

    looks = Looks(len(trained.images), inside)

    def held_out() -> Iterator[NDArray[np.float32]]:
        watched = tqdm(trained.held_out, "calibrating", disable=not progress, leave=False)
        return looks.watch(trained.images[index] for index in watched)

    regions = None
    if slides_of is None:
        good = measure_good(trained.network, held_out, config, inside=inside, region=stored(region))
    else:
        whose = SlideParts([slides_of[i] for i in trained.held_out], config.view.margin or 0)
        good, regions = measure_slide_parts(trained.network, held_out, config, whose)
    if config.network.autoencoder:
        # Those held out may be four, and what they all look like was learnt from none.
        for _ in looks.watch(trained.images[index] for index in order):
            pass
    return _Measured(good, regions, Guard.fit(looks.seen.values()))


def _enough(
    images: Sequence[ImageLike], config: Config, region: Region | Literal["each"] | None
) -> Sequence[ImageLike]:
    """The good images, or where they are few and seen in tiles, regions of them in their place.

    Raises:
        ConfigError: named regions cannot be told in these.
    """
    from haloae.detection.viewing import regions_of
    from haloae.training.batches import MIN_GOOD

    if config.view.kind != "tiles" or len(images) >= MIN_GOOD:
        return images
    if isinstance(region, Region) and region.names:
        raise ConfigError(
            f"named regions have thresholds of whole good images, and {len(images)} are too few: "
            f"give at least {MIN_GOOD}, or --roi in their place."
        )
    return regions_of(images, config)


def _provenance(name: str, trained: "Trained", config: Config) -> Provenance:
    return Provenance(
        data=name,
        fitted_on=len(trained.fitted_on),
        held_out=len(trained.held_out) if config.network.autoencoder else 0,
        skipped=len(trained.skipped),
        steps=trained.steps,
        backbone=trained.backbone[0],
        backbone_sha256=trained.backbone[1],
        images=trained.kinds,
    )
