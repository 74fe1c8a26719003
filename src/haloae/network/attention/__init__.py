"""The kinds of attention, one file each, all in one table: `ATTENTION`."""

from haloae.errors import ConfigError
from haloae.network.attention.base import Attention
from haloae.network.attention.global_grid import GlobalAttention
from haloae.network.attention.halo import HaloAttention
from haloae.network.attention.none import NoAttention
from haloae.network.attention.published import PublishedAttention
from haloae.network.attention.window_mean import WindowMean

__all__ = ["ATTENTION", "Attention", "HaloAttention", "find_attention", "register_attention"]

ATTENTION: dict[str, type[Attention]] = {
    "halo": HaloAttention,
    "published": PublishedAttention,
    "window_mean": WindowMean,
    "global": GlobalAttention,
    "none": NoAttention,
}
"""By the name that `network.attention.mode` gives."""


def register_attention(mode: str, kind: type[Attention]) -> None:
    """Make a kind known by a name, before a network or a model file asks for it."""
    ATTENTION[mode] = kind


def find_attention(mode: str) -> type[Attention]:
    """A kind by its name.

    Raises:
        ConfigError: no kind has this name.
    """
    if mode not in ATTENTION:
        known = ", ".join(map(repr, ATTENTION))
        raise ConfigError(f"network.attention.mode is {mode!r}: choose one of {known}.")
    return ATTENTION[mode]
