"""`Detector`: fit on good images, predict, calibrate, save, load."""

from haloae.detector.detector import Detector, load
from haloae.detector.fitting import Fitted, check_names, fit_detector

__all__ = ["Detector", "Fitted", "check_names", "fit_detector", "load"]
