"""What sources and sinks have in common: a table of kinds, settings with a name, what is shown."""

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from haloae.data.images import shown_path
from haloae.errors import EXTRAS, ConfigError, MissingExtraError, OutputError
from haloae.files import read_regular
from haloae.settings import checked

MOST_SECRET = 4096
"""Bytes of a file that holds a password or a token."""
RESERVED = ("page", "request")
"""Names that stand in records for what came from no source."""

KindName = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]


class Settings(BaseModel):
    """Of one source or sink, as `serve.toml` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: KindName = ""
    """What it is called in records, states and logs; its kind where none is given."""

    def check(self) -> None:
        """Find out before anything starts what can be: packages, passwords, folders.

        Raises:
            ConfigError: a setting cannot be used.
            MissingExtraError: a package is not installed.
        """


Kind = TypeVar("Kind", bound=Settings)


def parse_kinds(table: Mapping[str, type[Kind]], word: str, values: object) -> tuple[Kind, ...]:
    """Settings of several, in order, from plain values.

    Args:
        table: the kinds that there are.
        word: what one is called in messages and in `serve.toml`: source or sink.
        values: a list of tables, each with its `kind`; settings themselves stay as they are.

    Raises:
        ConfigError: says which one is wrong, and how.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ConfigError(f"{word}: write each one below a line [[{word}]] of its own.")
    found = [
        value if isinstance(value, Settings) else _parse(table, f"{word} {number}", value)
        for number, value in enumerate(values, start=1)
    ]
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1 or name in RESERVED:
            why = "is the name of two" if names.count(name) > 1 else "is kept for what has none"
            raise ConfigError(f"{word} {name!r}: {why}: give each a name of its own, name = ….")
    return tuple(found)  # type: ignore[arg-type] # of the table, or given as they are


def _parse(table: Mapping[str, type[Kind]], place: str, value: object) -> Kind:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place}: give its kind and settings, as in kind = {next(iter(table))}.")
    kind = str(value.get("kind"))
    if kind not in table:
        raise ConfigError(f"{place}: no kind is called {kind!r}: choose one of {', '.join(table)}.")
    try:
        given = {key: value[key] for key in value if key != "kind"}
        return checked(table[kind], {"name": kind} | given)
    except ConfigError as error:
        raise ConfigError(f"{place} ({kind}): {error}") from error


def load_modules(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Run Python files that register kinds of their own.

    Raises:
        ConfigError: one is missing or fails.
    """
    for path in paths:
        name = f"haloae_module_{path.stem}"
        try:
            spec = spec_from_file_location(name, path)
            if spec is None or spec.loader is None:
                raise ImportError("a Python file's name ends in .py")
            sys.modules[name] = module = module_from_spec(spec)
            spec.loader.exec_module(module)
        except Exception as error:  # it is anybody's
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ConfigError(f"{shown_path(path)}: cannot be loaded ({reason}).") from error
    return paths


Modules = Annotated[tuple[Path, ...], AfterValidator(load_modules)]
"""A field of settings, before those whose kinds the files register."""


def require(package: str) -> None:
    """Import a package of an extra.

    Raises:
        MissingExtraError: it is not installed, or is and cannot be imported.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        first = package.partition(".")[0]
        raise MissingExtraError(first, EXTRAS[first], error) from error


def read_secret(path: Path) -> str:
    """The first line of a file that holds a password or a token.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    name = shown_path(path)
    try:
        secret = read_regular(path, most=MOST_SECRET).decode().partition("\n")[0].strip()
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: is no text: write the secret into its first line.") from error
    if not secret.isprintable() or not secret:
        raise ConfigError(f"{name}: holds no secret: write it into the first line.")
    return secret


def make_folder(folder: Path) -> None:
    """Make a folder where it is missing.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{shown_path(folder)}: the folder cannot be made ({error.strerror}): check the path "
            f"and its permissions."
        ) from error


def plain_address(address: str, schemes: Sequence[str]) -> str:
    """An address as it is, where it names a host and holds no password, which logs would show.

    Raises:
        ValueError: it does not; the message leaves the address out, for what it may hold.
    """
    choice = f"give one that starts with {' or '.join(f'{each}://' for each in schemes)}"
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or not address.isprintable() or " " in address:
        raise ValueError(f"no such address can be used: {choice} and a host")
    if "@" in parts.netloc:
        raise ValueError("an address with a user or password in it: give them as settings instead")
    return address


def shown_address(address: str) -> str:
    """Scheme, host and port: what comes after them may be a secret."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


def one_line(error: BaseException) -> str:
    """Why something failed, for a state and a log."""
    return " ".join(str(error).split()) or type(error).__name__


class BackOff(NamedTuple):
    """How long to wait before the next try, twice as long each time."""

    first: float = 1.0
    """Seconds."""
    longest: float = 60.0
    """Seconds."""

    def pauses(self) -> Iterator[float]:
        """Without end.

        >>> from itertools import islice
        >>> list(islice(BackOff(1, 5).pauses(), 5))
        [1, 2, 4, 5, 5]
        """
        pause = self.first
        while True:
            yield min(pause, self.longest)
            pause = min(2 * pause, self.longest)


BACK_OFF = BackOff()
"""Of sources and sinks that are broken."""
