"""Model files and exports as nobody should write them: seeded mutators, small exports to mutate.

For any test that wants to break something.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import load, save

from haloae.config import Config
from haloae.data.source import ImageKinds
from haloae.deploy.checks import UNSEALED, Known, known_image, seal
from haloae.deploy.engines import METADATA_KEY
from haloae.deploy.export import export_named
from haloae.deploy.runtime import Metadata, open_runtime
from haloae.detection.calibration import Calibration
from haloae.detection.model_file import CHECKSUM, HEADER_KEY, Provenance

Values = dict[str, Any]
Tensors = dict[str, NDArray[Any]]
Change = Callable[[Values, Tensors], None]
NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 255, 2**31, 2**63, 2**64, 10**30, 10**400),
    *(0.5, -0.0, 5e-324, 1e-12, 1e38, 1e308),
)
HOSTILE: tuple[Any, ...] = (
    *NUMBERS,
    *(None, True, "", "nan", "\0", "x" * 5000, [], {}, [[]], [0], [1.0] * 5, {"a": 1}),
)
"""What stands in the place of a value."""

TINY = """\
preset = "autoencoder"
image_size = 32
[network]
trunk = "tiny"
reduced_channels = 8
head_channels = 8
encoder = [{channels = 8}]
decoder = [{}]
[training]
steps = 4
batch_size = 2
"""
"""Settings of a network that is fitted in a moment, as a command takes them."""


# Bytes


def flipped(data: bytes, rng: np.random.Generator, bits: int = 1, start: int = 0) -> bytes:
    """With some bits the other way, from a byte on."""
    damaged = bytearray(data)
    for place in rng.integers(start, len(data), bits):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


# Native model files


def opened(data: bytes) -> tuple[Values, Tensors]:
    """The header's values and the tensors of a model file."""
    (length,) = struct.unpack("<Q", data[:8])
    text = json.loads(data[8 : 8 + length])["__metadata__"][HEADER_KEY]
    return json.loads(text), {name: array.copy() for name, array in load(data).items()}


def closed(values: Values, tensors: Mapping[str, NDArray[Any]], text: str = "") -> bytes:
    """A model file of these, its checksum right; `text` stands in the place of the values."""
    rest = {key: value for key, value in values.items() if key != CHECKSUM}
    sha = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    text = text or json.dumps(rest | {CHECKSUM: sha.hexdigest()})
    return bytes(save(dict(tensors), metadata={HEADER_KEY: text}))


def changed(data: bytes, change: Change) -> bytes:
    """The file with its values and tensors changed, and its checksum made anew."""
    values, tensors = opened(data)
    change(values, tensors)
    return closed(values, tensors)


