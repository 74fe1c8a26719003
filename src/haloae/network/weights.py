"""Where the trunk's weights come from, and whether they are what they should be.

``auto`` never opens a socket: ImageNet weights if they are at hand (in torchvision's cache, or in
an installed package), else the bundled ones, which come with this package (docs/backbone.md). Only
``imagenet`` downloads, and ``HALOAE_OFFLINE=1`` forbids that too.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from haloae.errors import WeightsError
from haloae.network.published import read_state
from haloae.network.trunks import trunk_named

log = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent / "bundled"
"""Folder of the weights that come with this package, ``<trunk>.safetensors`` each."""
RANDOM_SEED = 0
"""Random trunks are all the same one, so that two detectors can be compared."""


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
            `.pth` as it is published (or a state dict saved with `torch.save`).
        trunk: a name in `haloae.network.trunks.TRUNKS`.
        expected: the tensors wanted, by name; only their shapes matter.

    Raises:
        ConfigError: no such trunk.
        WeightsError: no network, no such file, a damaged file, or weights of another network.
        MissingExtraError: the weights come in a package that is not installed.
    """
    if source == "auto":
        source = _best_source(trunk)
    if source == "random":
        return _named("random", random_weights(expected))
    if source == "imagenet":
        published = trunk_named(trunk).imagenet
        if published is None:
            raise WeightsError(f"ImageNet weights of {trunk} are not known: name a file of them.")
        state, where = published.read()
        return _named("imagenet", _fit(state, trunk, expected, where))
    path = Path(source)
    if source == "bundled":
        path = _bundled_path(trunk)
        if not path.is_file():
            raise WeightsError(
                f"no weights of {trunk} are bundled: leave --backbone bundled out, or set "
                f"network.trunk to resnet18, whose weights are."
            )
    name = "bundled" if source == "bundled" else path.name
    return _named(name, _fit(read_state(path), trunk, expected, str(path)))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: their names, shapes and float32 bytes, in order of name."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().float().contiguous().numpy()
        sha.update(f"{name}{array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def random_weights(expected: Mapping[str, Tensor], seed: int = RANDOM_SEED) -> dict[str, Tensor]:
    """Kaiming normal, fan in: where ReLU follows, the mean square stays that of the image."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, like in expected.items():
        tensor = torch.zeros(like.shape)
        if tensor.ndim > 1:
            nn.init.kaiming_normal_(tensor, nonlinearity="relu", generator=generator)
        tensors[name] = tensor
    return tensors


def _named(name: str, tensors: dict[str, Tensor]) -> Weights:
    return Weights(name, digest(tensors), tensors)


def _bundled_path(trunk: str) -> Path:
    return BUNDLED / f"{trunk}.safetensors"


def _best_source(trunk: str) -> str:
    """What ``auto`` is for a trunk: ``imagenet`` or ``bundled``."""
    imagenet = trunk_named(trunk).imagenet
    source, why = "bundled", "no ImageNet weights are cached"
    if imagenet and (imagenet.is_at_hand() or not _bundled_path(trunk).is_file()):
        source, why = "imagenet", imagenet.origin
    log.info("backbone: %s with %s weights (%s)", trunk, source, why)
    return source


def _fit(
    state: Mapping[str, Any], trunk: str, expected: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Pick the trunk's tensors out of a state dict, published or our own."""
    prefix = trunk_named(trunk).prefix
    try:
        state = trunk_named(trunk).folded({k: v for k, v in state.items() if isinstance(v, Tensor)})
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
