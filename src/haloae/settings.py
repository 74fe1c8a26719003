"""Settings of any kind, as they are written: from TOML and ``name=value``, merged and checked."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from haloae.errors import ConfigError
from haloae.files import read_regular

MOST_BYTES = 2**20
"""Of a file of settings."""
Checked = TypeVar("Checked", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """Settings from a TOML file, as `Config.replace` takes them.

    Raises:
        ConfigError: the file cannot be read, is larger than 1 MiB, or is not TOML.
    """
    try:
        return tomllib.loads(read_regular(path, most=MOST_BYTES).decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file ({error}).") from error


def read_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Settings from ``name=value``, as `Config.replace` takes them; of two, the later holds.

    A value is TOML, and where it is none, the text itself: ``network.attention.mode=halo``.

    Raises:
        ConfigError: a text is no assignment, or would choose a preset.

    >>> read_assignments(["loss.feature_terms=['mse']", "network.attention.mode=halo"])
    {'loss': {'feature_terms': ['mse']}, 'network': {'attention': {'mode': 'halo'}}}
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not all(part.strip() for part in name.split(".")):
            raise ConfigError(
                f"--set {text}: give a setting and its value, as in network.attention.mode=halo."
            )
        if name.strip() == "preset":
            raise ConfigError(f"--set {text}: this changes the settings of a preset, not which.")
        settings = merged(settings, nested(name, _toml_value(value)))
    return settings


def nested(name: str, value: object) -> dict[str, Any]:
    """One setting, as `Config.replace` takes it, from its name with dots.

    >>> nested("network.attention.mode", "halo")
    {'network': {'attention': {'mode': 'halo'}}}
    """
    first, *rest = name.split(".", 1)
    return {first.strip(): nested(rest[0], value) if rest else value}


def _toml_value(text: str) -> object:
    try:
        values = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return values["value"] if values.keys() == {"value"} else text


def checked(kind: type[Checked], values: object) -> Checked:
    """Settings of a kind from plain values.

    Raises:
        ConfigError: names the first setting that is wrong, what was expected and what was given.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        where = f"setting {where}: " if where else ""
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        given = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
        if first["type"] == "extra_forbidden":
            message, given = "no such setting", ""
        raise ConfigError(f"{where}{message}{given}.") from error


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with others in the place of some of them, at any depth."""
    both = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(both.get(key), dict):
            both[key] = merged(both[key], value)
        else:
            both[key] = value
    return both
