"""What one image may cost: set once a process, as its threads are."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from haloae.errors import ConfigError


class Limits(BaseModel):
    """Most that one image may take; what is over is refused with an `ImageError`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pixels: PositiveInt = 200_000_000
    """Of the image, as its header says. Deep ones of over 90 megapixels need more memory, too."""
    bytes: PositiveInt = 2**30
    """Of the file."""
    seconds: Annotated[float, Field(gt=0, le=86_400)] = 10
    """Of processor time to decode it, by another process; by the clock, six times as much."""
    memory: PositiveInt = 2 * 2**30
    """Bytes of memory that decoding takes in that process, the image included (Linux)."""


_limits = Limits()


def current_limits() -> Limits:
    """Those that hold in this process."""
    return _limits


def limit_images(**changes: float) -> Limits:
    """Set limits of what one image may cost, from now on, in the whole process.

    Args:
        changes: any of the fields of `Limits`; the others stay.

    Returns:
        All that hold now.

    Raises:
        ConfigError: there is no such limit, or it is not positive.
    """
    global _limits  # one for all that decodes, as the interpreter has one memory and one clock
    values = _limits.model_dump() | changes
    try:
        _limits = Limits.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0]
        raise ConfigError(
            f"limit {name}={values[str(name)]} of an image: give pixels, bytes, seconds or memory "
            f"a positive number, as in seconds=60."
        ) from error
    return _limits


def read_limits(texts: list[str]) -> Limits:
    """Set limits from ``name=value``, as the command line takes them.

    Raises:
        ConfigError: a text is none, or names no limit.
    """
    changes = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            number = float(value)
            changes[name.strip()] = int(number) if number.is_integer() else number
        except ValueError as error:
            raise ConfigError(
                f"--limit {text}: give a limit and its number, as in seconds=60."
            ) from error
    return limit_images(**changes)
