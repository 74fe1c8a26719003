"""Kinds of attention."""

from haloae.network.attention.halo import HaloAttention

__all__ = ["HaloAttention"]