def leaves(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401
    """Where the single values of nested ones are; of a list, the first and the list."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    elif isinstance(values, list) and values:
        yield path
        yield from leaves(values[0], (*path, 0))
    else:
        yield path


def put(values: Any, path: tuple[Any, ...], value: object) -> None:  # noqa: ANN401 - any JSON
    """Set a value where `leaves` found one."""
    *way, last = path
    for key in way:
        values = values[key]
    values[last] = value


def hostile_headers(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Files of which one value of the header is another, and what was changed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        values, tensors = opened(data)
        places = [path for path in leaves(values) if path[0] != CHECKSUM]
        path, value = places[rng.integers(len(places))], HOSTILE[rng.integers(len(HOSTILE))]
        put(values, path, value)
        yield f"{'.'.join(map(str, path))} = {value!r:.40}", closed(values, tensors)


def retyped(name: str, dtype: str) -> Change:
    """A tensor in another type, its values cast."""

    def change(_: Values, tensors: Tensors) -> None:
        tensors[name] = tensors[name].astype(dtype)

    return change


def filled(name: str, value: float, places: int = 1) -> Change:
    """A tensor with some of its values replaced."""

    def change(_: Values, tensors: Tensors) -> None:
        tensors[name].flat[:places] = value

    return change


def reshaped(name: str, shape: tuple[int, ...]) -> Change:
    """A tensor's first values in another shape."""

    def change(_: Values, tensors: Tensors) -> None:
        tensors[name] = np.resize(tensors[name], shape)

    return change


def renamed(name: str, new: str | None) -> Change:
    """A tensor under another name; None: gone."""

    def change(_: Values, tensors: Tensors) -> None:
        array = tensors.pop(name)
        if new is not None:
            tensors[new] = array

    return change


# Exports


def metadata_of(config: Config, **changes: Any) -> Metadata:  # noqa: ANN401 - of any field
    """What an export of a config could say of itself."""
    ladder = (0.1, 0.2, 0.3, 0.4)
    values: Values = {
        "precision": "float32",
        "image_size": config.image_size,
        "threshold": 0.5,
        "pixel_threshold": 0.5,
        "config": config,
        "calibration": Calibration(scores=ladder, peaks=ladder, false_alarm_rate=0.2),
        "provenance": Provenance(
            data="made up",
            fitted_on=4,
            held_out=0,
            skipped=0,
            steps=0,
            backbone="none",
            backbone_sha256="",
            images=ImageKinds(grey=(False,), depths=(8,), heights=(40, 40), widths=(40, 40)),
        ),
        "seal": UNSEALED,
    }
    return Metadata(**values | changes)


def small_graph(config: Config, *last: onnx.NodeProto) -> onnx.ModelProto:
    """Scores that are means of weighted cells, without a network: milliseconds to make and to run.

    Args:
        config: of image size and stride.
        last: nodes from "means" (B,), "ones" (B,) and "cells" (B, h, w) to "score", "p_value" and
            "anomaly_map"; none: as they are.
    """
    size, stride = config.image_size, config.network.stride
    side = size // stride
    batch = helper.make_tensor_value_info
    weights = np.random.default_rng(0).random((1, 3, stride, stride), np.float32)
    constants = {
        "weights": weights / weights.sum(),
        "axis": np.array([1]),
        "axes": np.array([1, 2]),
    }
    ends = {"means": "score", "ones": "p_value", "cells": "anomaly_map"}
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["grid"], strides=[stride] * 2),
        helper.make_node("Squeeze", ["grid", "axis"], ["signed"]),
        helper.make_node("Abs", ["signed"], ["cells"]),
        helper.make_node("ReduceMean", ["cells", "axes"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "means"], ["ones"]),
        *(last or [helper.make_node("Identity", [a], [b]) for a, b in ends.items()]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [batch("image", TensorProto.FLOAT, ["batch", 3, size, size])],
        [
            batch("score", TensorProto.FLOAT, ["batch"]),
            batch("p_value", TensorProto.FLOAT, ["batch"]),
            batch("anomaly_map", TensorProto.FLOAT, ["batch", side, side]),
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def small_export(
    path: Path,
    config: Config,
    graph: onnx.ModelProto | None = None,
    *,
    known: Known | None = None,
    **changes: Any,  # noqa: ANN401 - of any field of the metadata
) -> Path:
    """A sealed .onnx, or .xml and .bin, of `small_graph` or another graph.

    Args:
        path: of the file; its suffix says for which runtime.
        config: as in `small_graph`.
        graph: None: the sound one.
        known: what its seal says of the known image; None: what the graph says, if it is sound.
        changes: of the metadata.
    """
    model = graph or small_graph(config)
    size = config.image_size
    images = np.zeros((1, 3, size, size), np.float32)
    kind = "openvino" if path.suffix == ".xml" else "onnx"
    export_named(kind).write(model, metadata_of(config, **changes), images, path)
    if kind == "openvino":
        path.with_suffix(".onnx").unlink()  # which it was made from
    if changes.get("seal", UNSEALED) is None:
        return path
    seal(path, known)
    if graph is None and known is None:
        said = open_runtime(path).measure(known_image((size, size))[None])
        seal(path, Known(float(said.scores[0]), float(said.maps.max())))
    return path


def with_text(path: Path, old: str, new: str) -> Path:
    """Metadata of a small .onnx with some of its text replaced, sealed anew."""
    model = onnx.load(path)
    (text,) = (entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)
    helper.set_model_props(model, {METADATA_KEY: text.replace(old, new)})
    onnx.save(model, path)
    seal(path)
    return path
