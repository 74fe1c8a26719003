"""Sections D and E: the image decoder, and the classifier that tells CutPaste views apart."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

RGB = 3
VIEW_CLASSES = 2
"""Normal and CutPaste: HaloAE merges CutPaste's patch and scar."""


class ImageDecoder(nn.Module):
    """3×3 convolutions with reflect padding and ReLU, then two that upsample by two each.

    Args:
        channels: of the rebuilt features.
        widths: output channels of the convolutions before the two to RGB.
        relu: True: the image ends in ReLU, as published, though its target has negative values.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], *, relu: bool) -> None:
        super().__init__()
        sizes = (channels, *widths, RGB, RGB)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(wide, narrow, 3, padding=1, padding_mode="reflect")
            for wide, narrow in pairwise(sizes)
        )
        self.relu = relu

    def forward(self, rebuilt: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, 3, 4H, 4W), an image as the trunk is given it."""
        x = rebuilt
        last = len(self.convolutions) - 1
        for index, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if index < last or self.relu:
                x = F.relu(x)
            if index >= last - 1:
                x = F.interpolate(x, scale_factor=2)
        return x

    def lean(self) -> "ImageDecoder":
        """Itself: there is nothing to leave out."""
        return self


class Classifier(nn.Module):
    """One linear layer on the flattened input: normal or CutPaste."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, VIEW_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) with `inputs` values each → logits (B, 2)."""
        logits: Tensor = self.linear(x.flatten(1))
        return logits
