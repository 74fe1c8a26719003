"""What computes scores and maps of what the network sees: torch, or the runtime of an export."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from haloae.data.regions import Mask
from haloae.data.views import Size


class Measured(NamedTuple):
    """What a backend makes of a batch of images as the network sees them."""

    scores: NDArray[np.float32]
    """(B,)."""
    maps: NDArray[np.float32]
    """(B, h, w), on the feature grid."""


class Backend(Protocol):
    """What computes: torch, or a runtime with an exported graph."""

    source: str
    """What it was loaded from, as it is named in messages."""
    takes: Size | None
    """Height and width of the images that it takes, no others; None: any."""

    @property
    def name(self) -> str:
        """Which one, with its version, and in which precision."""

    def measure(self, images: NDArray[np.float32], inside: Mask | None = None) -> Measured:
        """Scores and maps of images as the network sees them.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], of the size of the config's canvas; torch takes
                smaller ones too.
            inside: (B, H, W), True where a pixel of each counts, within what counts of all; None:
                each counts as all do.
        """
