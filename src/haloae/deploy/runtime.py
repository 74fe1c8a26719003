"""Exported detectors, run by ONNX Runtime or OpenVINO: no torch is imported.

Everything but the arithmetic of the graph stands in the file's metadata, one JSON under the key
``haloae``, so that a threshold can be changed without exporting again.
"""

import json
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt, ValidationError

from haloae._version import __version__
from haloae.claims import finish_writing
from haloae.config import Config, Precision, without_retired
from haloae.data.images import shown_path
from haloae.data.views import WHITE
from haloae.detection.calibration import Calibration, Threshold
from haloae.detection.guard import Guard
from haloae.detection.model_file import Provenance
from haloae.detection.predictor import Measured
from haloae.errors import ConfigError, MissingExtraError, ModelFileError

FORMAT_VERSION: Literal[1] = 1
METADATA_KEY = "haloae"
INPUT = "image"
OUTPUTS = ("score", "p_value", "anomaly_map")
LABELS = ("normal", "anomalous")
SUFFIXES = (".onnx", ".xml")
PRECISION_HINT = "INFERENCE_PRECISION_HINT"
ONE_LINE = 120
"""Characters of a runtime's own message that are shown."""
InputType = Literal["float32", "uint8"]
ExportPrecision = Literal["float32", "int8"]
ONNX_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
Run = Callable[[NDArray[Any]], Sequence[NDArray[Any]]]


class Metadata(BaseModel):
    """What an exported file says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = FORMAT_VERSION
    package_version: str = __version__
    precision: ExportPrecision
    """Of the network's arithmetic."""
    input_type: InputType = "float32"
    """Of the pixels: float32 in [0, 1], or uint8."""
    image_size: PositiveInt
    """Side of the input, in pixels."""
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

    def stated(self, value: float, fitted: float | None) -> Threshold:
        """A threshold of the file: no fit to a tail where someone has set another since."""
        calibration = self.calibration
        is_fit = len(calibration.scores) < calibration.images_needed
        return Threshold(value, extrapolated=is_fit and fitted in (None, value))


class StatedCalibration(Calibration):
    """A calibration whose thresholds are those the file states, changed or not."""

    stated_threshold: Threshold
    stated_pixel_threshold: Threshold

    @cached_property
    def threshold(self) -> Threshold:
        """A score above it makes an image anomalous."""
        return self.stated_threshold

    @cached_property
    def pixel_threshold(self) -> Threshold:
        """A map value above it marks a defect."""
        return self.stated_pixel_threshold


