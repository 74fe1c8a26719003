"""A fitted detector as one graph, from pixels to score, p-value and map: ONNX or OpenVINO."""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from haloae.claims import finish_writing, write_together
from haloae.data.images import read_image
from haloae.data.regions import EACH
from haloae.data.views import View, pieces
from haloae.deploy.checks import UNSEALED, Known, known_image, seal
from haloae.deploy.engines import INPUT, METADATA_KEY, OUTPUTS
from haloae.deploy.parity import COMPARED, Parity, compare, textures
from haloae.deploy.quantise import quantised
from haloae.deploy.runtime import (
    ExportPrecision,
    InputType,
    Metadata,
    as_input,
    open_runtime,
)
from haloae.detector import Detector
from haloae.errors import ConfigError, ExportError, MissingExtraError, OutputError

if TYPE_CHECKING:
    import onnx

QUANTISED_ON = 128
"""Good images that int8 takes its ranges from, at most."""


class Export(NamedTuple):
    """A format that a detector can be exported to."""

    suffixes: tuple[str, ...]
    """Of its files; the one that is looked for comes first."""
    tolerance: float
    """Largest relative difference between its scores and maps and the detector's."""
    write: Callable[["onnx.ModelProto", Metadata, NDArray[np.float32], Path], None]
    """Writes the files: from the graph, what is to be said of it, images as the network takes
    them, and the path of the first file."""
    precision: ExportPrecision = "float32"


EXPORTS: dict[str, Export] = {}
"""By the name that `haloae export --format` has."""


def register_export(name: str, export: Export) -> None:
    """Put a format into the table, under a name of its own."""
    EXPORTS[name] = export


