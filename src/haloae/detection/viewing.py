"""Settles what a detector sees of images, and whether places count, by the training images."""

import logging
import math
from collections.abc import Sequence

import numpy as np

from haloae.config import Config
from haloae.data.choosing import SQUARE, Sample, kind_for, place_for, sample
from haloae.data.images import Image
from haloae.data.regions import Masked, filled
from haloae.data.sampling import Chooser, places
from haloae.data.source import ImageLike, opened
from haloae.data.views import LEAST_SIDE, Size, View, resize, whole_steps
from haloae.detection.tiling import margin_of
from haloae.errors import ConfigError, DataError, ImageError, MaskError
from haloae.network.reach import step_of

log = logging.getLogger(__name__)

PART = 512
"""Side of what a part of a slide is fitted to, in pixels; around it there is what that sees."""
MOST_COST = 1.6
"""Pixels computed for one that is delivered, where tiles may be so large."""

REGIONS = 64
"""Of few large images, that stand for good ones."""
THUMB_SIDE = 64
"""Side of the square that a region is judged on, in pixels."""
MOST_TILE = 2144
"""Largest side of a tile that is not asked for, in pixels: half a gigabyte on the way through
EfficientNet-lite0, whose overlap costs `MOST_COST` then."""
LEAST_COUNTED = 0.5
"""Of a region that stands for a good image, where not all pixels count."""


def in_parts(config: Config) -> Config:
    """As a detector sees the parts of slides that it is fitted to: each of them is a tile.

    Raises:
        ConfigError: slides cannot be seen in tiles with this network or head.
    """
    config = config.replace(view={"kind": "tiles", "place": "anywhere", "canvas": None})
    step, margin, overlap = step_of(config.network), margin_of(config), config.view.overlap
    side = whole_steps(2 * margin + PART, step)
    settled_view = {
        "canvas": (side, side),
        "overlap": whole_steps(2 * margin, step) if overlap is None else overlap,
        "margin": margin,
        "step": step,
    }
    return config.replace(view=settled_view)


def in_slides(config: Config, wanted: Size | None) -> Config:
    """As that detector sees whole slides: in tiles so large that their overlap costs little.

    Args:
        config: settled, of a detector that was fitted to parts.
        wanted: canvas that somebody asked for; None: nobody did.
    """
    if config.network.autoencoder:
        return config  # it was trained on as much as that
    overlap = config.view.overlap or 0
    cheap = whole_steps(math.ceil(overlap / (1 - MOST_COST**-0.5)), step_of(config.network))
    side = max(min(cheap, MOST_TILE), config.canvas[0])
    return config.replace(view={"canvas": wanted or (side, side)})


def settled(config: Config, images: Sequence[ImageLike]) -> Config:
    """The config with all of its `view` settled, by a sample of the good images.

    What was chosen, and why, is logged; where images are square, and squashed as ever, to debug.
    Images that are squashed and aligned are not looked at.

    Raises:
        ConfigError: the view cannot be had with this network, head or canvas.
        DataError: none of the images can be read.
    """
    view = config.view
    if view.kind == "squash" and view.place in (None, "aligned"):
        return config
    try:
        found = sample(images)
    except DataError:
        if view.kind != "auto":
            raise
        return config.replace(view={"kind": "squash"})  # whoever reads them all says what is wrong
    if view.kind == "auto":
        config = _chosen(config, found)
    if config.view.kind == "tiles":
        return _tiled(config.replace(view={"place": "anywhere"}), found)
    if config.view.kind == "fit":
        config = _fitted(config, found)
        log.info("images are %s", config.seen)
    place = config.view.place or ("aligned" if config.view.kind == "squash" else "auto")
    if place == "auto":
        place, why = place_for(found, View.of(config))
        log.info("place %s: %s", place, why)
    return config.replace(view={"place": place})