class Runtime:
    """The backend that runs an exported graph, on the CPU.

    Args:
        metadata: of the file.
        run: (B, 3, S, S) → the outputs, in the order of `OUTPUTS`.
        name: what computes, with its version, and in which precision.
    """

    def __init__(self, metadata: Metadata, run: Run, name: str) -> None:
        self.metadata = metadata
        self.run = run
        self.name = name

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

    def measure(self, images: NDArray[np.float32]) -> Measured:
        """See `Backend.measure`."""
        scores, _, maps = self.run(as_input(images, self.metadata.input_type))
        return Measured(scores, maps)


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
) -> Runtime:
    """Load an exported model: .onnx for ONNX Runtime, .xml, beside its .bin, for OpenVINO.

    Args:
        path: the file.
        device: ``auto`` or ``cpu``, which are the same.
        precision: of what the file has in float32; ``bfloat16`` is OpenVINO's alone.
        threads: CPU threads; None leaves it to the runtime.

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
    if path.suffix.lower() == ".xml":
        return _load_openvino(path, precision, threads)
    if precision != "float32":
        raise ConfigError(
            f"{shown_path(path)}: ONNX Runtime computes it in float32: leave --precision out, or "
            f"export for openvino."
        )
    return _load_onnx(path, threads)


def _load_onnx(path: Path, threads: int | None) -> Runtime:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised as well
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    except Exception as error:  # its errors share no other base
        raise _unreadable(path, "ONNX", error) from error
    metadata = _parse(path, text)
    _check_shapes(
        path,
        metadata,
        {value.name: list(value.shape) for value in session.get_inputs()},
        {value.name: list(value.shape) for value in session.get_outputs()},
        types={ONNX_TYPES.get(value.type, value.type) for value in session.get_inputs()},
    )

    def run(images: NDArray[Any]) -> Sequence[NDArray[Any]]:
        outputs: Sequence[NDArray[Any]] = session.run(list(OUTPUTS), {INPUT: images})
        return outputs

    engine = f"onnxruntime {onnxruntime.__version__}, {metadata.precision}"
    return Runtime(metadata, run, engine)


def _load_openvino(path: Path, precision: Precision, threads: int | None) -> Runtime:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino") from error

    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelFileError(
            f"{shown_path(path)}: {weights.name} is not beside it: copy both files of the export."
        )
    # Always said: on some processors the default is bfloat16.
    hint = "bf16" if precision == "bfloat16" else "f32"
    options: dict[str, Any] = {PRECISION_HINT: hint}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    try:
        model = core.read_model(os.fspath(path), os.fspath(weights))
        text = None
        if model.has_rt_info([METADATA_KEY]):
            text = model.get_rt_info([METADATA_KEY]).astype(str)
    except Exception as error:  # its errors share no other base
        raise _unreadable(path, "OpenVINO", error) from error
    metadata = _parse(path, text)
    try:
        ports = [
            {port.get_any_name(): _sides(port.get_partial_shape()) for port in side}
            for side in (model.inputs, model.outputs)
        ]
        types = {port.get_element_type().to_dtype().name for port in model.inputs}
        _check_shapes(path, metadata, *ports, types=types)
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise _unreadable(path, "OpenVINO", error) from error
    if precision == "bfloat16" and compiled.get_property(PRECISION_HINT) != openvino.Type.bf16:
        raise ConfigError("this processor has no bfloat16 for OpenVINO: leave --precision out.")
    outputs = [compiled.output(name) for name in OUTPUTS]

    def run(images: NDArray[Any]) -> Sequence[NDArray[Any]]:
        results = compiled(images)
        return [results[output].copy() for output in outputs]

    within = precision if metadata.precision == "float32" else f"{metadata.precision}, {precision}"
    engine = f"openvino {openvino.__version__.partition('-')[0]}, {within}"
    return Runtime(metadata, run, engine)


def _sides(shape: Any) -> list[int | None]:  # noqa: ANN401 - OpenVINO's PartialShape
    return [side.get_length() if side.is_static else None for side in shape]


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
    except (TypeError, ValueError) as error:
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


def _check_shapes(
    path: Path,
    metadata: Metadata,
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    *,
    types: set[str],
) -> None:
    size = metadata.image_size
    grid = size // metadata.config.network.stride
    wanted = {"score": [], "p_value": [], "anomaly_map": [grid, grid]}
    found = {name: shape[1:] for name, shape in outputs.items()}
    has_fixed_batch = any(isinstance(shape[0], int) for shape in inputs.values() if shape)
    if (
        has_fixed_batch
        or types != {metadata.input_type}
        or {name: shape[1:] for name, shape in inputs.items()} != {INPUT: [3, size, size]}
        or any(found.get(name) != shape for name, shape in wanted.items())
    ):
        raise ModelFileError(
            f"{shown_path(path)}: its inputs and outputs are not those of a haloae model of "
            f"{size}² pixels in {metadata.input_type} and any batch: export again."
        )


def _unreadable(path: Path, kind: str, error: Exception) -> ModelFileError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines[-1] if lines else type(error).__name__)[:ONE_LINE].rstrip(".: ")
    return ModelFileError(
        f"{shown_path(path)}: not a model that {kind} can read ({reason}): copy or export it again."
    )
