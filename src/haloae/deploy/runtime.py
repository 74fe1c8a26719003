"""Exported detectors, run by ONNX Runtime or OpenVINO: no torch is imported.

Everything but the arithmetic of the graph stands in the file's metadata, one JSON under the key
``haloae``, so that a threshold can be changed without exporting again.
"""

import json
import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError

from haloae._version import __version__
from haloae.claims import finish_writing
from haloae.config import Config, Precision, without_retired
from haloae.data.images import shown_path
from haloae.data.regions import Mask, Region
from haloae.data.views import WHITE, Size
from haloae.deploy.checks import (
    SEAL,
    TOLERANCE,
    UNSEALED,
    checked_outputs,
    known_image,
    known_of,
)
from haloae.deploy.engines import INPUT, Run, Session, Shapes, open_onnx, open_openvino
from haloae.detection.backend import Measured
from haloae.detection.calibration import Calibration, StatedCalibration, Threshold
from haloae.detection.guard import Guard
from haloae.detection.model_file import Provenance
from haloae.errors import ConfigError, ModelFileError

log = logging.getLogger(__name__)

FORMAT_VERSION: Literal[1] = 1
LABELS = ("normal", "anomalous")
SUFFIXES = (".onnx", ".xml")
InputType = Literal["float32", "uint8"]
ExportPrecision = Literal["float32", "int8"]


class Metadata(BaseModel):
    """What an exported file says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = FORMAT_VERSION
    package_version: str = __version__
    precision: ExportPrecision
    """Of the network's arithmetic."""
    input_type: InputType = "float32"
    """Of the pixels: float32 in [0, 1], or uint8."""
    seal: Annotated[str, Field(pattern=f"^{SEAL.pattern}$")] | None = None
    """See `haloae.deploy.checks`; None in files of before there were any."""
    image_size: PositiveInt
    """Side of the input, in pixels, where it is a square; see `canvas` of the config."""
    labels: tuple[str, str] = LABELS
    """Of a score up to the threshold, and above it."""
    threshold: NonNegativeFloat
    """A score above it makes an image anomalous."""
    pixel_threshold: NonNegativeFloat
    """A map value above it marks a defect."""
    fitted_threshold: NonNegativeFloat | None = None
    """What `threshold` was when it was exported; None in files that do not say."""
    fitted_pixel_threshold: NonNegativeFloat | None = None
    config: Config
    calibration: Calibration
    provenance: Provenance
    guard: Guard | None = None
    """What good images look like as a whole; None in files from before there was one."""
    region: Region | None = None
    """Which pixels of every image count, as the graph has it too; None: all do."""

    def stated(self, value: float, fitted: float | None) -> Threshold:
        """A threshold of the file: no fit to a tail where someone has set another since."""
        calibration = self.calibration
        is_fit = len(calibration.scores) < calibration.images_needed
        return Threshold(value, extrapolated=is_fit and fitted in (None, value))


class Runtime:
    """The backend that runs an exported graph, on the CPU, in as many threads as call it.

    Args:
        metadata: of the file.
        run: (B, 3, S, S) → the outputs, in the order of `OUTPUTS`.
        name: what computes, with its version, and in which precision.
        source: the file, as it is named in messages.
    """

    def __init__(self, metadata: Metadata, run: Run, name: str, *, source: str) -> None:
        self.metadata = metadata
        self.run = run
        self.name = name
        self.source = source
        self.takes: Size | None = metadata.config.canvas

    @cached_property
    def calibration(self) -> Calibration:
        """The thresholds that the file states."""
        metadata = self.metadata
        return StatedCalibration(
            **metadata.calibration.model_dump(),
            stated_threshold=metadata.stated(metadata.threshold, metadata.fitted_threshold),
            stated_pixel_threshold=metadata.stated(
                metadata.pixel_threshold, metadata.fitted_pixel_threshold
            ),
        )

    def measure(self, images: NDArray[np.float32], inside: Mask | None = None) -> Measured:
        """See `Backend.measure`.

        Raises:
            ModelFileError: the graph cannot be run, or its outputs are not those of a model; or
                there are masks of single images, which it does not take.
        """
        if inside is not None:
            raise ModelFileError(
                f"{self.source}: an exported model takes no masks of single images: use the "
                f"model.safetensors it was exported from."
            )
        outputs = self.run(as_input(images, self.metadata.input_type))
        count = len(images)
        shapes = [(count,), (count,), (count, *self.metadata.config.grid)]
        return checked_outputs(self.source, outputs, shapes)

    def check_known(self, precision: Precision) -> None:
        """Run the image that the seal knows, where it knows one.

        Args:
            precision: of what the file has in float32.

        Raises:
            ModelFileError: the graph says something else of it than where it was exported.
        """
        known = known_of(self.metadata.seal or UNSEALED)
        if not any(known):
            return
        score, anomaly_map = self.measure(known_image(self.metadata.config.canvas)[None])
        within = precision if self.metadata.precision == "float32" else self.metadata.precision
        usual = self.metadata.calibration
        for found, told, highest in (
            (float(score[0]), known.score, usual.scores[-1]),
            (float(anomaly_map.max()), known.peak, usual.peaks[-1]),
        ):
            if not abs(found - told) <= TOLERANCE[within] * max(told, highest):
                raise ModelFileError(
                    f"{self.source}: computes {found:.6g} where {told:.6g} is right "
                    f"({self.name}): install another version of the runtime, or export again."
                )


