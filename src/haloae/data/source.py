"""Images decoded ahead of whoever uses them, bounded by number and by bytes."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from pydantic import BaseModel, ConfigDict, Field

from haloae.data.images import Image, bytes_of, image_from, shown_path
from haloae.data.regions import Mask, Masked, filled, inside_of
from haloae.data.views import View
from haloae.errors import ImageError

ImageLike = str | bytes | Path | Image | PILImage.Image | NDArray[Any] | Masked
"""All that an image can be given as."""
BATCH = 8
"""Images that are used at once, and as many more that are decoded ahead."""
DECODERS = min(BATCH, os.cpu_count() or 1)
"""Threads that decode."""
AHEAD_BYTES = 2**30
"""Most that decoded images waiting to be used may take, beyond a first one."""
_PILLOW = Lock()
SIZE_TOLERANCE = 1.25
"""Images up to this many times larger or smaller than any in training are not remarked on."""
Side = Annotated[int, Field(ge=1, le=2**31)]
"""Of an image, in pixels."""


class ImageKinds(BaseModel):
    """What the training images were, to tell when an image is unlike them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grey: tuple[bool, ...]
    depths: tuple[int, ...]
    """Bits a channel."""
    heights: tuple[Side, Side]
    """Smallest and largest, in pixels."""
    widths: tuple[Side, Side]

    def unlike(self, image: Image, *, of_any_size: bool) -> dict[str, str]:
        """In what an image is unlike all of them, in words, by kind.

        Args:
            image: any.
            of_any_size: True: what is seen of it is cut out at its own scale, so that its size is
                nothing to remark on.
        """
        unlike = {}
        if image.grey not in self.grey:
            unlike["colour"] = "is grey" if image.grey else "is in colour"
        if image.depth not in self.depths:
            unlike["depth"] = f"has {image.depth} bits a channel"
        if of_any_size:
            return unlike
        for name, word, size, (low, high) in (
            ("height", "high", image.height, self.heights),
            ("width", "wide", image.width, self.widths),
        ):
            if not low / SIZE_TOLERANCE <= size <= high * SIZE_TOLERANCE:
                unlike[name] = f"is {size} pixels {word}"
        return unlike


class Decoded(NamedTuple):
    """An image, and its pixels as the network takes them."""

    image: Image
    shown: NDArray[np.float32]
    """(3, H, W) in [0, 1], see `View.show`."""
    name: str
    """What it is called in messages."""
    inside: Mask | None = None
    """(H, W) of the image: True where a pixel counts; None: all do."""


def decode_ahead(items: Iterable[ImageLike], view: View) -> Iterator[Decoded | ImageError]:
    """Images, decoded by threads, in order; an `ImageError` in the place of a bad one.

    Up to twice `BATCH` images are asked for before the first batch has been used; fewer where they
    are large, as their headers say.

    Args:
        items: whatever `image_from` takes.
        view: what is seen of them.
    """
    remaining = iter(items)
    waiting: deque[tuple[Future[Decoded | ImageError], int]] = deque()
    waiting_bytes = 0
    held: list[ImageLike] = []
    pool = ThreadPoolExecutor(DECODERS)
    try:
        while True:
            while len(waiting) < BATCH:
                if not held:
                    held = list(islice(remaining, 1))  # of any kind: None is no image, nor the end
                if not held:
                    break
                expected = _expected_bytes(held[0])
                if waiting and waiting_bytes + expected > AHEAD_BYTES:
                    break
                item = held.pop()
                waiting.append((pool.submit(decoded, item, view), expected))
                waiting_bytes += expected
            if not waiting:
                return
            future, expected = waiting.popleft()
            waiting_bytes -= expected
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def decoded(item: ImageLike, view: View) -> Decoded | ImageError:
    """One image as `decode_ahead` gives it; what does not count of it is seen in one colour."""
    try:
        image, inside, name = opened(item)
    except ImageError as error:
        return error
    seen = image if inside is None else filled(image, inside)
    return Decoded(image, view.show(seen), name, inside)


def opened(item: ImageLike) -> tuple[Image, Mask | None, str]:
    """An image, which of its pixels count (None: all), and what it is called in messages.

    Raises:
        ImageError: as `image_from`.
        MaskError: its mask cannot be read, does not fit it, or leaves nothing.
    """
    item, masks = unmasked(item)
    # A Pillow image is read when it is first used, which two threads must not do at once.
    guard = _PILLOW if isinstance(item, PILImage.Image) else nullcontext()
    name = shown_path(item) if isinstance(item, str | os.PathLike) else "the image"
    with guard:
        image = image_from(item)
    return image, inside_of(masks, image, name), name


def unmasked(item: ImageLike) -> tuple[ImageLike, list[Masked]]:
    """An image without its masks, and these."""
    masks = []
    while isinstance(item, Masked):
        masks.append(item)
        item = item.image
    return item, masks


def _expected_bytes(item: ImageLike) -> int:
    """What an image will take once decoded; 0 where it is in memory already."""
    item, masks = unmasked(item)
    if isinstance(item, str | os.PathLike):
        return bytes_of(item) * (2 if masks else 1)  # as it is, and as it is seen
    return 0
