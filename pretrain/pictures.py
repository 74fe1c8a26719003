"""The pictures, a class each, and the crops made of them: geometry, defects, light, blur, noise.

Everything works on whole batches on any device, and a batch is a function of (seed, step) alone.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from haloae.network.trunks import normalise
from pretrain.textures import draw

SIDE = 176
"""Side of a stored picture, in pixels."""
DEFECTIVE = 0.5
"""Share of the crops that get a defect."""
PAIRS_DEFECTIVE = 0.7
"""That of the second crops of pairs."""
VISIBLE = 0.03
"""A defect is one where it changes the image by this much, of the range [0, 1]."""
PLACE = 0.1
"""What is a crop's own in where the two of a pair are cut, of 1: some pixels and degrees."""
LIGHT = 0.3
"""What is a crop's own in the light, focus and noise of the two of a pair, of 1."""


SETTLING = 32
"""Batches that batch norm's statistics are taken anew from, and taps are measured on."""
SETTLING_SIZE = 128
"""Side of their crops: detectors see larger images than training did."""


class Batch(NamedTuple):
    """What one step learns from."""

    images: Tensor
    """(B, 3, S, S) float32 in [0, 1]."""
    classes: Tensor
    """(B,) int64: the picture each is a crop of."""
    changed: Tensor
    """(B, S, S) bool: True where a defect changes the image visibly."""


def load_pictures(photos: Path, stride: int, textures: int, seed: int, cache: Path) -> Tensor:
    """(N, 3, SIDE, SIDE) uint8: photographs in order of name, then textures.

    Args:
        photos: folder of .jpg files.
        stride: every how many-th of them is taken.
        textures: how many are drawn.
        seed: of the textures.
        cache: folder for the drawn and decoded pictures.
    """
    paths = sorted(photos.glob("*.jpg"))[::stride]
    if not paths:
        raise SystemExit(f"{photos}: holds no .jpg photographs.")
    path = cache / f"pictures-{len(paths)}-{textures}-{seed}.npy"
    if not path.exists():
        pictures = np.empty((len(paths) + textures, 3, SIDE, SIDE), np.uint8)
        for index, photo in enumerate(paths):
            image = Image.open(photo).convert("RGB")
            # Squashed, not cropped: nothing is lost, and crops vary the aspect anyway.
            image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            pictures[index] = np.asarray(image).transpose(2, 0, 1)
        for number in range(textures):
            drawn = draw(number, seed, SIDE).transpose(2, 0, 1)
            pictures[len(paths) + number] = np.round(drawn * 255)
        with path.with_suffix(".part").open("wb") as file:
            np.save(file, pictures)
        path.with_suffix(".part").replace(path)
    return torch.from_numpy(np.load(path))


def make_batch(pictures: Tensor, size: int, count: int, generator: torch.Generator) -> Batch:
    """Draw crops, spoil half of them, and vary light, focus and noise."""
    classes = torch.randint(len(pictures), (count,), generator=generator, device=pictures.device)
    images = crop(pictures[classes].float() / 255, size, generator)
    images, changed = with_defects(images, generator)
    return Batch(with_light_and_noise(images, generator), classes, changed)


def make_pairs(
    pictures: Tensor, size: int, count: int, generator: torch.Generator, dim_share: float
) -> Batch:
    """Draw pairs of crops, all first ones before all second ones, as of two parts of a product.

    Both are cut at nearly the same place in nearly the same light, and most of the second ones are
    spoiled, some of them faintly. A share of the pairs is dim, and as many are flat.
    """
    classes = torch.randint(
        len(pictures), (count // 2,), generator=generator, device=pictures.device
    ).repeat(2)
    images = crop(pictures[classes].float() / 255, size, generator, own=PLACE)
    good, parts = images.chunk(2)
    spoiled, _ = with_defects(parts, generator, PAIRS_DEFECTIVE)
    draws = _uniform(parts, 2, generator)[:, :, None, None, None]
    spoiled = torch.lerp(parts, spoiled, torch.where(draws[0] < 0.5, 0.15 + 0.85 * draws[1], 1.0))
    changed = torch.cat([_visible(good, good), _visible(parts, spoiled)])
    images = torch.cat([good, spoiled])
    if dim_share:
        images = dim_or_flat(images, generator, dim_share)
    return Batch(with_light_and_noise(images, generator, own=LIGHT), classes, changed)


def crop(pictures: Tensor, size: int, generator: torch.Generator, own: float = 1.0) -> Tensor:
    """Random resized crop with a little rotation, and a flip: (B, 3, ·, ·) → (B, 3, size, size)."""
    draws = _uniform(pictures, 6, generator, own)
    area = 0.08 + 0.92 * draws[0] ** 1.5
    aspect = torch.exp((draws[1] - 0.5) * 2 * math.log(4 / 3))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    angle = (draws[2] - 0.5) * 0.35
    flip = torch.where(draws[3] < 0.5, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([width * cos * flip, -height * sin, (draws[4] * 2 - 1) * (1 - width)], -1),
            torch.stack([width * sin * flip, height * cos, (draws[5] * 2 - 1) * (1 - height)], -1),
        ],
        dim=1,
    )
    # Sampled at twice the size and averaged, so that shrinking does not alias.
    grid = F.affine_grid(theta, [len(pictures), 3, 2 * size, 2 * size], align_corners=False)
    fine = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(fine, 2)


