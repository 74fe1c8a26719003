"""The frozen backbones: their layers, where they are tapped, and their published form.

A trunk is convolutions with biases, ReLU and pooling, nothing else: batch norm, where the published
network has it, is folded into the convolution before it. Layers are named as torchvision names
them. All trunks stand in one table, `TRUNKS`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-5
"""As in torchvision's networks, and in torch by default."""


class Tap(NamedTuple):
    """An activation that is taken out of the trunk."""

    name: str
    channels: int
    stride: int
    """Image pixels per cell of this activation, in each direction."""


@dataclass(frozen=True, slots=True)
class Trunk:
    """A frozen backbone."""

    build: Callable[[], nn.Module]
    """Makes the layers, without weights: (B, 3, H, W) → an activation for each tap, in turn."""
    taps: tuple[Tap, ...]
    published: str
    """torchvision's name for its ImageNet weights."""
    prefix: str
    """What these weights put before the layers' names."""
    batch_norms: Mapping[str, str]
    """Published name of a convolution → that of the batch norm after it."""

    @property
    def channels(self) -> int:
        """Channels of all taps."""
        return sum(tap.channels for tap in self.taps)

    def folded(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict, published or our own, by our layers' names and without batch norm."""
        plain = {name.removeprefix(self.prefix): tensor for name, tensor in state.items()}
        for conv, norm in self.batch_norms.items():
            if f"{norm}.running_var" not in plain:
                continue
            parts = ("weight", "bias", "running_mean", "running_var")
            weight, bias, mean, variance = (plain.pop(f"{norm}.{part}").float() for part in parts)
            plain.pop(f"{norm}.num_batches_tracked", None)
            scale = weight / (variance + BATCH_NORM_EPS).sqrt()
            shift = plain.get(f"{conv}.bias", torch.zeros(())) - mean
            plain[f"{conv}.weight"] = plain[f"{conv}.weight"] * scale.view(-1, 1, 1, 1)
            plain[f"{conv}.bias"] = shift * scale + bias
        return plain


class Conv2d(nn.Conv2d):
    """A convolution without initial values: its weights are about to be loaded."""

    def reset_parameters(self) -> None:
        """Leave them as they are."""


class Vgg(nn.Sequential):
    """VGG: 3×3 convolutions with reflect padding, ReLU, 2×2 max pooling.

    Args:
        plan: channels of a convolution with ReLU, or "pool".
        tapped: indices of the layers whose output is returned.
    """

    def __init__(self, plan: tuple[int | str, ...], tapped: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for width in plan:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(Conv2d(channels, width, 3, padding=1, padding_mode="reflect"))
            layers.append(nn.ReLU())
            channels = width
        super().__init__(*layers)
        self.tapped = tapped

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        """(B, 3, H, W) → the tapped activations, in order."""
        for index, layer in enumerate(self):
            x = layer(x)
            if index in self.tapped:
                yield x


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a skip, a 1×1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, width, 3, stride, padding=1)
        self.conv2 = Conv2d(width, width, 3, padding=1)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(Conv2d(channels, width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, width, H / stride, W / stride)."""
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.downsample(x))


class ResNet(nn.Module):
    """The first stages of a ResNet of two basic blocks a stage, batch norm folded in.

    Args:
        widths: channels of each stage; each but the first halves the grid.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, widths[0], 7, stride=2, padding=3)
        channels = widths[0]
        self.stages = len(widths)
        for number, width in enumerate(widths, 1):
            stage = nn.Sequential(
                BasicBlock(channels, width, 1 if number == 1 else 2), BasicBlock(width, width, 1)
            )
            self.add_module(f"layer{number}", stage)
            channels = width

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        """(B, 3, H, W) → the output of each stage, at strides 4, 8, 16 and on."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, stride=2, padding=1)
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
            yield x


def _resnet_batch_norms(stages: int) -> dict[str, str]:
    names = {"conv1": "bn1"}
    for stage in range(1, stages + 1):
        for block in range(2):
            for conv in (1, 2):
                names[f"layer{stage}.{block}.conv{conv}"] = f"layer{stage}.{block}.bn{conv}"
        names[f"layer{stage}.0.downsample.0"] = f"layer{stage}.0.downsample.1"
    return names


TRUNKS: Mapping[str, Trunk] = {
    "vgg19": Trunk(
        build=lambda: Vgg(
            plan=(64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256), tapped=(1, 6, 11, 17)
        ),
        taps=(
            Tap("relu1_1", 64, 1),
            Tap("relu2_1", 128, 2),
            Tap("relu3_1", 256, 4),
            Tap("relu3_4", 256, 4),
        ),
        published="VGG19_Weights.IMAGENET1K_V1",
        prefix="features.",
        batch_norms={},
    ),
    "resnet18": Trunk(
        build=lambda: ResNet(widths=(64, 128, 256)),
        taps=(Tap("layer1", 64, 4), Tap("layer2", 128, 8), Tap("layer3", 256, 16)),
        published="ResNet18_Weights.IMAGENET1K_V1",
        prefix="",
        batch_norms=_resnet_batch_norms(3),
    ),
}
