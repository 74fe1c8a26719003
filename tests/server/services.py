"""Small recipes, and services of them, for any test that asks one."""

import io
from collections.abc import Callable

import numpy as np
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from conftest import PLAIN

CONFIG = PLAIN.replace(image_size=32)
"""Of the model that the fixture `small_model` is."""
Start = Callable[..., TestClient]
"""What the fixture `start` gives."""


def coded(pixels: NDArray[np.uint8], format: str = "png") -> bytes:
    """An image file of pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format)
    return buffer.getvalue()
