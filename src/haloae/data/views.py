"""Between an image and what the network sees of it."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from haloae.data.images import Image
from haloae.errors import ConfigError

WHITE = 255
"""The highest value of 8-bit pixels, which is 1 to the network."""


def resize(image: Image, size: int) -> NDArray[np.float32]:
    """Squashes the image to a square, as the paper does: the aspect ratio is not kept.

    Bilinear; when shrinking, the filter widens with the scale, so that fine texture does not alias.

    Args:
        image: any decoded image.
        size: side of the square in pixels, at least 1.

    Returns:
        (3, size, size) float32 in [0, 1].

    Raises:
        ConfigError: `size` is below 1.
    """
    if size < 1:
        raise ConfigError(f"the image size must be at least 1 pixel, got {size}.")
    pixels = image.pixels
    if pixels.dtype == np.uint8:
        picture = PILImage.fromarray(np.ascontiguousarray(pixels))
        small = np.asarray(picture.resize((size, size), PILImage.Resampling.BILINEAR))
        return np.ascontiguousarray(small.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
    channels = [
        PILImage.fromarray(np.ascontiguousarray(pixels[..., channel], dtype=np.float32)).resize(
            (size, size), PILImage.Resampling.BILINEAR
        )
        for channel in range(1 if image.grey else 3)
    ]
    squashed = np.stack([np.asarray(channel) for channel in channels]).clip(0, 1)
    return np.repeat(squashed, 3, axis=0) if image.grey else squashed
