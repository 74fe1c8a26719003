"""All words of the page, from one file: `texts.toml`, or a translation of it."""

import tomllib
from importlib.resources import files
from pathlib import Path

from haloae.errors import ConfigError
from haloae.settings import read_toml

Texts = dict[str, str]


def english() -> Texts:
    """Those of the file that comes with the package."""
    return dict(tomllib.loads((files("haloae.server.page") / "texts.toml").read_text("utf-8")))


def read_texts(path: Path | None) -> Texts:
    """The page's words.

    Args:
        path: of a translation, as `texts.toml` is; what it leaves out stays English. None: English.

    Raises:
        ConfigError: it cannot be read, or has words that the page has no place for.
    """
    known = english()
    if path is None:
        return known
    given = read_toml(path)
    for name, text in given.items():
        if name not in known or not isinstance(text, str):
            raise ConfigError(f"{path}: {name}: is no text of the page: see its texts.toml.")
    return known | given
