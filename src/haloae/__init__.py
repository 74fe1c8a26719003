"""HaloAE: find and outline defects after seeing good images only.

Public names are imported on first use, so that ``import haloae`` stays cheap.
"""

from typing import TYPE_CHECKING

from haloae._version import __version__

__all__ = ["Detector", "HaloAE", "__version__"]

if TYPE_CHECKING:
    from haloae.detector import Detector
    from haloae.network.haloae import HaloAE


def __getattr__(name: str) -> object:
    if name == "Detector":
        from haloae.detector import Detector

        return Detector
    if name == "HaloAE":
        from haloae.network.haloae import HaloAE

        return HaloAE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
