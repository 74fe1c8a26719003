"""What a trunk is, and the table they stand in.

A trunk is convolutions with biases, activations and pooling, nothing else: batch norm, where the
published network has it, is folded into the convolution before it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from haloae.errors import ConfigError
from haloae.network.published import Published

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Tap(NamedTuple):
    """An activation that is taken out of the trunk."""

    name: str
    channels: int
    stride: int
    """Image pixels per cell of this activation, in each direction."""


class Conv2d(nn.Conv2d):
    """A convolution without initial values: its weights are about to be loaded."""

    def reset_parameters(self) -> None:
        """Leave them as they are."""


def normalise(
    images: Tensor,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Tensor:
    """RGB in [0, 1] → mean 0 and deviation 1 a colour over ImageNet: (..., 3, H, W) → the same."""
    means = torch.tensor(mean, device=images.device).view(3, 1, 1)
    stds = torch.tensor(std, device=images.device).view(3, 1, 1)
    return (images - means) / stds


@dataclass(frozen=True, slots=True)
class Trunk:
    """A frozen backbone."""

    build: Callable[[], nn.Module]
    """Makes the layers, without weights: (B, 3, H, W) → an activation for each tap, in turn."""
    taps: tuple[Tap, ...]
    imagenet: Published | None = None
    """Where its ImageNet weights are had; None: nowhere."""
    prefix: str = ""
    """What published weights put before the layers' names."""
    renamed: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
    """Gives published tensors the names of our layers and of their batch norms."""
    batch_norms: Mapping[str, str] = field(default_factory=dict)
    """Name of a convolution → that of the batch norm after it."""
    batch_norm_eps: float = 1e-5
    """As in torchvision's networks, and in torch by default."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Of the images it was trained on, RGB in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def channels(self) -> int:
        """Channels of all taps."""
        return sum(tap.channels for tap in self.taps)

    def normalise(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) RGB in [0, 1] → the same shape, as the layers want it."""
        return normalise(images, self.mean, self.std)

    def folded(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict, published or our own, by our layers' names and without batch norm.

        Raises:
            KeyError: a batch norm lacks a part.
            RuntimeError: a batch norm has other channels than its convolution.
        """
        plain = {name.removeprefix(self.prefix): tensor for name, tensor in state.items()}
        plain = dict(self.renamed(plain))
        for conv, norm in self.batch_norms.items():
            if f"{norm}.running_var" not in plain:
                continue
            parts = ("weight", "bias", "running_mean", "running_var")
            weight, bias, mean, variance = (plain.pop(f"{norm}.{part}").float() for part in parts)
            plain.pop(f"{norm}.num_batches_tracked", None)
            scale = weight / (variance + self.batch_norm_eps).sqrt()
            shift = plain.get(f"{conv}.bias", torch.zeros(())) - mean
            plain[f"{conv}.weight"] = plain[f"{conv}.weight"] * scale.view(-1, 1, 1, 1)
            plain[f"{conv}.bias"] = shift * scale + bias
        return plain


TRUNKS: dict[str, Trunk] = {}
"""By the name that `network.trunk` has."""


def register_trunk(name: str, trunk: Trunk) -> None:
    """Put a trunk into the table, under a name of its own."""
    TRUNKS[name] = trunk


def trunk_named(name: str) -> Trunk:
    """The trunk of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TRUNKS:
        known = ", ".join(map(repr, TRUNKS))
        raise ConfigError(f"network.trunk is {name!r}: choose one of {known}.")
    return TRUNKS[name]
