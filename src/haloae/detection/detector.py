"""`Detector`: fit on good images, predict, save, load."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from haloae.config import Config
from haloae.config import preset as preset_named
from haloae.data.images import Image, image_from, resize, shown_path
from haloae.detection.calibration import Calibration
from haloae.detection.model_file import Header, Provenance, read_model, write_model
from haloae.errors import ConfigError, ImageError, MissingExtraError, ModelFileError

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "train") from error

from haloae.detection.held_out import measure_good, to_batch
from haloae.detection.maps import Usual, anomaly_map, image_score, residuals, resize_map
from haloae.network.haloae import HaloAE

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

    ImageLike = str | Path | Image | PILImage | NDArray[Any]

log = logging.getLogger(__name__)

BATCH = 8
"""Images scored at once."""
SIZE_TOLERANCE = 1.25
"""Images up to this many times larger or smaller than any in training are not remarked on."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a detector says of one image."""

    score: float
    """Higher is more anomalous; not negative."""
    p_value: float
    """Share of good images that score at least as high, see `Calibration.p_value`."""
    is_anomalous: bool
    """True: the score is above the detector's threshold."""
    extrapolated: bool
    """True: that threshold is a fit to the tail, made from too few good images."""
    anomaly_map: "NDArray[np.float32]"
    """(H, W) at the image's own size, on the scale of the pixel threshold."""
    defects: "NDArray[np.bool_]"
    """(H, W): True where the map is above the pixel threshold."""