def normalised_crops(pictures: Tensor, seed: int) -> list[Tensor]:
    """`SETTLING` batches (16, 3, S, S) of good crops as a trunk sees them, on the CPU."""
    batches = []
    for number in range(SETTLING):
        generator = torch.Generator().manual_seed(seed + number)
        chosen = torch.randint(len(pictures), (16,), generator=generator)
        crops = crop(pictures[chosen.to(pictures.device)].cpu() / 255, SETTLING_SIZE, generator)
        batches.append(normalise(crops))
    return batches


def with_defects(
    images: Tensor, generator: torch.Generator, share: float = DEFECTIVE
) -> tuple[Tensor, Tensor]:
    """Blobs, scratches and patches, filled with colour or with what stands elsewhere.

    Returns:
        The images, a share of them spoiled, and (B, S, S) bool, True where one visibly is.
    """
    shape = _shapes(images, generator)
    draws = _uniform(images, 9, generator)[:, :, None, None, None]
    shift = [int(s) for s in torch.randint(4, 28, (2,), generator=generator, device=images.device)]
    colour = images.mean((2, 3), keepdim=True) + 1.2 * (draws[0:3, :, 0].movedim(0, 1) - 0.5)
    kind = (draws[3] * 5).long()
    fill = torch.where(kind == 0, colour.expand_as(images), images.roll(1, 0))
    fill = torch.where(kind == 2, images.roll(shift, (2, 3)), fill)
    fill = torch.where(kind == 3, images * torch.exp((draws[4] - 0.5) * 2.5), fill)
    fill = torch.where(kind == 4, images + (draws[5] - 0.5), fill)
    opacity = (0.35 + 0.65 * draws[6]) * (draws[7] < share)
    spoiled = torch.lerp(images, fill, shape.unsqueeze(1) * opacity).clamp(0, 1)
    return spoiled, _visible(images, spoiled)


def _visible(images: Tensor, spoiled: Tensor) -> Tensor:
    return (spoiled - images).abs().mean(1) > VISIBLE


def _shapes(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, S, S) in [0, 1], soft-edged: a blob, a curved scratch or a rectangle each."""
    size = images.shape[-1]
    draws = _uniform(images, 9, generator)[:, :, None, None]
    axis = torch.arange(size, device=images.device, dtype=torch.float32)
    y = axis[:, None] - draws[0] * size
    x = axis[None, :] - draws[1] * size
    angle = draws[2] * math.pi
    u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    rough = torch.randn(
        (len(images), 1, size // 4, size // 4), generator=generator, device=images.device
    )
    rough = F.interpolate(rough, size=(size, size), mode="bilinear")[:, 0]
    radius = 1.5 * (size / 6) ** draws[3]
    blob = 1.5 * (1 - torch.hypot(u, v * (0.5 + draws[4])) / radius) + 0.6 * rough
    half_width = 0.4 + 1.4 * draws[5] ** 2
    half_length = size * (0.05 + 0.4 * draws[6])
    bent = v + (draws[7] - 0.5) * u * u / size * 2
    scratch = torch.minimum(half_width - (bent + 0.3 * rough).abs(), half_length - u.abs()) + 0.5
    patch = torch.minimum(
        size * (0.02 + 0.2 * draws[4]) - u.abs(), size * (0.02 + 0.2 * draws[5]) - v.abs()
    )
    kind = (draws[8] * 3).long()
    return torch.where(kind == 0, blob * 2, torch.where(kind == 1, scratch, patch)).clamp(0, 1)


def with_light_and_noise(images: Tensor, generator: torch.Generator, own: float = 1.0) -> Tensor:
    """What a good part may do too: exposure, colour cast, uneven light, focus, sensor noise."""
    size = images.shape[-1]
    draws = _uniform(images, 14, generator, own)[:, :, None, None, None]
    axis = torch.linspace(-0.5, 0.5, size, device=images.device)
    slope = (draws[0] - 0.5) * axis[:, None] + (draws[1] - 0.5) * axis[None, :]
    gain = torch.exp((draws[2] - 0.5) * 1.2) * (1 + 0.8 * slope)
    cast = torch.exp((draws[3:6, :, 0].movedim(0, 1) - 0.5) * 0.4)
    images = (images * gain * cast).clamp(0, 1.5)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * torch.exp((draws[6] - 0.5) * 1.2)
    images = images + (draws[7] - 0.5) * 0.3
    grey = images.mean(1, keepdim=True)
    saturation = torch.where(draws[8] < 0.3, 0.0, 0.5 + draws[9])
    images = grey + (images - grey) * saturation
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    images = torch.lerp(images, blurred, torch.where(draws[10] < 0.4, draws[11], 0.0))
    sigma = torch.where(draws[12] < 0.5, 0.06 * draws[13], 0.0)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + sigma * noise).clamp(0, 1)


def dim_or_flat(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """A share of the pairs with less contrast (down to a fifth), one in less light (a quarter)."""
    draws = _uniform(images, 4, generator, LIGHT)[:, :, None, None, None]
    mean = images.mean((1, 2, 3), keepdim=True)
    contrast = torch.where(draws[0] < share, torch.exp(-1.6 * draws[1]), 1.0)
    light = torch.where(draws[2] < share, torch.exp(-1.4 * draws[3]), 1.0)
    return (mean + (images - mean) * contrast) * light


def _uniform(images: Tensor, rows: int, generator: torch.Generator, own: float = 1.0) -> Tensor:
    """(rows, B) draws; with `own` below 1 the images are pairs, which share the rest of a draw."""
    draws = torch.rand((rows, len(images)), generator=generator, device=images.device)
    if own == 1:
        return draws
    shape = (rows, len(images) // 2)
    shared = torch.rand(shape, generator=generator, device=images.device).repeat(1, 2)
    return torch.lerp(shared, draws, own)
