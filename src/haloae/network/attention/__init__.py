"""The kinds of attention, one file each, registered in one table.

`network.attention.mode` in the config names one.
"""

from haloae.network.attention import global_grid as global_grid
from haloae.network.attention import halo as halo
from haloae.network.attention import none as none
from haloae.network.attention import published as published
from haloae.network.attention import window_mean as window_mean
from haloae.network.attention.base import (
    ATTENTION,
    Attention,
    attention_named,
    register_attention,
)

__all__ = ["ATTENTION", "Attention", "attention_named", "register_attention"]
