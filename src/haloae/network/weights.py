"""Where the trunk's weights come from, and whether they are what they should be.

``auto`` never opens a socket: ImageNet weights if torchvision has them cached, else seeded random
ones, with a warning. Only ``imagenet`` downloads, and ``HALOAE_OFFLINE=1`` forbids that too.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor, nn

from haloae.errors import WeightsError
from haloae.network.trunks import TRUNKS

log = logging.getLogger(__name__)

RANDOM_SEED = 0
"""Random trunks are all the same one, so that two detectors can be compared."""


class Weights(NamedTuple):
    """A trunk's weights and where they came from."""

    name: str
    """``imagenet``, ``random`` or the file's name."""
    sha256: str
    """Of the tensors themselves, see `digest`."""
    tensors: dict[str, Tensor]


def load_weights(source: str | Path, trunk: str, expected: Mapping[str, Tensor]) -> Weights:
    """Weights for a trunk.

    Args:
        source: ``auto``, ``imagenet``, ``random``, or a file: a `.safetensors`, or a `.pth` as
            torchvision publishes it (or a state dict saved with `torch.save`).
        trunk: a name in `haloae.network.features.TRUNKS`.
        expected: the tensors wanted, by name; only their shapes matter.

    Raises:
        WeightsError: no network, no such file, a damaged file, or weights of another network.
    """
    if source == "auto":
        cached = _cached_path(trunk)
        source = "imagenet" if cached.is_file() else "random"
        if source == "random":
            log.warning(
                "no ImageNet weights are cached, so the backbone is RANDOM and detection is far "
                "weaker than it can be: run once with `--backbone imagenet` where there is a "
                "network, or give a weights file with `--backbone PATH`."
            )
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
    way_out = f"download it elsewhere and copy it to {path}, or use --backbone random or a file"
    if os.environ.get("HALOAE_OFFLINE") == "1":
        raise WeightsError(
            f"the ImageNet weights are not cached and HALOAE_OFFLINE=1 forbids the download: "
            f"{way_out}."
        )
    try:
        state = _torchvision_entry(trunk).get_state_dict(
            progress=True, check_hash=True, weights_only=True
        )
    except (URLError, OSError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"the ImageNet weights could not be downloaded ({reason}): {way_out}."
        ) from error
    except RuntimeError as error:
        raise WeightsError(
            f"the ImageNet weights that were downloaded are not what they should be (wrong hash): "
            f"try again, or {way_out}."
        ) from error
    return dict(state)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path}: no such weights file; --backbone takes auto, imagenet, random or a file."
        ) from error
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