def export_named(name: str) -> Export:
    """The format of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in EXPORTS:
        raise ConfigError(f"no export is called {name!r}: choose one of {', '.join(EXPORTS)}.")
    return EXPORTS[name]


def export_model(
    detector: Detector,
    path: Path,
    *,
    format: str,
    good: Sequence[Path] = (),
    input_type: InputType = "float32",
    overwrite: bool = False,
    threads: int | None = None,
) -> Parity:
    """Export a detector, run the export on images, and write it where it agrees.

    Args:
        detector: native; it stays on its device, what is exported is a copy on the CPU.
        path: .onnx, or .xml, beside which a .bin is written.
        format: which runtime it is for, and in which arithmetic.
        good: good images, to compare on, without any, on seeded textures and noise; for int8, to
            take the ranges of activations from, at least one.
        input_type: of the pixels that the export takes.
        overwrite: True: replace what stands at `path`.
        threads: CPU threads of the runtime; None leaves it to the runtime.

    Raises:
        ConfigError: no such format, a suffix that is not its own, int8 without good images, or a
            detector whose images come with masks of their own.
        ImageError: one of the good images cannot be read.
        OutputError: `path` exists, or cannot be written.
        ExportError: the network cannot be exported, or the export differs from it.
        MissingExtraError: a package is not installed.
    """
    check_target(path, format=format, overwrite=overwrite)
    export = export_named(format)
    is_int8 = export.precision == "int8"
    if is_int8 and not good:
        raise ConfigError("int8 takes its ranges from good images: give a folder with --good.")
    canvas = detector.config.canvas
    _check_region(detector)
    images = _inputs(good, detector.view, QUANTISED_ON if is_int8 else COMPARED)
    if not len(images):
        if is_int8:
            raise ConfigError(
                f"none of the good images is seen at {canvas[1]}×{canvas[0]} pixels, which the "
                f"export takes: give images of the shape that the detector was fitted to."
            )
        images = textures(canvas)
    detector = detector.calibrated().to("cpu")
    model = _to_onnx(detector, input_type)
    with tempfile.TemporaryDirectory(prefix="haloae-export-") as folder:
        made = Path(folder) / f"model{export.suffixes[0]}"
        export.write(model, _metadata(detector, export.precision, input_type), images, made)
        seal(made)
        runtime = open_runtime(made, threads=threads)
        parity = compare(detector, runtime, images[:COMPARED])
        if not (parity.score <= export.tolerance and parity.map <= export.tolerance):
            raise ExportError(
                f"{path}: not written: the export differs from the detector by "
                f"{parity.score:.1e} in the score and {parity.map:.1e} in the map, and "
                f"{export.tolerance:g} is allowed: {_way_out(is_int8)}."
            )
        said = runtime.measure(known_image(canvas)[None])
        seal(made, Known(float(said.scores[0]), float(said.maps.max())))
        write_together(
            {path.with_suffix(s): made.with_suffix(s).read_bytes() for s in export.suffixes}
        )
    return parity


def _check_region(detector: Detector) -> None:
    """Refuse masks that a graph cannot hold.

    Raises:
        ConfigError: each image has its own, or the graph takes tiles, wherever they are.
    """
    if detector.region == EACH:
        raise ConfigError(
            "its images come with masks of their own, and an exported model takes none: export a "
            "model that was fitted with one mask for all."
        )
    if detector.region is not None and detector.view.kind == "tiles":
        raise ConfigError(
            "an exported model takes single tiles, which do not know where in the image's region "
            "they are: export a model that was fitted with view.kind fit or squash."
        )


def _inputs(good: Sequence[Path], view: View, most: int) -> NDArray[np.float32]:
    """What the graph would be given of good images: (n, 3, H, W) of the canvas, n at most so many.

    Evenly spread, since names are often in the order of recording. Fitted images of other shapes
    are left out, as the graph does not take them.

    Raises:
        ImageError: one of the images cannot be read.
    """
    most_images = min(len(good), most)
    found: list[NDArray[np.float32]] = []
    for i in range(most_images):
        shown = view.show(read_image(good[i * len(good) // most_images]))
        tiles = [pixels for _, pixels in pieces(shown, view)] if view.kind == "tiles" else [shown]
        found += tiles[: -(-most // most_images)]
    fitting = [pixels for pixels in found if pixels.shape[1:] == view.canvas][:most]
    return np.stack(fitting) if fitting else np.empty((0, 3, *view.canvas), np.float32)


def _way_out(is_int8: bool) -> str:
    return "give more good images, or another format" if is_int8 else "please report it"


def check_target(path: Path, *, format: str, overwrite: bool) -> None:
    """Refuse a name that does not fit the format, and files that stand there.

    Raises:
        ConfigError: there is no such format, or the suffix is not its own.
        OutputError: there is a file, and `overwrite` is False.
    """
    suffix, *others = export_named(format).suffixes
    if path.suffix != suffix:
        raise ConfigError(f"{path}: a file of format {format} must end in {suffix}.")
    finish_writing(path)
    for file in (path, *map(path.with_suffix, others)):
        if os.path.lexists(file) and (file.is_dir() or not overwrite):
            raise OutputError(f"{file}: exists: give --overwrite, or choose another --out.")


def _metadata(detector: Detector, precision: ExportPrecision, input_type: InputType) -> Metadata:
    calibration = detector.calibration
    return Metadata(
        precision=precision,
        input_type=input_type,
        seal=UNSEALED,
        image_size=detector.config.image_size,
        threshold=calibration.threshold.value,
        pixel_threshold=calibration.pixel_threshold.value,
        fitted_threshold=calibration.fitted_threshold,
        fitted_pixel_threshold=calibration.fitted_pixel_threshold,
        config=detector.config,
        calibration=calibration,
        provenance=detector.provenance,
        guard=detector.guard,
        region=detector.stored_region,
    )


def _to_onnx(detector: Detector, input_type: InputType) -> "onnx.ModelProto":
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtraError(package, "train", error) from error
    height, width = detector.config.canvas
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                detector.native.scorer_for(torch.float32, detector.calibration.scores),
                # Of two: a batch of one would be taken for a constant.
                (torch.zeros(2, 3, height, width, dtype=getattr(torch, input_type)),),
                dynamo=True,
                external_data=False,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=1024)}},
                verbose=False,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(f"torch cannot export this network ({reason}): please report it.") from (
            error
        )
    finally:
        logger.setLevel(level)
    assert program is not None  # noqa: S101 - with dynamo it never is
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    return model


def _strip(model: "onnx.ModelProto") -> None:
    """Leave out where in which source file each node comes from: it names this machine's paths."""
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
    for part in (model, graph):
        del part.metadata_props[:]


def _write_onnx(
    model: "onnx.ModelProto", metadata: Metadata, images: NDArray[np.float32], path: Path
) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata.model_dump_json()
    path.write_bytes(model.SerializeToString())


def _write_openvino(
    model: "onnx.ModelProto", metadata: Metadata, images: NDArray[np.float32], path: Path
) -> None:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino", error) from error

    source = path.with_suffix(".onnx")
    source.write_bytes(model.SerializeToString())
    # Not `convert_model`, which reports what it is used for to its maker.
    converted = openvino.Core().read_model(source)
    if metadata.precision == "int8":
        converted = quantised(converted, as_input(images, metadata.input_type))
    converted.set_rt_info(metadata.model_dump_json(), [METADATA_KEY])
    # Halving the weights' precision is for those who ask for it.
    openvino.save_model(converted, path, compress_to_fp16=False)


register_export("onnx", Export((".onnx",), tolerance=1e-3, write=_write_onnx))
register_export("openvino", Export((".xml", ".bin"), tolerance=1e-3, write=_write_openvino))
register_export(
    "openvino-int8",
    Export((".xml", ".bin"), tolerance=0.3, write=_write_openvino, precision="int8"),
)
