"""Settles what a detector sees of images, and whether places count, by the training images."""

import logging
import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from haloae.config import Config, Place, ViewKind
from haloae.data.choosing import Sample, kind_for, place_for, sample
from haloae.data.images import Image, image_from
from haloae.data.sampling import Chooser, places
from haloae.data.source import ImageLike
from haloae.data.views import LEAST_SIDE, Size, resize
from haloae.detection.tiling import margin_of
from haloae.errors import ImageError
from haloae.network.reach import step_of

log = logging.getLogger(__name__)

REGIONS = 64
"""Of few large images, that stand for good ones."""
THUMB_SIDE = 64
"""Side of the square that a region is judged on, in pixels."""
MOST_TILE = 1536
"""Largest side of a tile that is not asked for, in pixels: half a gigabyte on the way through the
trunk, and with the usual overlap a pixel is computed twice."""


def settled(config: Config, images: Sequence[ImageLike]) -> Config:
    """The config with all of its `view` settled, by a sample of the good images.

    What was chosen, and why, is logged. Images that are squashed and aligned are not looked at.

    Raises:
        ConfigError: the view cannot be had with this network, head or canvas.
        DataError: none of the images can be read.
    """
    view = config.view
    if view.kind == "squash" and view.place in (None, "aligned"):
        return config
    found = sample(images)
    if view.kind == "auto":
        kind, why = kind_for(found, config.image_size)
        log.info("view %s: %s", kind, why)
        config = config.replace(view={"kind": kind})
    config = _placed(config, found)
    if config.view.kind == "fit":
        return _fitted(config, found)
    return _tiled(config, found) if config.view.kind == "tiles" else config


def _placed(config: Config, found: Sample) -> Config:
    """With `view.place` settled."""
    view = config.view
    usual: dict[ViewKind, Place] = {"squash": "aligned", "tiles": "anywhere"}
    place = view.place or usual.get(view.kind, "auto")
    if view.kind == "tiles":
        place = "anywhere"
    if place == "auto":
        place, why = place_for(found)
        log.info("place %s: %s", place, why)
    return config.replace(view={"place": place})


def _fitted(config: Config, found: Sample) -> Config:
    """With a canvas of the images' usual aspect ratio, of as many pixels as the square has."""
    step = 2 * config.network.stride
    canvas = config.view.canvas
    if canvas is None:
        canvas = canvas_for(found.aspect, config.image_size, step)
        log.info(
            "seen at %d×%d pixels: images are usually %.2f times as wide as high",
            canvas[1],
            canvas[0],
            found.aspect,
        )
    return config.replace(view={"canvas": canvas, "step": step})


def _tiled(config: Config, found: Sample) -> Config:
    """With tiles as large as images are, up to `MOST_TILE`, and the overlap that is exact."""
    step, margin, view = step_of(config.network), margin_of(config), config.view
    exact = _up(2 * margin, step)
    overlap = exact if view.overlap is None else view.overlap
    canvas = view.canvas
    if canvas is None:
        largest = found.largest
        canvas = (
            _tile(largest[0], step, view.scale, overlap),
            _tile(largest[1], step, view.scale, overlap),
        )
    if overlap < exact:
        log.info(
            "tiles overlap by %d pixels, where %d make a map that has no seams: they are blended",
            overlap,
            exact,
        )
    changes = {"canvas": canvas, "overlap": overlap, "margin": margin, "step": step}
    return config.replace(view=changes)


def _tile(side: int, step: int, scale: float, overlap: int) -> int:
    return max(min(MOST_TILE, _up(round(side * scale), step)), _up(overlap + step, step))


def regions_of(images: Sequence[ImageLike], config: Config) -> list[Image]:
    """Regions of a tile's size, each to stand for a good image, where large images are few.

    Up to `REGIONS`, as many of every image, drawn with the config's seed; empty ones, and those
    that look like one that was drawn before, are left out.

    Args:
        images: those that can be read are used.
        config: settled, in tiles.
    """
    view, found, chooser = config.view, [], Chooser()
    tile = tuple(round(side / view.scale) for side in config.canvas)
    share = -(-REGIONS // len(images))
    generator = np.random.default_rng([config.seed, 4])
    for item in images:
        with suppress(ImageError):
            image = image_from(item)
            size = image.height, image.width
            wanted = 0
            for top, left in places(size, (tile[0], tile[1]), generator):
                part = image.pixels[top : top + tile[0], left : left + tile[1]].copy()
                region = Image(part, image.depth, image.grey)
                if wanted < share and chooser.wants(resize(region, THUMB_SIDE)):
                    found.append(region)
                    wanted += 1
    log.info("%d regions of %d images stand for good images", len(found), len(images))
    return found


def canvas_for(aspect: float, image_size: int, step: int) -> Size:
    """Height and width in whole steps, of an aspect ratio and of a square's number of pixels.

    A step is coarse: of those sides that fit about as well, the ones are taken that bend the
    picture least.

    >>> canvas_for(500 / 1260, 256, 16)
    (400, 160)
    """

    def misfit(size: Size) -> float:
        height, width = size
        bent = abs(math.log(width / height / aspect))
        return bent + abs(math.log(height * width / image_size**2)) / 4

    least = _up(LEAST_SIDE, step)
    heights = range(least, max(least, _up(4 * image_size, step)) + 1, step)
    sizes = [(h, max(least, round(h * aspect / step) * step)) for h in heights]
    return min(sizes, key=misfit)


def _up(side: int, step: int) -> int:
    return -(-side // step) * step
