"""ResNet-18 up to layer3. Layers are named as torchvision names them."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from haloae.network.published import Torchvision
from haloae.network.trunks.base import Conv2d, Tap, Trunk, register_trunk


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


def _batch_norms(stages: int) -> dict[str, str]:
    names = {"conv1": "bn1"}
    for stage in range(1, stages + 1):
        for block in range(2):
            for conv in (1, 2):
                names[f"layer{stage}.{block}.conv{conv}"] = f"layer{stage}.{block}.bn{conv}"
        names[f"layer{stage}.0.downsample.0"] = f"layer{stage}.0.downsample.1"
    return names


register_trunk(
    "resnet18",
    Trunk(
        build=lambda: ResNet(widths=(64, 128, 256)),
        taps=(Tap("layer1", 64, 4), Tap("layer2", 128, 8), Tap("layer3", 256, 16)),
        imagenet=Torchvision("ResNet18_Weights.IMAGENET1K_V1"),
        batch_norms=_batch_norms(3),
    ),
)
