"""What an exported file must be before it is believed: sealed, well-formed, right on a known image.

The seal finds damage, not malice: whoever may write a file can seal it anew.
"""

import hashlib
import math
import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from haloae.data.images import shown_path
from haloae.data.views import WHITE, Size
from haloae.detection.backend import Measured
from haloae.errors import ModelFileError
from haloae.files import open_regular, write_atomic

Bytes = bytes | mmap.mmap
MARK = "haloae-seal"
SEAL = re.compile(rf"{MARK}:(\d\.\d{{8}}e[+-]\d\d):(\d\.\d{{8}}e[+-]\d\d):([0-9a-f]{{64}})")
"""What is said of `known_image`, score and highest value of the map, and a hash of all else. It is
of one length and the same in JSON and XML, so that it can be set in the bytes of any file."""
DIGITS = 64
UNSEALED = f"{MARK}:{0:.8e}:{0:.8e}:{0:064x}"
"""What stands in the metadata until `seal` writes there."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2, "int8": 0.2}
"""Largest difference, relative, from what an export said where it was made. Processors round
float32 alike to 1e-5, and a wrong result is seldom off by less than 1e-2; bfloat16 and int8 differ
that much from processor to processor, so in these only what is grossly wrong is seen."""
CONSTANT = re.compile(rb'<data\b[^>]*\boffset="[^>]*>')
ATTRIBUTE = re.compile(rb'([\w.]+)="([^"]*)"')
BITS = re.compile(r"(?:bf|f|i|u)(\d+)")
"""Types of numbers, as OpenVINO names them; there are others, of no size of their own."""


class Known(NamedTuple):
    """What an export says of `known_image`."""

    score: float
    peak: float
    """Highest value of the map."""


def known_image(size: Size) -> NDArray[np.float32]:
    """Squares of all sizes and colours in whole 255ths: (3, height, width).

    Made of integers alone, so that it is the same everywhere; files hold what was said of it.
    """
    rows, columns = np.mgrid[: size[0], : size[1]]
    planes = [(rows * (5 + c) ^ columns * (3 + 2 * c)) % 256 for c in range(3)]
    return np.stack(planes).astype(np.float32) / np.float32(WHITE)


def weights_of(path: Path) -> Path | None:
    """The file beside an exported model that belongs to it; None: it is whole in itself."""
    return path.with_suffix(".bin") if path.suffix.lower() == ".xml" else None


def seal(path: str | Path, known: Known | None = None) -> None:
    """Seal an export: when it is written, and anew after its metadata was changed on purpose.

    Args:
        path: of the .onnx, or of the .xml, beside its .bin.
        known: what it says of `known_image`; None leaves what is there.

    Raises:
        ModelFileError: it cannot be read, or has no place for a seal.
        OutputError: it cannot be written; what stood there before is untouched.
    """
    path = Path(path)
    graph = mapped(path)
    place = _place(graph)
    if place is None:
        raise ModelFileError(
            f"{shown_path(path)}: has no place for a seal: give a file that `haloae export` wrote."
        )
    known = known or known_of(graph[place].decode())
    start = f"{MARK}:{known.score:.8e}:{known.peak:.8e}:".encode()
    graph = graph[: place.start] + start + graph[place.start + len(start) :]
    digits = _digest(graph, place, weights_of(path))
    write_atomic(path, graph[: place.stop - len(digits)] + digits + graph[place.stop :])


def check_seal(path: Path, graph: Bytes) -> None:
    """Refuse a file that is no longer what was sealed; one that never was passes.

    Args:
        path: of the export.
        graph: all of that file.

    Raises:
        ModelFileError: says so.
    """
    place = _place(graph)
    if place and graph[place][-DIGITS:] != _digest(graph, place, weights_of(path)):
        raise ModelFileError(
            f"{shown_path(path)}: its seal does not match: it was damaged or changed after the "
            f"export: copy or export it again, or seal what you changed (docs/export.md)."
        )


def known_of(text: str) -> Known:
    """What a seal says of `known_image`: zeros where it was not run yet."""
    _, score, peak, _ = text.split(":")
    return Known(float(score), float(peak))


def _place(graph: Bytes) -> slice | None:
    """Where the seal stands, which is near the end."""
    start = graph.rfind(MARK.encode())
    found = graph[start : start + len(UNSEALED)] if start >= 0 else b""
    if SEAL.fullmatch(found.decode(errors="replace")) is None:
        return None
    return slice(start, start + len(UNSEALED))


def mapped(path: Path) -> Bytes:
    """All bytes of a file of an export, read as they are asked for.

    Raises:
        ModelFileError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""  # which cannot be mapped
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelFileError(
            f"{shown_path(path)}: cannot be read ({error.strerror or error})."
        ) from error


def _digest(graph: Bytes, place: slice, weights: Path | None) -> bytes:
    """Of all bytes but the seal's own digits, and of the weights: 64 hexadecimal digits."""
    sha = hashlib.sha256(f"{len(graph)} {place.start} ".encode())
    with memoryview(graph) as view:
        sha.update(view[: place.stop - DIGITS])
        sha.update(view[place.stop :])
    if weights is not None:
        sha.update(mapped(weights))
    return sha.hexdigest().encode()


def check_constants(path: Path, graph: Bytes, available: int) -> None:
    """Refuse constants of an .xml that OpenVINO would read from memory that is not theirs.

    Args:
        path: of the .xml.
        graph: its text.
        available: bytes of the .bin.

    Raises:
        ModelFileError: the shape, size and place of one do not fit.
    """
    for found in CONSTANT.finditer(graph):
        values = {k.decode(): v.decode(errors="replace") for k, v in ATTRIBUTE.findall(found[0])}
        bits = BITS.fullmatch(values.get("element_type", ""))
        try:
            offset, size = int(values["offset"]), int(values["size"])
            shape = [int(side) for side in values.get("shape", "").split(",") if side.strip()]
        except (KeyError, ValueError):
            offset, size, shape = -1, 0, []
        fits = min(offset, size, *shape) >= 0 and offset + size <= available
        if bits:
            fits &= size == -(-math.prod(shape) * int(bits[1]) // 8)
        if not fits:
            raise ModelFileError(
                f"{shown_path(path)}: a constant in it does not fit its .bin: copy both files of "
                f"the export again."
            )


def checked_outputs(
    source: str, outputs: Sequence[NDArray[Any]], shapes: Sequence[tuple[int, ...]]
) -> Measured:
    """Score and map, of a runtime's outputs: score, p-value, map.

    Args:
        source: what the model is called.
        outputs: as the runtime gave them.
        shapes: what they must have.

    Raises:
        ModelFileError: one is not float32 of its shape.
    """
    for array, shape in zip(outputs, shapes, strict=True):
        found = getattr(array, "dtype", type(array).__name__), getattr(array, "shape", ())
        if found != (np.float32, shape):
            raise ModelFileError(
                f"{source}: it computes {found[0]} of shape {found[1]} where float32 of shape "
                f"{shape} is expected: export it again."
            )
    score, _, anomaly_map = outputs
    return Measured(score, anomaly_map)
