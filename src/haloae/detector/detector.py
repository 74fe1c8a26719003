"""A fitted detector: predict, calibrate, save, load."""

import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

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
from haloae.detection.model_file import Header, read_model, write_model
from haloae.detection.parts import stored
from haloae.detection.predictor import Predictor
from haloae.errors import ConfigError, ImageError, MaskError, ModelFileError
from haloae.machine import resolve_device
from haloae.presets import preset as preset_named

if TYPE_CHECKING:
    from haloae.detection.good import Good
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
        from haloae.detector.fitting import fit_detector

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
        self,
        images: Sequence[ImageLike] | None = None,
        *,
        false_alarm_rate: float | None = None,
        slides: Sequence[float] | None = None,
    ) -> "Detector":
        """A detector with the same network and other thresholds.

        Args:
            images: good images, none of which it was fitted on, whose scores replace those that
                thresholds come from; None keeps them. A head that compares errors of
                reconstruction (`autoencoder`) is fitted to these images too; any other stays. The
                guard is fitted to them in any case, as they show what the camera sees now.
            false_alarm_rate: in (0, 1); None keeps it.
            slides: highest map value of each whole good slide, none of which it was fitted on;
                None keeps those that there are, unless the images are others.

        Without either, thresholds that somebody has set stay. Scores are those of float32,
        whatever the detector's precision.

        Raises:
            DataError: fewer than 4 images.
            ImageError: an image cannot be read.
            ConfigError: the rate is not in (0, 1).
            ModelFileError: this is an exported model.
        """
        from haloae.detection.good import Good
        from haloae.detection.native import Native, parts_of

        rate = false_alarm_rate
        if rate is None:
            rate = self.config.detection.false_alarm_rate
        config = self.config.replace(detection={"false_alarm_rate": rate})
        known, provenance = self.calibration, self.provenance
        region, guard = self.region, self.guard
        # Copies, as either detector may be moved to another device.
        network, head = copy.deepcopy(self.network), copy.deepcopy(self.head)
        good = Good(head, known.scores, known.peaks, known.units)
        if images is not None:
            region = region_of(images) or region
            good, guard = _measured_anew(network, head, images, config, region)
            provenance = provenance.model_copy(update={"held_out": len(good.scores)})
        if slides is None:
            slides = known.slides if images is None else ()
        kept = {"cells", "mean_weight", "regions"} if images is None else set()
        calibration = Calibration(
            scores=good.scores,
            peaks=good.peaks,
            false_alarm_rate=rate,
            tail=known.tail,
            units=good.units,
            slides=tuple(sorted(slides)),
            **known.model_dump(include=kept),
        ).fitted()
        is_kept = images is None and false_alarm_rate is None
        if is_kept and isinstance(known, StatedCalibration):
            calibration = known.model_copy(update={"slides": calibration.slides})
        native, parts = self.native, parts_of(region, config, good.units)
        backend = Native(config, network, good.head, native.precision, native.source, parts=parts)
        return Detector(config, calibration, provenance, backend, guard, region)


load = Detector.load
"""Any model file, native or exported: see `Detector.load`."""


def _measured_anew(
    network: "HaloAE",
    head: "Head",
    images: Sequence[ImageLike],
    config: Config,
    region: Region | Literal["each"] | None,
) -> tuple["Good", Guard]:
    """What good images look like to a network that was fitted to others, and a guard for them."""
    from haloae.detection.good import measure_good

    shown = _Shown(images, View.of(config), region)
    looks = Looks(len(images), shown.inside)
    good = measure_good(
        network,
        lambda: looks.watch(shown),
        config,
        head=None if head.refits else head,
        inside=shown.inside,
        region=stored(region),
    )
    return good, Guard.fit(looks.seen.values())


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
        same = stored(region)
        self.images = images if same is None else [Masked(image, same) for image in images]
        self.view = view
        self.is_masked = region == EACH
        self._last: tuple[int, Mask | None] = -1, None

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for number, read in enumerate(decode_ahead(self.images, self.view)):
            if isinstance(read, ImageError):
                raise read
            inside = read.inside
            if self.is_masked and inside is None:
                raise MaskError(
                    f"{read.name}: the model is of images with masks of their own, and this one "
                    f"has none: give it with --roi or --ignore, or as haloae.Masked."
                )
            self._last = number, None if inside is None else shown_inside(inside, self.view)
            yield read.shown

    def inside(self, number: int) -> Mask | None:
        """(H, W): what counts of the image that was given last; None: all.

        Of no other, so that memory does not grow with their number.
        """
        last, inside = self._last
        if number != last:
            raise ValueError(f"image {number} is asked for, and {last} was given last")
        return inside
