"""The frozen backbones, one file each, registered in one table.

`network.trunk` in the config names one.
"""

from haloae.network.trunks import efficientnet_lite as efficientnet_lite
from haloae.network.trunks import resnet18 as resnet18
from haloae.network.trunks import vgg19 as vgg19
from haloae.network.trunks.base import (
    TRUNKS,
    Conv2d,
    Tap,
    Trunk,
    normalise,
    register_trunk,
    trunk_named,
)

__all__ = ["TRUNKS", "Conv2d", "Tap", "Trunk", "normalise", "register_trunk", "trunk_named"]
