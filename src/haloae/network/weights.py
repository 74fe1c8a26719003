"""Where the trunk's weights come from, and whether they are what they should be.

``auto`` never opens a socket: ImageNet weights if torchvision has them cached, else the bundled
ones, which come with this package (docs/backbone.md). Only ``imagenet`` downloads, and
``HALOAE_OFFLINE=1`` forbids that too.
"""

import hashlib
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError

import torch
from torch import Tensor, nn

from haloae.errors import WeightsError
from haloae.network.trunks import TRUNKS

log = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent / "bundled"
"""Folder of the weights that come with this package, ``<trunk>.safetensors`` each."""
RANDOM_SEED = 0
"""Random trunks are all the same one, so that two detectors can be compared."""
TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up."""
HASH_IN_NAME = re.compile(r"-([a-f0-9]{8,})\.")
"""The start of a published file's SHA-256, as its name gives it."""
SOURCES = "auto, bundled, imagenet, random or a file"


class Weights(NamedTuple):
    """A trunk's weights and where they came from."""

    name: str
    """``bundled``, ``imagenet``, ``random`` or the file's name."""
    sha256: str
    """Of the tensors themselves, see `digest`."""
    tensors: dict[str, Tensor]


def load_weights(source: str | Path, trunk: str, expected: Mapping[str, Tensor]) -> Weights:
    """Weights for a trunk.

    Args:
        source: ``auto``, ``bundled``, ``imagenet``, ``random``, or a file: a `.safetensors`, or a
            `.pth` as torchvision publishes it (or a state dict saved with `torch.save`).
        trunk: a name in `haloae.network.trunks.TRUNKS`.
        expected: the tensors wanted, by name; only their shapes matter.

    Raises:
        WeightsError: no network, no such file, a damaged file, or weights of another network.
    """
    if source == "auto":
        is_cached = _cached_path(trunk).is_file()
        source = "imagenet" if is_cached else "bundled"
        why = "found in torchvision's cache" if is_cached else "no ImageNet weights are cached"
        log.info("backbone: %s with %s weights (%s)", trunk, source, why)
    if source == "bundled":
        path = BUNDLED / f"{trunk}.safetensors"
        return _named("bundled", _fit(_read(path), trunk, expected, str(path)))
    if source == "random":
        return _named("random", random_weights(expected))
    if source == "imagenet":
        return _named("imagenet", _fit(_imagenet(trunk), trunk, expected, str(_cached_path(trunk))))
    path = Path(source)
    return _named(path.name, _fit(_read(path), trunk, expected, str(path)))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: their names, shapes and float32 bytes, in order of name."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().float().contiguous().numpy()
        sha.update(f"{name}{array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _named(name: str, tensors: dict[str, Tensor]) -> Weights:
    return Weights(name, digest(tensors), tensors)


def random_weights(expected: Mapping[str, Tensor], seed: int = RANDOM_SEED) -> dict[str, Tensor]:
    """Kaiming normal, fan in: the mean square of the activations stays that of the image."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, like in expected.items():
        tensor = torch.zeros(like.shape)
        if tensor.ndim > 1:
            nn.init.kaiming_normal_(tensor, nonlinearity="relu", generator=generator)
        tensors[name] = tensor
    return tensors


def _torchvision_entry(trunk: str) -> Any:  # noqa: ANN401 - torchvision is not typed
    from torchvision.models import get_weight

    return get_weight(TRUNKS[trunk].published)


def _cached_path(trunk: str) -> Path:
    """Where torchvision caches the ImageNet weights (under `TORCH_HOME`)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_torchvision_entry(trunk).url).name


def _imagenet(trunk: str) -> dict[str, Tensor]:
    path = _cached_path(trunk)
    if path.is_file():
        return _read(path)
    way_out = f"download them elsewhere and copy them to {path}, or use --backbone bundled"
    if os.environ.get("HALOAE_OFFLINE") == "1":
        raise WeightsError(
            f"the ImageNet weights are not cached and HALOAE_OFFLINE=1 forbids the download: "
            f"{way_out}."
        )
    url = _torchvision_entry(trunk).url
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
            f"the ImageNet weights were cut short or changed on their way (wrong hash), so they "
            f"are not kept: try again, or {way_out}."
        ) from error
    return _read(path)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Give up on silent servers: torch.hub takes no time limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read(path: Path) -> dict[str, Tensor]:
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


def _fit(
    state: Mapping[str, Any], trunk: str, expected: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Pick the trunk's tensors out of a state dict, published or our own."""
    prefix = TRUNKS[trunk].prefix
    try:
        state = TRUNKS[trunk].folded({k: v for k, v in state.items() if isinstance(v, Tensor)})
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"{where}: its batch norm does not fit {trunk} ({error}).") from error
    tensors = {}
    for name, like in expected.items():
        tensor = state.get(name)
        if tensor is None:
            names = f"{name!r} or {prefix + name!r}" if prefix else f"{name!r}"
            raise WeightsError(f"{where}: holds no tensor {names}: it is not a {trunk}.")
        if tensor.shape != like.shape:
            raise WeightsError(
                f"{where}: expected {name!r} of shape {tuple(like.shape)}, "
                f"got {tuple(tensor.shape)}: it is not a {trunk}."
            )
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{where}: {name!r} holds values that are not finite.")
        tensors[name] = tensor.detach().float().contiguous().clone()
    return tensors
