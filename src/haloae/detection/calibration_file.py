"""Thresholds that a person has set: a file beside a model's, bound to its hash.

The model file stays as it was fitted. ``NAME.calibration.json``, NAME the model file's whole name,
is loaded with it, native or exported; for any other model of that name it is refused.
"""

import errno
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from haloae._version import __version__
from haloae.data.images import shown_path
from haloae.detection.calibration import Calibration, StatedCalibration, Threshold
from haloae.errors import ConfigError, ModelFileError
from haloae.files import read_regular, sha256_of, write_atomic

SUFFIX = ".calibration.json"
MOST_BYTES = 2**16


class CalibrationFile(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = 1
    package_version: str = __version__
    model: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """sha256 of the model file that it is for."""
    threshold: NonNegativeFloat
    """A score above it makes an image anomalous."""
    pixel_threshold: NonNegativeFloat
    """A map value above it marks a defect."""
    who: Annotated[str, Field(min_length=1, max_length=200)]
    """Who has set them."""
    time: AwareDatetime

    @property
    def words(self) -> str:
        """Who has set them, and when."""
        return f"set by {self.who} on {self.time:%Y-%m-%d %H:%M %Z}"


def calibration_path(model: Path) -> Path:
    """Where the thresholds of a model file stand, if someone has set them."""
    return model.with_name(model.name + SUFFIX)


def in_force(model: Path, fitted: Calibration) -> Calibration:
    """A model's calibration: with the thresholds of the file beside it, where there is one.

    Args:
        model: the model file.
        fitted: what stands in it.

    Raises:
        ModelFileError: there is one, and it is of another model, damaged, or cannot be read.
    """
    path = calibration_path(model)
    name = shown_path(path)
    way_out = "delete it, or set the thresholds anew"
    try:
        found = CalibrationFile.model_validate_json(read_regular(path, most=MOST_BYTES))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return fitted
        reason = error.strerror or error
        raise ModelFileError(f"{name}: cannot be read ({reason}): {way_out}.") from error
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        at = f" at {where}" if where else ""
        raise ModelFileError(f"{name}: is not valid{at}: {way_out}.") from error
    if found.model != (present := sha256_of(model)):
        raise ModelFileError(
            f"{name}: is for a model of sha256 {found.model[:12]}…, and {shown_path(model.name)} "
            f"has {present[:12]}…: {way_out}."
        )
    return StatedCalibration(
        **fitted.model_dump(include=set(Calibration.model_fields)),
        stated_threshold=Threshold(found.threshold, extrapolated=False),
        stated_pixel_threshold=Threshold(found.pixel_threshold, extrapolated=False),
        origin=f"{found.words} in {shown_path(path.name)}",
    )


def write_calibration(
    model: Path, *, threshold: float, pixel_threshold: float, who: str, time: datetime
) -> Path:
    """Set a model's thresholds, in the file beside it; the model file is only read.

    Args:
        model: the model file.
        threshold: of scores, finite and not negative.
        pixel_threshold: of map values, likewise.
        who: sets them.
        time: with its time zone.

    Returns:
        the file.

    Raises:
        ConfigError: a value that cannot be.
        ModelFileError: the model file cannot be read.
        OutputError: the file cannot be written; what stood there before is untouched.
    """
    try:
        sha256 = sha256_of(model)
    except OSError as error:
        reason = error.strerror or error
        raise ModelFileError(f"{shown_path(model)}: cannot be read ({reason}).") from error
    try:
        values = CalibrationFile(
            model=sha256,
            threshold=threshold,
            pixel_threshold=pixel_threshold,
            who=who,
            time=time,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where, wrong = ".".join(str(part) for part in first["loc"]), first["msg"].lower()
        raise ConfigError(f"thresholds of {shown_path(model)}: {where}: {wrong}.") from error
    path = calibration_path(model)
    write_atomic(path, f"{values.model_dump_json(indent=1)}\n".encode())
    return path
