"""Tensors of the Open Inference Protocol V2, as JSON and as bytes behind it."""

import base64
import binascii
import json
import math
import struct
from collections.abc import Sequence
from threading import BoundedSemaphore
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from haloae.data.limits import current_limits
from haloae.server.inspection import Given
from haloae.server.inspector import Finished
from haloae.server.problems import RefusedError

HEADER_LENGTH = "inference-header-content-length"
"""Header: bytes of the JSON, where tensors follow it."""
SIZE = "binary_data_size"
MOST_JSON = 2**24
"""Bytes; as lists they take ten times as many."""
_PARSING = BoundedSemaphore(2)
"""For the same reason."""
INPUT = "image"
SEVERAL_SIZES = (
    "the maps are of several sizes, as the images are, or as the model was just replaced: ask "
    "again, for one image at a time."
)
OUTPUTS = {
    "score": ("FP32", [-1]),
    "p_value": ("FP32", [-1]),
    "verdict": ("BYTES", [-1]),
    "reason": ("BYTES", [-1]),
    "boxes": ("BYTES", [-1]),
    "inspection": ("BYTES", [-1]),
    "anomaly_map": ("FP32", [-1, -1, -1]),
}
"""What is said of each image, with datatype and shape; `boxes` are JSON, `reason` may be empty."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    parameters: dict[str, Any] = {}


class InputTensor(_Part):
    """Images: pixels in UINT8, (n, H, W, 3) RGB or (H, W, 3); or whole files in BYTES, (n)."""

    name: str
    datatype: str
    shape: tuple[StrictInt, ...] = Field(max_length=4)
    data: Any = None
    """Nested or flat; of BYTES, files in base64. None: it follows the JSON."""


class WantedOutput(_Part):
    """An output by its name."""

    name: str


class InferRequest(_Part):
    """The JSON of a request."""

    id: str = Field(default="", max_length=256)
    inputs: tuple[InputTensor, ...] = Field(min_length=1, max_length=1)
    outputs: tuple[WantedOutput, ...] = Field(default=(), max_length=len(OUTPUTS))


class Wanted(NamedTuple):
    """What a request asks for."""

    id: str
    images: list[Given]
    outputs: dict[str, bool]
    """By their names: True where it is wanted as bytes."""


def parse(body: bytes, header_length: str | None, most: int) -> Wanted:
    """A request for inference.

    Args:
        body: of the request.
        header_length: of its JSON; None: it is all JSON.
        most: images.

    Raises:
        RefusedError: 400, it is none of the protocol's, or its tensor is not of images.
    """
    try:
        length = len(body) if header_length is None else int(header_length)
        if not 0 <= length <= len(body):
            raise _wrong(f"the header {HEADER_LENGTH} tells of more bytes than there are")
        if length > MOST_JSON:
            raise _wrong(f"its JSON has more than {MOST_JSON:,} bytes: send tensors behind it")
        with _PARSING:
            request = InferRequest.model_validate(json.loads(body[:length]))
        [tensor] = request.inputs
        images = _images(tensor, body[length:], most)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _wrong(f"{where}: {first['msg']}") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _wrong(str(error).partition("\n")[0]) from error
    is_binary = request.parameters.get("binary_data_output") is True
    outputs = {
        output.name: output.parameters.get("binary_data", is_binary) is True
        for output in request.outputs
    } or dict.fromkeys(OUTPUTS, is_binary)
    if unknown := outputs.keys() - OUTPUTS.keys():
        raise _wrong(f"there is no output {min(unknown)!r}")
    return Wanted(request.id, images, outputs)


def _wrong(reason: str) -> RefusedError:
    return RefusedError(400, f"not a request of the Open Inference Protocol V2: {reason}.")


def _images(tensor: InputTensor, binary: bytes, most: int) -> list[Given]:
    """What a tensor holds.

    Raises:
        ValueError: it holds no images, or too many.
    """
    if tensor.name != INPUT or tensor.datatype not in ("UINT8", "BYTES"):
        raise ValueError(f"the input is {INPUT!r}, of datatype UINT8 or BYTES")
    if SIZE in tensor.parameters and tensor.parameters[SIZE] != len(binary):
        raise ValueError(f"{SIZE} is not the number of bytes that follow the JSON")
    is_binary = SIZE in tensor.parameters
    if not is_binary and tensor.data is None:
        raise ValueError(f"the input has neither data nor {SIZE}")
    if tensor.datatype == "BYTES":
        files = _files(binary) if is_binary else _decoded_files(tensor.data)
        if not 1 <= len(files) == math.prod(tensor.shape) <= most:
            raise ValueError(f"from 1 to {most} files, as many as the shape says, are taken")
        return [*files]
    shape = tensor.shape if len(tensor.shape) == 4 else (1, *tensor.shape)
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or shape[0] > most:
        raise ValueError(f"the shape is no (n, H, W, 3) of at most {most} images")
    if shape[1] * shape[2] > (pixels := current_limits().pixels):
        raise ValueError(f"an image has more than the limit of {pixels:,} pixels")
    array = np.frombuffer(binary, np.uint8) if is_binary else _pixels(tensor.data)
    if array.size != math.prod(shape):
        raise ValueError("there are not as many values as the shape says")
    return [*array.reshape(shape)]


def _pixels(data: object) -> NDArray[np.uint8]:
    """Nested or flat lists as (values,)."""
    array = np.asarray(data)
    if array.dtype.kind not in "iu" or array.size == 0:
        raise ValueError("the data of UINT8 are whole numbers")
    if array.min() < 0 or array.max() > 255:
        raise ValueError("a value is not from 0 to 255")
    return array.astype(np.uint8).ravel()


def _decoded_files(data: object) -> list[bytes]:
    texts: list[Any] = data if isinstance(data, list) else [data]
    try:
        return [base64.b64decode(text, validate=True) for text in texts]
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError("the data of BYTES are files in base64") from error


def _files(binary: bytes) -> list[bytes]:
    """Each stands behind its length in four bytes, little-endian."""
    files, place = [], 0
    while place < len(binary):
        length = int.from_bytes(binary[place : place + 4], "little")
        files.append(binary[place + 4 : place + 4 + length])
        place += 4 + length
    if place != len(binary):
        raise ValueError("a file is shorter than the length before it says")
    return files


def answer(name: str, wanted: Wanted, found: Sequence[Finished]) -> tuple[bytes, int | None]:
    """The body of the answer, and the length of its JSON where bytes follow it.

    Raises:
        RefusedError: 503, the model was replaced by another one in between.
    """
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for output, is_binary in wanted.outputs.items():
        datatype = OUTPUTS[output][0]
        values = [_value(output, one) for one in found]
        if len({np.shape(value) for value in values}) > 1:
            raise RefusedError(503, SEVERAL_SIZES, 1)
        shape = [len(values), *np.shape(values[0])]
        tensor: dict[str, Any] = {"name": output, "datatype": datatype, "shape": shape}
        if is_binary:
            binary.append(_as_bytes(values, datatype))
            tensor["parameters"] = {SIZE: len(binary[-1])}
        else:
            tensor["data"] = np.ravel(values).tolist()
        outputs.append(tensor)
    head = {"model_name": name, "id": wanted.id or found[0].inspection.id, "outputs": outputs}
    text = json.dumps(head).encode()
    return text + b"".join(binary), len(text) if binary else None


def _value(output: str, one: Finished) -> Any:  # noqa: ANN401 - a number, a text or a map
    inspection, seen = one
    if output == "anomaly_map":
        return seen.prediction.grid_map
    if output == "boxes":
        return json.dumps([box._asdict() for box in inspection.boxes])
    if output == "inspection":
        return inspection.id
    value = getattr(inspection, output)
    return "" if value is None else value


def _as_bytes(values: Sequence[Any], datatype: str) -> bytes:
    if datatype != "BYTES":
        return np.asarray(values, "<f4").tobytes()
    coded = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in coded)