def as_input(images: NDArray[np.float32], input_type: InputType) -> NDArray[Any]:
    """Pixels in [0, 1] as a model takes them; 8-bit images lose nothing in uint8."""
    if input_type == "uint8":
        return np.rint(images * WHITE).astype(np.uint8)
    return np.ascontiguousarray(images)


def is_exported(path: Path) -> bool:
    """True: the path's suffix is that of an exported model."""
    return path.suffix.lower() in SUFFIXES


def open_runtime(
    path: str | Path,
    *,
    device: str = "auto",
    precision: Precision = "float32",
    threads: int | None = None,
    streams: int = 1,
) -> Runtime:
    """Load an exported model: .onnx for ONNX Runtime, .xml, beside its .bin, for OpenVINO.

    Args:
        path: the file.
        device: ``auto`` or ``cpu``, which are the same.
        precision: of what the file has in float32; ``bfloat16`` is OpenVINO's alone.
        threads: CPU threads; None leaves it to the runtime.
        streams: calls that go on side by side, and share the threads.

    Raises:
        ModelFileError: missing, damaged, of another kind, or not exported by haloae.
        ConfigError: another device, or bfloat16 where it cannot be had.
        MissingExtraError: the runtime is not installed.
    """
    path = Path(path)
    if device not in ("auto", "cpu"):
        raise ConfigError(f"exported models run on the CPU, not on {device}: use --device cpu.")
    if not is_exported(path):
        raise ModelFileError(f"{shown_path(path)}: not an exported model: give an .onnx or .xml.")
    finish_writing(path)
    if not os.path.isfile(path):  # noqa: PTH113 - pathlib raises on names that are too long
        raise ModelFileError(
            f"{shown_path(path)}: no such exported model; `haloae export` writes one."
        )
    source = shown_path(path)
    if path.suffix.lower() == ".xml":
        session = open_openvino(path, precision, threads, streams)
    elif precision != "float32":
        raise ConfigError(
            f"{source}: ONNX Runtime computes it in float32: leave --precision out, or export for "
            f"openvino."
        )
    else:
        session = open_onnx(path, threads, streams)
    metadata = _parse(path, session.text)
    _check_shapes(path, metadata, session)
    within = precision if metadata.precision == "float32" else f"{metadata.precision}, {precision}"
    runtime = Runtime(metadata, session.run, f"{session.name}, {within}", source=source)
    if metadata.seal is None:
        log.warning("%s: has no seal, so damage would go unnoticed: export it again.", source)
    runtime.check_known(precision)
    return runtime


def _parse(path: Path, text: str | None) -> Metadata:
    name = shown_path(path)
    if text is None:
        raise ModelFileError(
            f"{name}: not a model of haloae (it has no metadata of that name): give a file that "
            f"`haloae export` wrote."
        )
    try:
        metadata = Metadata.model_validate(_stored(json.loads(text)))
    except ConfigError as error:
        raise ModelFileError(f"{name}: {error}") from error
    except (TypeError, ValueError, RecursionError) as error:
        where = ""
        if isinstance(error, ValidationError):
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
        at = f" at {where}" if where else ""
        raise ModelFileError(
            f"{name}: its metadata is not valid{at} for haloae {__version__}: correct it or export "
            f"again."
        ) from error
    if metadata.image_size != metadata.config.image_size:
        raise ModelFileError(
            f"{name}: its metadata gives two image sizes, {metadata.image_size} and "
            f"{metadata.config.image_size}: export again."
        )
    return metadata


def _stored(values: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """Metadata as it stands in a file, less what has gone since."""
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        return values | {"config": without_retired(values["config"])}
    return values


def _check_shapes(path: Path, metadata: Metadata, session: Session) -> None:
    height, width = metadata.config.canvas
    wanted: Shapes = {"score": [], "p_value": [], "anomaly_map": [*metadata.config.grid]}
    inputs, found = (
        {name: shape[1:] for name, shape in side.items()}
        for side in (session.inputs, session.outputs)
    )
    has_fixed_batch = any(isinstance(shape[0], int) for shape in session.inputs.values() if shape)
    if (
        has_fixed_batch
        or session.types != {metadata.input_type}
        or inputs != {INPUT: [3, height, width]}
        or any(found.get(name) != shape for name, shape in wanted.items())
    ):
        raise ModelFileError(
            f"{shown_path(path)}: its inputs and outputs are not those of a haloae model of "
            f"{height}×{width} pixels in {metadata.input_type} and any batch: export again."
        )
