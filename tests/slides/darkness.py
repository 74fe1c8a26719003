"""A detector that calls dark cells unusual: what it makes of a slide is known beforehand."""

import numpy as np
from benchmarks.slide_cost import Darkness

from conftest import PLAIN
from haloae.data.source import ImageKinds
from haloae.detection.calibration import Calibration
from haloae.detection.model_file import Provenance
from haloae.detection.predictor import Predictor

SIDE, CELL = 64, 8


def darkness(*, rate: float = 0.05, slides: tuple[float, ...] = ()) -> Predictor:
    """Peaks of good tiles are 0.2 to 0.3, so that half-dark cells are far above."""
    peaks = tuple(np.linspace(0.2, 0.3, 60).tolist())
    config = PLAIN.replace(
        image_size=SIDE,
        network={"stride": CELL, "autoencoder": False},
        detection={"head": "halo"},
        view={
            "kind": "tiles",
            "place": "anywhere",
            "canvas": (SIDE, SIDE),
            "overlap": 16,
            "margin": 8,
            "step": 8,
        },
    )
    return Predictor(
        config,
        Calibration(scores=peaks, peaks=peaks, cells=48, false_alarm_rate=rate, slides=slides),
        Provenance(
            data="cloth", fitted_on=60, held_out=0, skipped=0, steps=0, backbone="",
            backbone_sha256="", images=ImageKinds(
                grey=(False,), depths=(8,), heights=(SIDE, SIDE), widths=(SIDE, SIDE)
            ),
        ),
        Darkness(),
    )  # fmt: skip
