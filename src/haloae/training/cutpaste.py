"""Section A: three views of every training image (CutPaste, arXiv 2104.04015).

All sizes are shares of the image's sides, so they mean the same at every resolution.
"""

import math
from collections.abc import Callable

import torch
import torchvision.transforms.functional as T
from torch import Generator, Tensor

VIEWS = 3
"""Normal, patch, scar, in this order."""
JITTER = 0.1
"""Brightness, contrast and saturation change by at most this share, hue by this many turns."""
PATCH_AREA = (0.02, 0.15)
PATCH_ASPECT = (0.3, 1 / 0.3)
REFERENCE = 256
"""Side of the image, in pixels, at which the scar's sizes are given."""
SCAR_WIDTH = (2, 16)
SCAR_LENGTH = (10, 25)
SCAR_DEGREES = 45.0


def cutpaste_views(image: Tensor, generator: Generator) -> Tensor:
    """Normal, patch and scar view of one image, all under the same colour jitter.

    Args:
        image: (3, H, W) float in [0, 1], of any size.
        generator: draws everything; on the CPU.

    Returns:
        (3 views, 3, H, W) float in [0, 1]; labels are 0, 1, 1.
    """
    normal = colour_jitter(image, generator)
    return torch.stack([normal, paste_patch(normal, generator), paste_scar(normal, generator)])


def colour_jitter(image: Tensor, generator: Generator, *, amount: float = JITTER) -> Tensor:
    """Change brightness, contrast, saturation and hue, in random order.

    Args:
        image: (3, H, W) float in [0, 1].
        generator: draws factors and order.
        amount: largest relative change, and of the hue in turns.
    """
    changes: tuple[Callable[[Tensor, float], Tensor], ...] = (
        T.adjust_brightness,
        T.adjust_contrast,
        T.adjust_saturation,
        lambda x, factor: T.adjust_hue(x, factor - 1),
    )
    for index in torch.randperm(len(changes), generator=generator).tolist():
        image = changes[index](image, _uniform(1 - amount, 1 + amount, generator))
    return image


def paste_patch(image: Tensor, generator: Generator) -> Tensor:
    """Copy a rectangle of the image, jitter its colours and paste it elsewhere.

    Area 2 to 15 % of the image, aspect log-uniform in [0.3, 1 / 0.3].

    Args:
        image: (3, H, W) float in [0, 1].
        generator: draws size, places and colours.
    """
    height, width = image.shape[1:]
    area = _uniform(*PATCH_AREA, generator) * height * width
    low, high = PATCH_ASPECT
    aspect = math.exp(_uniform(math.log(low), math.log(high), generator))
    patch = colour_jitter(
        _cut(image, math.sqrt(area / aspect), math.sqrt(area * aspect), generator), generator
    )
    return _paste(image, patch, torch.ones_like(patch[:1]), generator)


def paste_scar(image: Tensor, generator: Generator) -> Tensor:
    """Copy a thin strip of the image, jitter its colours and paste it elsewhere, rotated.

    At 256²: width 2 to 16 pixels, length 10 to 25, rotation up to 45° either way.

    Args:
        image: (3, H, W) float in [0, 1].
        generator: draws size, places, angle and colours.
    """
    height, width = image.shape[1:]
    scar = _cut(
        image,
        _uniform(*SCAR_LENGTH, generator) * height / REFERENCE,
        _uniform(*SCAR_WIDTH, generator) * width / REFERENCE,
        generator,
    )
    scar = colour_jitter(scar, generator)
    angle = _uniform(-SCAR_DEGREES, SCAR_DEGREES, generator)
    with_mask = torch.cat([scar, torch.ones_like(scar[:1])])
    rotated = T.rotate(with_mask, angle, expand=True)[:, :height, :width]
    return _paste(image, rotated[:3], rotated[3:], generator)


def _uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _place(limit: int, generator: Generator) -> int:
    """A whole number from 0 to `limit`, both included."""
    return int(torch.randint(limit + 1, (), generator=generator).item())


def _cut(image: Tensor, height: float, width: float, generator: Generator) -> Tensor:
    """A random rectangle, brought to whole pixels inside the image."""
    rows = min(max(round(height), 1), image.shape[1])
    columns = min(max(round(width), 1), image.shape[2])
    top = _place(image.shape[1] - rows, generator)
    left = _place(image.shape[2] - columns, generator)
    return image[:, top : top + rows, left : left + columns]


def _paste(image: Tensor, patch: Tensor, mask: Tensor, generator: Generator) -> Tensor:
    rows, columns = patch.shape[1:]
    top = _place(image.shape[1] - rows, generator)
    left = _place(image.shape[2] - columns, generator)
    pasted = image.clone()
    target = pasted[:, top : top + rows, left : left + columns]
    target.copy_(torch.where(mask > 0, patch, target))
    return pasted
