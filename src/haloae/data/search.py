"""Images in a folder and all below it, each once, wherever links lead."""

import errno
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from haloae.data.images import shown_path
from haloae.errors import DataError


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that was found and left out.

    Attributes:
        path: where it is.
        reason: why it was left out, as a part of a sentence.
    """

    path: Path
    reason: str


class Found(NamedTuple):
    """What a search came back with, both sorted by path."""

    images: tuple[Path, ...]
    skipped: tuple[Skipped, ...]


def require_folder(root: Path) -> None:
    """Refuse what is no folder that can be read.

    Raises:
        DataError: it is missing, a file, or closed.
    """
    name = shown_path(root)
    try:
        with os.scandir(root):
            pass
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such folder: check the path.") from error
    except NotADirectoryError as error:
        raise DataError(f"{name}: this is a file: give the folder that holds it.") from error
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise DataError(f"{name}: the folder cannot be read ({reason}): check it.") from error


def search(root: Path, suffixes: Collection[str]) -> Found:
    """Every regular file with one of these endings; what cannot be read is skipped, root or not.

    Args:
        root: what is visible in it, and below it, is looked at.
        suffixes: endings taken for images, in lower case.
    """
    # Folders above are as good as searched: following a link to one would bring back the siblings.
    searched = {_identity(folder) for folder in root.resolve().parents if is_folder(folder)}
    images: list[Path] = []
    skipped: list[Skipped] = []
    links: list[Path] = []
    folders = [root]
    while folders or links:
        # Real folders first, so that an image is found under its own path rather than a link's.
        is_link = not folders
        folder = links.pop(0) if is_link else folders.pop()
        try:
            if is_link and _identity(folder) in searched:
                skipped.append(Skipped(folder, "it links to a folder already searched"))
                continue
            searched.add(_identity(folder))
            entries = sorted(visible(folder), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(Skipped(folder, reason_of(error)))
            continue
        for entry in entries:
            path = Path(entry.path)
            if is_folder(entry):
                (links if entry.is_symlink() else folders).append(path)
            elif path.suffix.lower() in suffixes:
                problem = _problem(path)
                if problem is None:
                    images.append(path)
                else:
                    skipped.append(Skipped(path, problem))
    images.sort(key=lambda path: path.relative_to(root).as_posix())
    skipped.sort(key=lambda item: item.path.relative_to(root).as_posix())
    return Found(tuple(images), tuple(skipped))


def visible(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """What a folder holds, less what is hidden by a leading dot."""
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def is_folder(path: "os.DirEntry[str] | Path") -> bool:
    """True: a folder, or a link to one, that is there and can be reached."""
    try:
        return path.is_dir()
    except OSError:  # a link that leads back to itself, or a folder above that is closed to us
        return False


def reason_of(error: OSError) -> str:
    """Why something was left out, as a part of a sentence."""
    if error.errno == errno.ELOOP:
        return "it is a link that leads back to itself"
    return (error.strerror or "it cannot be read").lower()


def _identity(folder: Path) -> tuple[int, int]:
    """What stays the same under every name of a folder."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _problem(path: Path) -> str | None:
    """Why a path that ends like an image is none, or None where it is a regular file."""
    try:
        path.stat()
    except FileNotFoundError:
        return "it links to a file that does not exist"
    except OSError as error:
        return reason_of(error)
    return None if path.is_file() else "it is not a regular file"