class Detector:
    """A fitted network with its statistics of good images and its thresholds.

    Made by `fit` or `load`. Scoring one image does not depend on the others scored with it.
    """

    def __init__(
        self,
        *,
        config: Config,
        network: HaloAE,
        usual: Usual,
        calibration: Calibration,
        provenance: Provenance,
    ) -> None:
        self.config = config
        self.network = network.eval()
        self.usual = usual
        self.calibration = calibration
        self.provenance = provenance
        self._has_warned = False

    @classmethod
    def fit(
        cls,
        images: str | Path | Sequence[str | Path],
        *,
        preset: str = "default",
        config: Config | None = None,
        seed: int | None = None,
        device: str = "auto",
    ) -> "Detector":
        """Fit a detector to good images.

        Args:
            images: a folder (plain, or an MVTec-layout category) or a list of files.
            preset: ``paper``, ``default`` or ``fast``; `config` replaces it.
            config: every setting, for what a preset does not offer.
            seed: replaces the config's.
            device: ``auto``, ``cpu`` or ``cuda``.

        Raises:
            DataError: too few images that can be read.
            ConfigError: no such preset, or settings that do not fit.
            WeightsError: the backbone's weights cannot be had.
            TrainingError: a loss is not finite.
        """
        from haloae.data.folders import good_images
        from haloae.training.fit import fit_detector

        config = config or preset_named(preset)
        if seed is not None:
            config = config.replace(seed=seed)
        if isinstance(images, str | Path):
            name, paths = shown_path(Path(images).resolve().name), list(good_images(Path(images)))
        else:
            name, paths = "images", [Path(image) for image in images]
        fitted = fit_detector(paths, config, name=name, device=device)
        for error in fitted.skipped:
            log.warning("skipped: %s", error)
        return fitted.detector

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> "Detector":
        """Load a model file.

        Raises:
            ModelFileError: missing, truncated, tampered with, of a newer format, or not a model.
        """
        header, arrays = read_model(Path(path))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        network = HaloAE(header.config.network, image_size=header.config.image_size, weights=None)
        state = {
            name.removeprefix("network."): tensor
            for name, tensor in tensors.items()
            if name.startswith("network.")
        }
        try:
            network.load_state_dict(state)
            usual = Usual(
                tensors["usual.features"], tensors.get("usual.image"), header.usual_images
            )
        except (RuntimeError, KeyError) as error:
            raise ModelFileError(
                f"{path}: its tensors do not fit its configuration: train anew."
            ) from error
        detector = cls(
            config=header.config,
            network=network,
            usual=usual,
            calibration=header.calibration,
            provenance=header.provenance,
        )
        return detector.to(device)

    def save(self, path: str | Path) -> None:
        """Save as one model file, atomically.

        Raises:
            OutputError: the file cannot be written; what stood there before is untouched.
        """
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        tensors["usual.features"] = self.usual.features
        if self.usual.image is not None:
            tensors["usual.image"] = self.usual.image
        header = Header(
            config=self.config,
            calibration=self.calibration,
            usual_images=self.usual.images,
            provenance=self.provenance,
        )
        arrays = {name: t.detach().cpu().contiguous().numpy() for name, t in tensors.items()}
        write_model(Path(path), header, arrays)

    def to(self, device: str) -> "Detector":
        """Move to a device, ``auto``, ``cpu`` or ``cuda``, and return itself."""
        where = resolve_device(device)
        self.network.to(where)
        image = self.usual.image
        self.usual = Usual(
            self.usual.features.to(where),
            image if image is None else image.to(where),
            self.usual.images,
        )
        return self

    @overload
    def predict(self, images: "ImageLike") -> Prediction: ...
    @overload
    def predict(self, images: "list[Any] | tuple[Any, ...]") -> list[Prediction]: ...
    def predict(
        self, images: "ImageLike | list[Any] | tuple[Any, ...]"
    ) -> Prediction | list[Prediction]:
        """Score images and outline their defects.

        Args:
            images: a path, a PIL image or an array, (H, W) or (H, W, 3), uint8, uint16 or float in
                [0, 1]; a list of them gives a list.

        Raises:
            ImageError: an image cannot be scored; the message names it.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images])[0]
        found = []
        for result in self.stream(images):
            if isinstance(result, ImageError):
                raise result
            found.append(result)
        return found

    def stream(self, images: "Iterable[ImageLike]") -> Iterator[Prediction | ImageError]:
        """Predict one after the other, in constant memory.

        An image that cannot be scored gives its error, in its place, and the rest go on.
        """
        remaining = iter(images)
        while group := list(islice(remaining, BATCH)):
            read: list[Image | ImageError] = []
            for item in group:
                try:
                    read.append(image_from(item))
                except ImageError as error:
                    read.append(error)
            good = [image for image in read if isinstance(image, Image)]
            for image in good:
                self._warn_if_unlike(image)
            predictions = iter(self._predict_batch(good) if good else ())
            for entry in read:
                yield entry if isinstance(entry, ImageError) else next(predictions)

    def calibrated(
        self, images: Sequence[str | Path] | None = None, *, false_alarm_rate: float | None = None
    ) -> "Detector":
        """A detector with the same network and other thresholds.

        Args:
            images: good images, none of which it was fitted on: their statistics replace those
                it has; None keeps them.
            false_alarm_rate: in (0, 1); None keeps it.

        Raises:
            DataError: fewer than 4 images.
            ImageError: an image cannot be read.
            ConfigError: the rate is not in (0, 1).
        """
        rate = false_alarm_rate
        if rate is None:
            rate = self.config.detection.false_alarm_rate
        config = self.config.replace(detection={"false_alarm_rate": rate})
        usual, provenance = self.usual, self.provenance
        scores, peaks = self.calibration.scores, self.calibration.peaks
        if images is not None:
            size = config.image_size
            usual, scores, peaks = measure_good(
                self.network,
                lambda: (resize(image_from(image), size) for image in images),
                config.detection,
            )
            provenance = provenance.model_copy(update={"held_out": usual.images})
        return Detector(
            config=config,
            network=self.network,
            usual=usual,
            calibration=Calibration(scores=scores, peaks=peaks, false_alarm_rate=rate),
            provenance=provenance,
        )

    def _predict_batch(self, images: "list[Image]") -> list[Prediction]:
        size = self.config.image_size
        batch = to_batch([resize(image, size) for image in images], self.network)
        with torch.inference_mode():
            residual = residuals(self.network(batch), batch)
            anomaly = anomaly_map(residual, self.usual, self.config.detection)
            scores = image_score(anomaly, self.config.detection.top_share).tolist()
        calibration = self.calibration
        predictions = []
        for image, score, small in zip(images, scores, anomaly, strict=True):
            full = resize_map(small[None], (image.height, image.width))[0].cpu().numpy()
            predictions.append(
                Prediction(
                    score=score,
                    p_value=calibration.p_value(score),
                    is_anomalous=score > calibration.threshold.value,
                    extrapolated=calibration.extrapolated,
                    anomaly_map=full,
                    defects=full > calibration.pixel_threshold.value,
                )
            )
        return predictions

    def _warn_if_unlike(self, image: Image) -> None:
        """Say once that an image is not like those the detector was fitted on."""
        if self._has_warned:
            return
        kinds = self.provenance.images
        unlike = []
        if image.grey not in kinds.grey:
            unlike.append("is grey" if image.grey else "is in colour")
        if image.depth not in kinds.depths:
            unlike.append(f"has {image.depth} bits a channel")
        for name, size, (low, high) in (
            ("high", image.height, kinds.heights),
            ("wide", image.width, kinds.widths),
        ):
            if not low / SIZE_TOLERANCE <= size <= high * SIZE_TOLERANCE:
                unlike.append(f"is {size} pixels {name}")
        if unlike:
            self._has_warned = True
            log.warning(
                "an image %s, unlike any of the training images, so its score may mean little; "
                "this is said once.",
                " and ".join(unlike),
            )


def resolve_device(device: str) -> "torch.device":
    """Device of a name: ``auto`` is CUDA where there is one.

    Raises:
        ConfigError: CUDA is asked for and there is none, or no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"no device is called {device!r}: choose auto, cpu or cuda.")
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError("no CUDA device was found: use --device cpu or auto.")
    return torch.device("cuda" if has_cuda and device != "cpu" else "cpu")