def _chosen(config: Config, found: Sample) -> Config:
    """With the kind of view that the images ask for, or that can be had instead of tiles."""
    fitted = _fitted(config.replace(view={"kind": "fit"}), found)
    kind, why = kind_for(found, config.image_size, View.of(fitted))
    if kind == "tiles":
        try:
            margin_of(config.replace(view={"kind": "tiles", "place": "anywhere"}))
        except ConfigError as error:
            kind, why = "fit", f"tiles would be better, and cannot be had: {error}"
    is_news = kind != "squash" or found.long > SQUARE
    log.log(logging.INFO if is_news else logging.DEBUG, "view %s: %s", kind, why)
    return config.replace(view={"kind": kind})


def _fitted(config: Config, found: Sample) -> Config:
    """With a canvas of the images' usual aspect ratio."""
    step, canvas = 2 * config.network.stride, config.view.canvas
    if canvas is None:
        canvas = canvas_for(found.aspect, config.image_size, step)
    return config.replace(view={"canvas": canvas, "step": step})


def _tiled(config: Config, found: Sample) -> Config:
    """With tiles as large as images are, up to `MOST_TILE`, and the overlap that is exact."""
    step, margin, view = step_of(config.network), margin_of(config), config.view
    exact = whole_steps(2 * margin, step)
    overlap = exact if view.overlap is None else view.overlap
    canvas = view.canvas
    if canvas is None:
        high, wide = (_tile(side, step, view.scale, overlap) for side in found.largest)
        canvas = (high, wide)
    elif any(
        tile > whole_steps(round(s * view.scale), step)
        for tile, s in zip(canvas, found.largest, strict=True)
    ):
        log.warning(
            "tiles of %d×%d pixels are larger than the images, of which the rest is mirrored: a "
            "smaller view.canvas costs less",
            canvas[1],
            canvas[0],
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
    return max(
        min(MOST_TILE, whole_steps(round(side * scale), step)), whole_steps(overlap + step, step)
    )


def regions_of(images: Sequence[ImageLike], config: Config) -> list[Image | Masked]:
    """Regions of a tile's size, each to stand for a good image, where large images are few.

    Up to `REGIONS`, as many of every image, drawn with the config's seed; empty ones, and those
    that look like one that was drawn before, are left out, and so are those of which less than half
    counts.

    Args:
        images: those that can be read are used.
        config: settled, in tiles.

    Raises:
        MaskError: a mask cannot be read, does not fit its image, or leaves nothing of it.
    """
    view, chooser = config.view, Chooser()
    found: list[Image | Masked] = []
    tile = tuple(round(side / view.scale) for side in config.canvas)
    share = -(-REGIONS // len(images))
    generator = np.random.default_rng([config.seed, 4])
    for item in images:
        try:
            image, inside, _ = opened(item)
        except ImageError as error:
            if isinstance(error, MaskError):
                raise
            continue
        wanted = 0
        for top, left in places((image.height, image.width), (tile[0], tile[1]), generator):
            place = slice(top, top + tile[0]), slice(left, left + tile[1])
            region = Image(image.pixels[place].copy(), image.depth, image.grey)
            counts = None if inside is None else inside[place].copy()
            if wanted == share or (counts is not None and counts.mean() < LEAST_COUNTED):
                continue
            if chooser.wants(
                resize(region if counts is None else filled(region, counts), THUMB_SIDE)
            ):
                found.append(region if counts is None else Masked(region, counts))
                wanted += 1
    log.info("%d regions of %d images stand for good images", len(found), len(images))
    return found


def canvas_for(aspect: float, image_size: int, step: int) -> Size:
    """Height and width in whole steps, of an aspect ratio.

    Halfway between a square's number of pixels, in which the longer an image is, the less of its
    detail is left, and a square's side for the shorter one. A step is coarse: of those sides that
    fit about as well, the ones are taken that bend the picture least.

    >>> canvas_for(500 / 1260, 256, 16)
    (528, 208)
    """
    pixels = image_size**2 * math.sqrt(max(aspect, 1 / aspect))

    def misfit(size: Size) -> float:
        height, width = size
        bent = abs(math.log(width / height / aspect))
        return bent + abs(math.log(height * width / pixels)) / 4

    least = whole_steps(LEAST_SIDE, step)
    heights = range(least, max(least, whole_steps(8 * image_size, step)) + 1, step)
    sizes = [(h, max(least, round(h * aspect / step) * step)) for h in heights]
    return min(sizes, key=misfit)
