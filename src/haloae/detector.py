"""`Detector`: fit on good images, predict, calibrate, save, load."""

import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from haloae.config import Config, Precision
from haloae.data.folders import good_images
from haloae.data.images import shown_path
from haloae.data.regions import EACH, Mask, Masked, Region, region_of, shown_inside
from haloae.data.source import ImageLike, decode_ahead
from haloae.data.views import View
from haloae.deploy.runtime import is_exported, open_runtime
from haloae.detection.calibration import Calibration, StatedCalibration
from haloae.detection.calibration_file import in_force
from haloae.detection.guard import Guard
from haloae.detection.looks import Looks
from haloae.detection.model_file import Header, Provenance, read_model, write_model
from haloae.detection.predictor import Predictor
from haloae.errors import ConfigError, ImageError, MaskError, ModelFileError
from haloae.machine import resolve_device
from haloae.presets import preset as preset_named

if TYPE_CHECKING:
    from haloae.detection.heads import Head
    from haloae.detection.native import Native
    from haloae.network.haloae import HaloAE

log = logging.getLogger(__name__)


class Detector(Predictor):
    """A fitted detector, native or exported: with its weights, or with the graph made of them.

    Made by `fit` or `load`. An exported one predicts, and no more.
    """

    @property
    def native(self) -> "Native":
        """The weights, and what computes with them.

        Raises:
            ModelFileError: this is an exported model.
        """
        from haloae.detection.native import Native

        if not isinstance(self.backend, Native):
            raise ModelFileError(
                "an exported model holds no weights to go on with: load the model.safetensors it "
                "was exported from."
            )
        return self.backend

    @property
    def network(self) -> "HaloAE":
        """The trained network, see `native`."""
        return self.native.network

    @property
    def head(self) -> "Head":
        """What good images look like to it, see `native`."""
        return self.native.head

    @classmethod
    def fit(
        cls,
        images: str | Path | Sequence[ImageLike],
        *,
        preset: str = "default",
        config: Config | None = None,
        seed: int | None = None,
        device: str = "auto",
    ) -> "Detector":
        """Fit a detector to good images.

        Args:
            images: a folder (plain, or an MVTec-layout category), or a list of paths, PIL images
                or arrays, see `predict`.
            preset: a name of `haloae.presets.PRESETS`; `config` replaces it.
            config: every setting, for what a preset does not offer.
            seed: replaces the config's.
            device: ``auto``, ``cpu`` or ``cuda``.

        Raises:
            DataError: too few images that can be read.
            ConfigError: no such preset, or settings that do not fit.
            WeightsError: the backbone's weights cannot be had.
            TrainingError: a loss is not finite.
        """
        config = config or preset_named(preset)
        if seed is not None:
            config = config.replace(seed=seed)
        if isinstance(images, str | Path):
            folder = Path(images)
            images = good_images(folder)
            name = shown_path(folder.resolve().name)
        else:
            name = "images"
        fitted = fit_detector(images, config, name=name, device=device)
        for error in fitted.skipped:
            log.warning("skipped: %s", error)
        return fitted.detector

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        precision: Precision = "float32",
        threads: int | None = None,
        streams: int = 1,
    ) -> "Detector":
        """Load a model file: a .safetensors, or an exported .onnx or .xml, which needs no torch.

        Thresholds that somebody has set stand in a file beside it, and take the place of its own.

        Args:
            path: of the file.
            device: ``auto``, ``cpu`` or ``cuda``; exported models run on the CPU.
            precision: of the network's arithmetic. ``bfloat16`` is faster where the processor has
                it, and moves scores by about a hundredth of themselves (docs/cost.md).
            threads: of an exported model's runtime; None leaves it to that.
            streams: of an exported model: how many threads of yours will have it predict at one
                time, each with its share of those threads.

        Raises:
            ModelFileError: missing, truncated, tampered with, of a newer format, or not a model;
                or the thresholds beside it are of another.
            ConfigError: a device or precision that cannot be had.
            MissingExtraError: torch or the runtime is not installed.
        """
        path = Path(path)
        if is_exported(path):
            runtime = open_runtime(
                path, device=device, precision=precision, threads=threads, streams=streams
            )
            metadata = runtime.metadata
            calibration = in_force(path, runtime.calibration)
            return cls(
                metadata.config,
                calibration,
                metadata.provenance,
                runtime,
                metadata.guard,
                metadata.region,
            )
        header, arrays = read_model(path)
        where = resolve_device(device)
        from haloae.detection.native import restore

        name = shown_path(path)
        try:
            native = restore(header, arrays, precision, name)
        except ConfigError as error:
            raise ModelFileError(f"{name}: {error}") from error
        except (RuntimeError, LookupError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ModelFileError(
                f"{name}: its tensors do not fit its configuration ({reason}): train anew."
            ) from error
        native.to(where)
        return cls(
            header.config,
            in_force(path, header.calibration),
            header.provenance,
            native,
            header.guard,
            header.region,
        )

    def save(self, path: str | Path) -> None:
        """Save as one model file, atomically.

        Raises:
            OutputError: the file cannot be written; what stood there before is untouched.
            ModelFileError: this is an exported model.
        """
        header = Header(
            config=self.config,
            calibration=self.calibration.fitted(),
            usual_images=self.head.images,
            provenance=self.provenance,
            guard=self.guard,
            region=self.region,
        )
        write_model(Path(path), header, self.native.arrays())

    def to(self, device: str) -> "Detector":
        """Move to a device, ``auto``, ``cpu`` or ``cuda``, and return itself."""
        self.native.to(resolve_device(device))
        return self

    def calibrated(
        self, images: Sequence[ImageLike] | None = None, *, false_alarm_rate: float | None = None
    ) -> "Detector":
        """A detector with the same network and other thresholds.

        Args:
            images: good images, none of which it was fitted on, whose scores replace those that
                thresholds come from; None keeps them. A head that compares errors of
                reconstruction (`autoencoder`) is fitted to these images too; any other stays. The
                guard is fitted to them in any case, as they show what the camera sees now.
            false_alarm_rate: in (0, 1); None keeps it.

        Without either, thresholds that somebody has set stay. Scores are those of float32,
        whatever the detector's precision.

        Raises:
            DataError: fewer than 4 images.
            ImageError: an image cannot be read.
            ConfigError: the rate is not in (0, 1).
            ModelFileError: this is an exported model.
        """
        from haloae.detection.good import measure_good
        from haloae.detection.native import Native, parts_of

        rate = false_alarm_rate
        if rate is None:
            rate = self.config.detection.false_alarm_rate
        config = self.config.replace(detection={"false_alarm_rate": rate})
        # Copies, as either detector may be moved to another device.
        network, head = copy.deepcopy(self.network), copy.deepcopy(self.head)
        known, provenance = self.calibration, self.provenance
        scores, peaks, units = known.scores, known.peaks, known.units
        guard, region = self.guard, self.region
        if images is not None:
            region = region_of(images) or region
            shown = _Shown(images, View.of(config), region)
            looks = Looks(len(images), shown.inside)
            head, scores, peaks, units = measure_good(
                network,
                lambda: looks.watch(shown),
                config,
                head=None if head.refits else head,
                inside=shown.inside,
                region=_stored(region),
            )
            provenance = provenance.model_copy(update={"held_out": len(scores)})
            guard = Guard.fit(looks.seen.values())
        native, parts = self.native, parts_of(region, config, units)
        calibration = Calibration(
            scores=scores, peaks=peaks, false_alarm_rate=rate, tail=known.tail, units=units
        ).fitted()
        is_kept = images is None and false_alarm_rate is None
        return Detector(
            config,
            known if is_kept and isinstance(known, StatedCalibration) else calibration,
            provenance,
            Native(config, network, head, native.precision, native.source, parts=parts),
            guard,
            region,
        )


load = Detector.load
"""Any model file, native or exported: see `Detector.load`."""


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

    Raises:
        HaloaeError: what `haloae.training.fit.fit` and `measure_good` raise.
        KeyboardInterrupt: after the checkpoint was saved.
    """
    where = resolve_device(device)
    from haloae.detection.good import measure_good, tail_of
    from haloae.detection.native import Native, parts_of
    from haloae.detection.viewing import regions_of, settled
    from haloae.training.batches import MIN_GOOD
    from haloae.training.fit import fit

    check_names(config)
    region = region_of(images)
    config = settled(config, images)
    check_names(config)
    if config.view.kind == "tiles" and len(images) < MIN_GOOD:
        if isinstance(region, Region) and region.names:
            raise ConfigError(
                f"named regions have thresholds of whole good images, and {len(images)} are too "
                f"few: give at least {MIN_GOOD}, or --roi in their place."
            )
        images = regions_of(images, config)
    trained = fit(
        images,
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

    order = (*trained.held_out, *trained.fitted_on)

    def inside(number: int) -> Mask | None:
        return trained.images.inside(order[number])

    looks = Looks(len(trained.images), inside)

    def held_out() -> Iterator[NDArray[np.float32]]:
        watched = tqdm(trained.held_out, "calibrating", disable=not progress, leave=False)
        return looks.watch(trained.images[index] for index in watched)

    head, scores, peaks, units = measure_good(
        trained.network, held_out, config, inside=inside, region=_stored(region)
    )
    if config.network.autoencoder:
        # Those held out may be four, and what they all look like was learnt from none.
        for _ in looks.watch(trained.images[index] for index in order):
            pass
    detector = Detector(
        config,
        Calibration(
            scores=scores,
            peaks=peaks,
            false_alarm_rate=config.detection.false_alarm_rate,
            tail=tail_of(head),
            units=units,
        ).fitted(),
        Provenance(
            data=name,
            fitted_on=len(trained.fitted_on),
            held_out=len(trained.held_out) if config.network.autoencoder else 0,
            skipped=len(trained.skipped),
            steps=trained.steps,
            backbone=trained.backbone[0],
            backbone_sha256=trained.backbone[1],
            images=trained.kinds,
        ),
        Native(config, trained.network, head, parts=parts_of(region, config, units)),
        Guard.fit(looks.seen.values()),
        region,
    )
    is_finished = not config.network.autoencoder or trained.steps >= config.training.steps
    return Fitted(detector, trained.skipped, trained.steps, is_finished)


class _Shown:
    """Good images as the network sees them, gone through anew each time.

    Args:
        images: as they were given.
        view: what is seen of them.
        region: what counts of them, see `Predictor`.
    """

    def __init__(
        self, images: Sequence[ImageLike], view: View, region: Region | Literal["each"] | None
    ) -> None:
        stored = _stored(region)
        self.images = images if stored is None else [Masked(image, stored) for image in images]
        self.view = view
        self.is_masked = region == EACH
        self._inside: dict[int, Mask] = {}

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for number, read in enumerate(decode_ahead(self.images, self.view)):
            if isinstance(read, ImageError):
                raise read
            if read.inside is not None:
                self._inside[number] = shown_inside(read.inside, self.view)
            elif self.is_masked:
                raise MaskError(
                    f"{read.name}: the model is of images with masks of their own, and this one "
                    f"has none: give it with --roi or --ignore, or as haloae.Masked."
                )
            yield read.shown

    def inside(self, number: int) -> Mask | None:
        """(H, W): what counts of an image that was seen; None: all."""
        return self._inside.get(number)


def _stored(region: Region | Literal["each"] | None) -> Region | None:
    return region if isinstance(region, Region) else None
