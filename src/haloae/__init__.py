"""HaloAE: find and outline defects after seeing good images only.

Public names are imported on first use, so that ``import haloae`` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from haloae._version import __version__

if TYPE_CHECKING:
    from haloae.config import Config
    from haloae.data.limits import limit_images
    from haloae.data.regions import Masked
    from haloae.deploy.checks import seal
    from haloae.detection.prediction import Prediction
    from haloae.detector import Detector, load
    from haloae.errors import (
        ConfigError,
        DataError,
        ExportError,
        HaloaeError,
        ImageError,
        MaskError,
        MissingExtraError,
        ModelFileError,
        OutputError,
        TrainingError,
        WeightsError,
    )
    from haloae.network.haloae import HaloAE
    from haloae.presets import preset

_HOMES = {
    "Config": "haloae.config",
    "ConfigError": "haloae.errors",
    "DataError": "haloae.errors",
    "Detector": "haloae.detector",
    "ExportError": "haloae.errors",
    "HaloAE": "haloae.network.haloae",
    "HaloaeError": "haloae.errors",
    "ImageError": "haloae.errors",
    "MaskError": "haloae.errors",
    "Masked": "haloae.data.regions",
    "MissingExtraError": "haloae.errors",
    "ModelFileError": "haloae.errors",
    "OutputError": "haloae.errors",
    "Prediction": "haloae.detection.prediction",
    "TrainingError": "haloae.errors",
    "WeightsError": "haloae.errors",
    "limit_images": "haloae.data.limits",
    "load": "haloae.detector",
    "preset": "haloae.presets",
    "seal": "haloae.deploy.checks",
}
"""Where each public name lives."""
__all__ = [
    "Config",
    "ConfigError",
    "DataError",
    "Detector",
    "ExportError",
    "HaloAE",
    "HaloaeError",
    "ImageError",
    "MaskError",
    "Masked",
    "MissingExtraError",
    "ModelFileError",
    "OutputError",
    "Prediction",
    "TrainingError",
    "WeightsError",
    "__version__",
    "limit_images",
    "load",
    "preset",
    "seal",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
