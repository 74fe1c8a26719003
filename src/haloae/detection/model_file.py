"""One file that is a fitted detector: safetensors, with a JSON header that is checked on loading.

Kept apart from the detector because it can be read without torch.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from haloae._version import __version__
from haloae.config import Config, without_retired
from haloae.data.regions import Region
from haloae.data.source import ImageKinds
from haloae.detection.calibration import Calibration
from haloae.detection.guard import Guard
from haloae.errors import ConfigError, ModelFileError
from haloae.files import open_regular, write_atomic

FORMAT_VERSION = 1
HEADER_KEY = "haloae"
CHECKSUM = "sha256"
Tensors = Mapping[str, np.ndarray]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Provenance(_Strict):
    """Where a detector comes from."""

    data: str
    """Name of the folder of good images."""
    fitted_on: NonNegativeInt
    """Images it was fitted to."""
    held_out: NonNegativeInt
    """Other images, that its thresholds are of; 0: they are of the same, each left out in turn."""
    skipped: NonNegativeInt
    """Images that could not be read."""
    steps: NonNegativeInt
    """Training steps taken, of those the schedule has; 0 where nothing is trained by gradient."""
    backbone: str
    """Name of the backbone's weights."""
    backbone_sha256: str
    images: ImageKinds

    def fitted(self, schedule: int) -> str:
        """How it was fitted, in words; `schedule` is the steps that were to be taken."""
        held_out = f"{self.held_out} held out" if self.held_out else "each left out in turn"
        steps = f"{self.steps} of {schedule} steps" if self.steps else "nothing trained"
        return f"{self.data}: {self.fitted_on} images, {held_out}, {self.skipped} skipped; {steps}"


class Header(_Strict):
    """All of a model file that is not a tensor."""

    format_version: int = FORMAT_VERSION
    package_version: str = __version__
    config: Config
    calibration: Calibration
    usual_images: Annotated[int, Field(ge=1, le=2**31)]
    """Good images behind the head."""
    provenance: Provenance
    guard: Guard | None = None
    """What good images look like as a whole; None in files from before there was one."""
    region: Region | Literal["each"] | None = None
    """Which pixels of every image count; ``each``: each image comes with masks of its own; None:
    all count."""


def write_model(path: Path, header: Header, tensors: Tensors) -> None:
    """Write a model file, atomically.

    Raises:
        OutputError: the file cannot be written; what stood there before is untouched.
    """
    from safetensors.numpy import save

    values = header.model_dump(mode="json")
    # Inside the one value: safetensors writes several in an order that changes from run to run.
    values[CHECKSUM] = _checksum(values, tensors)
    text = json.dumps(values, separators=(",", ":"))
    write_atomic(path, save(dict(tensors), metadata={HEADER_KEY: text}))


def read_model(path: Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Read and check a model file.

    Raises:
        ModelFileError: missing, truncated, changed since it was written, of a newer format, or
            not a model; the message says which.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    values = _values(path)
    header = _parse(path, values)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise _damaged(path) from error
    if values.get(CHECKSUM) != _checksum(values, tensors):
        raise ModelFileError(
            f"{path}: its checksum does not match: the file was damaged or changed after it was "
            f"saved; copy it again or train anew."
        )
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelFileError(
                f"{path}: tensor {name} holds numbers that are not finite: train anew."
            )
    return header, tensors


def _values(path: Path) -> dict[str, Any]:
    """Our part of a file's header, unchecked."""
    from safetensors import SafetensorError, safe_open

    if os.path.isdir(path):  # noqa: PTH112 - pathlib raises on names that are too long
        inside = path / "model.safetensors"
        hint = f"did you mean {inside}?" if inside.exists() else "expected a .safetensors file."
        raise ModelFileError(f"{path}: is a folder, not a model file; {hint}")
    try:
        with open_regular(path):  # safetensors would wait for a pipe
            pass
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{path}: no such model file; `haloae train` writes one to RUN/model.safetensors."
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise ModelFileError(f"{path}: cannot be read ({error.strerror}).") from error
        raise _damaged(path) from error
    if HEADER_KEY not in metadata:
        raise ModelFileError(
            f"{path}: a safetensors file, but not a model of haloae: give the model.safetensors "
            f"that `haloae train` wrote."
        )
    try:
        values: Any = json.loads(metadata[HEADER_KEY])
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(values, dict) or "format_version" not in values:
        raise _damaged(path)
    return values


def _parse(path: Path, values: Mapping[str, Any]) -> Header:
    version = values["format_version"]
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: has format version {version}, and this haloae {__version__} reads up to "
            f"{FORMAT_VERSION}: upgrade haloae."
        )
    try:
        stored = {k: v for k, v in values.items() if k != CHECKSUM}
        if isinstance(stored.get("config"), dict):
            stored["config"] = without_retired(stored["config"])
        return Header.model_validate(stored)
    except ConfigError as error:
        raise ModelFileError(f"{path}: {error}") from error
    except (ValidationError, TypeError, ValueError) as error:
        where = "config"
        if isinstance(error, ValidationError):
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ModelFileError(
            f"{path}: its header is not valid at {where}: the file was damaged or changed; copy it "
            f"again or train anew."
        ) from error


def _damaged(path: Path) -> ModelFileError:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        size, start = 0, b""
    # A safetensors file starts with its header's length and an opening brace.
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 2**32:
        return ModelFileError(
            f"{path}: truncated or damaged ({size} bytes): copy it again or train anew."
        )
    return ModelFileError(
        f"{path}: not a model file ({size} bytes): expected the model.safetensors that "
        f"`haloae train` wrote."
    )


def _checksum(values: Mapping[str, Any], tensors: Tensors) -> str:
    """Of all values but the checksum itself, and of the tensors."""
    rest = {key: value for key, value in values.items() if key != CHECKSUM}
    sha = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.data if array.size else b"")
    return sha.hexdigest()
