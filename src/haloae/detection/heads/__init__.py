"""Detector heads: from what the network makes of images to how unusual each cell is.

One file a head, registered in one table; `detection.head` in the config names it.
"""

from haloae.detection.heads import anywhere as anywhere
from haloae.detection.heads import autoencoder as autoencoder
from haloae.detection.heads import gaussian as gaussian
from haloae.detection.heads import halo as halo
from haloae.detection.heads import nearest as nearest
from haloae.detection.heads import nearest_halo as nearest_halo
from haloae.detection.heads import shared_memory as shared_memory
from haloae.detection.heads.base import (
    ANYWHERE,
    HEADS,
    Head,
    Seen,
    head_named,
    head_of,
    register_head,
)

__all__ = ["ANYWHERE", "HEADS", "Head", "Seen", "head_named", "head_of", "register_head"]
