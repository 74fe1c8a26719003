"""Good images that are hardly any: all the same, one of another kind, each of another size."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conftest import texture
from faults.campaign import Run
from faults.pictures import sentence
from haloae.detection.calibration import TINY
from haloae.detector import Detector
from haloae.errors import DataError

HEADS = ("gaussian", "nearest", "nearest_halo", "halo", "autoencoder")
FAR = 20.0
"""A threshold that many times the highest good score is one that nothing reaches."""
SIDES = ((1, 1), (40, 40), (200, 10), (10, 300), (64, 64), (33, 47))
ONE = texture(0)
Pictures = list[NDArray[Any]]


def _one_pixel() -> NDArray[np.uint8]:
    found = ONE.copy()
    found[7, 9] ^= 128
    return found


ALIKE: dict[str, Pictures] = {
    "all the same": [ONE] * 12,
    "one pixel": [*[ONE] * 11, _one_pixel()],
    "black": [np.zeros_like(ONE)] * 12,
    "white": [np.full_like(ONE, 255)] * 12,
}
"""Of which a defect is none."""
NOISE = np.random.default_rng(0).integers(0, 256, ONE.shape).astype(np.uint8)
SETS: dict[str, Pictures] = {
    **ALIKE,
    "greys": [np.full_like(ONE, 100 + number) for number in range(12)],
    "two pictures": [*[ONE] * 10, *[texture(1)] * 10],
    "noise among them": [*(texture(number) for number in range(19)), NOISE],
    "white among them": [*(texture(number) for number in range(19)), np.full_like(ONE, 255)],
    "sizes": [texture(number, *SIDES[number % len(SIDES)]) for number in range(12)],
    "depths": [
        texture(number).astype(np.uint16) * np.uint16(257) if number % 2 else texture(number)
        for number in range(12)
    ],
    "grey and colour": [
        texture(number)[..., 0] if number % 2 else texture(number) for number in range(12)
    ],
    "four": [texture(number) for number in range(4)],
    "none": [],
}
NOTHING = {
    "flat": np.full_like(ONE, 17),
    "checks": np.kron(np.indices((5, 5)).sum(0) % 2 * 255, np.ones((8, 8))).astype(np.uint8),
}
"""What has to do with none of them."""


def training(ground: Path, *, device: str = "cpu") -> Run:
    """A detector of such images is refused, or a threshold within reach tells what is not there."""
    base = Detector.load(ground / "autoencoder.safetensors", device="cpu").config

    def run(number: int) -> str:
        name, head = list(SETS)[number // len(HEADS)], HEADS[number % len(HEADS)]
        is_trained = head == "autoencoder"
        network = {"autoencoder": is_trained, "classifier": is_trained, "image_decoder": []}
        config = base.replace(network=network, detection={"head": head, "image_weight": 0})
        try:
            detector = Detector.fit(SETS[name], config=config, device=device)
        except DataError as error:
            assert len(SETS[name]) < 8, f"{name} is refused"
            return sentence(error)
        found = detector.calibration
        for limit, good in (
            (found.threshold.value, found.scores[-1]),
            (found.pixel_threshold.value, found.peaks[-1]),
        ):
            assert limit <= FAR * max(good, TINY), f"{name}, {head}: {limit} of {good}"
        pictures = dict(NOTHING)
        if name in ALIKE:
            pictures["spot"] = SETS[name][0].copy()
            pictures["spot"][10:26, 8:24] ^= 255
        detector.save(ground / "set.safetensors")
        loaded = Detector.load(ground / "set.safetensors", device=device)
        for what, picture in pictures.items():
            said = detector.predict(picture)
            assert said.verdict != "normal", f"{name}, {head}: {what} is normal"
            again = loaded.predict(picture)
            assert (again.score, again.verdict) == (said.score, said.verdict), f"{name}, {head}"
        return "a detector"

    return run
