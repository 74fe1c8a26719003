"""VGG19 up to relu3_4, as in the paper. Layers are named as torchvision names them."""

from collections.abc import Iterator

from torch import Tensor, nn

from haloae.network.published import Torchvision
from haloae.network.trunks.base import Conv2d, Tap, Trunk, register_trunk


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


register_trunk(
    "vgg19",
    Trunk(
        build=lambda: Vgg(
            plan=(64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256), tapped=(1, 6, 11, 17)
        ),
        taps=(
            Tap("relu1_1", 64, 1),
            Tap("relu2_1", 128, 2),
            Tap("relu3_1", 256, 4),
            Tap("relu3_4", 256, 4),
        ),
        imagenet=Torchvision("VGG19_Weights.IMAGENET1K_V1"),
        prefix="features.",
    ),
)
