"""Settles what a detector sees of images, and whether places count, by the training images."""

import logging
import math
from collections.abc import Sequence

from haloae.config import Config, Place, ViewKind
from haloae.data.choosing import Sample, kind_for, place_for, sample
from haloae.data.source import ImageLike
from haloae.data.views import LEAST_SIDE
from haloae.detection.tiling import margin_of
from haloae.network.reach import step_of

log = logging.getLogger(__name__)

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
        aspect = found.aspect
        canvas = (
            _side(config.image_size / math.sqrt(aspect), step),
            _side(config.image_size * math.sqrt(aspect), step),
        )
        log.info("canvas %d×%d: the usual aspect ratio is %.2f", canvas[1], canvas[0], aspect)
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


def _side(side: float, step: int) -> int:
    return max(_up(LEAST_SIDE, step), round(side / step) * step)


def _up(side: int, step: int) -> int:
    return -(-side // step) * step
