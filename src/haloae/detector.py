"""`Detector`: fit on good images, predict, save, load."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from haloae.config import Config, Precision
from haloae.data.images import image_from, shown_path
from haloae.data.views import resize
from haloae.detection.calibration import Calibration
from haloae.detection.model_file import Header, Provenance, read_model, write_model
from haloae.detection.predictor import Measured, Predictor
from haloae.detection.predictor import Prediction as Prediction
from haloae.errors import ConfigError, MissingExtraError, ModelFileError
from haloae.presets import preset as preset_named

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "train") from error

from haloae.detection.good import measure_good, to_batch
from haloae.detection.maps import Usual, anomaly_map, image_score, residuals
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean

log = logging.getLogger(__name__)


class Detector(Predictor):
    """A fitted network with its statistics of good images and its thresholds.

    Made by `fit` or `load`.
    """

    def __init__(
        self,
        *,
        config: Config,
        network: HaloAE,
        usual: Usual,
        calibration: Calibration,
        provenance: Provenance,
        precision: Precision = "float32",
    ) -> None:
        self.config = config
        self.network = network.eval()
        self.usual = usual
        self.calibration = calibration
        self.provenance = provenance
        self.precision = precision
        self.engine = f"torch {torch.__version__}, {precision}"

    @cached_property
    def lean(self) -> HaloAE:
        """The network as it is used: with what the map needs, in the detector's precision.

        Made once, of the network as it then is.
        """
        needs_image = self.config.detection.image_weight > 0
        return lean(self.network, image=needs_image, dtype=getattr(torch, self.precision))

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
    def load(
        cls, path: str | Path, *, device: str = "auto", precision: Precision = "float32"
    ) -> "Detector":
        """Load a model file.

        Args:
            path: of the file.
            device: ``auto``, ``cpu`` or ``cuda``.
            precision: of the network's arithmetic. ``bfloat16`` is faster where the processor has
                it, and moves scores by about a hundredth of themselves (docs/cost.md).

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
            precision=precision,
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
        self.__dict__.pop("lean", None)
        image = self.usual.image
        self.usual = Usual(
            self.usual.features.to(where),
            image if image is None else image.to(where),
            self.usual.images,
        )
        return self

    def measure(self, images: NDArray[np.float32]) -> Measured:
        """Scores and maps of resized images, see `Predictor.measure`."""
        batch = to_batch(list(images), self.network)
        with torch.inference_mode():
            output = self.lean(batch.to(getattr(torch, self.precision)))
            residual = residuals(output, batch)
            anomaly = anomaly_map(residual, self.usual, self.config.detection)
            scores = image_score(anomaly, self.config.detection.top_share)
        return Measured(scores.cpu().numpy(), anomaly.cpu().numpy())

    def calibrated(
        self, images: Sequence[str | Path] | None = None, *, false_alarm_rate: float | None = None
    ) -> "Detector":
        """A detector with the same network and other thresholds.

        Args:
            images: good images, none of which it was fitted on: their statistics replace those
                it has; None keeps them.
            false_alarm_rate: in (0, 1); None keeps it.

        The statistics are those of float32, whatever the detector's precision.

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
            precision=self.precision,
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
