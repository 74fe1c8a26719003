"""The frozen backbones, one file each, all in one table: `TRUNKS`."""

from haloae.errors import ConfigError
from haloae.network.trunks.base import Conv2d, Tap, Trunk, normalise
from haloae.network.trunks.efficientnet_lite import LITE0, LITE1, LITE2
from haloae.network.trunks.resnet18 import RESNET18
from haloae.network.trunks.vgg19 import VGG19

__all__ = ["TRUNKS", "Conv2d", "Tap", "Trunk", "find_trunk", "normalise", "register_trunk"]

TRUNKS: dict[str, Trunk] = {
    "vgg19": VGG19,
    "resnet18": RESNET18,
    "efficientnet_lite0": LITE0,
    "efficientnet_lite1": LITE1,
    "efficientnet_lite2": LITE2,
}
"""By the name that `network.trunk` gives."""


def register_trunk(name: str, trunk: Trunk) -> None:
    """Make a trunk known by a name, before a network or a model file asks for it."""
    TRUNKS[name] = trunk


def find_trunk(name: str) -> Trunk:
    """A trunk by its name.

    Raises:
        ConfigError: no trunk has this name.
    """
    if name not in TRUNKS:
        known = ", ".join(map(repr, TRUNKS))
        raise ConfigError(f"network.trunk is {name!r}: choose one of {known}.")
    return TRUNKS[name]
