"""Tables that are counted or computed, not measured: what a pass costs, what a rate takes."""

import math
from itertools import count
from typing import Any

from benchmarks.tables import Table
from haloae.config import Config
from haloae.detection.calibration import images_needed, threshold_at
from haloae.experiments.cost import BlockCost, count_cost, total_cost
from haloae.presets import AUTOENCODER, DEFAULT, FAST, PAPER
from haloae.training.batches import MIN_GOOD, split

SHOWN = {
    "`paper`": PAPER,
    "`autoencoder`": AUTOENCODER,
    "`autoencoder, 160²`": AUTOENCODER.replace(image_size=160),
    "`default`": DEFAULT,
    "`fast`": FAST,
}
GROWING = ("`paper`", "`autoencoder`")
SIDES = (128, 256, 512, 1024)
RATES = (0.2, 0.1, 0.05, 0.02, 0.01)
FEW = (4, 10, 20)
"""Left-out images, even numbers, that a rate may be wanted from."""


def cost() -> Table:
    """Every block of the presets."""
    rows = []
    for name, config in SHOWN.items():
        trained, used = _passes(config)
        needed = {block.name: block for block in used}
        pairs = [(block, needed.get(block.name)) for block in trained]
        pairs.append((total_cost(trained, "**total**"), total_cost(used)))
        for block, use in pairs:
            in_use = (*_millions(use), _intensity(use)) if use else ("not needed", None, None)
            parameters = block.parameters or None
            rows.append([name, block.name, parameters, *_millions(block), *in_use])
    columns = [
        "preset", "block", "parameters", "as trained: MMAC", "as trained: MB", "in use: MMAC",
        "in use: MB", "intensity",
    ]  # fmt: skip
    return Table(columns, rows, dict.fromkeys(columns[3:], 1))


def growth() -> Table:
    """Whole passes over images of other sizes."""
    rows: list[list[Any]] = []
    for name in GROWING:
        for side in SIDES:
            trained, used = (total_cost(each) for each in _passes(SHOWN[name], side))
            adds = [each.multiply_adds / 1e9 for each in (trained, used)]
            rows.append(
                [name, f"{side}²", *adds, round(used.activation_bytes / 1e6), used.intensity]
            )
    columns = ["preset", "image", "as trained: GMAC", "in use: GMAC", "in use: MB", "intensity"]
    return Table(columns, rows, {**dict.fromkeys(columns[2:4], 2), "intensity": 1})


def _passes(config: Config, side: int | None = None) -> list[list[BlockCost]]:
    """As trained, and in use."""
    return [count_cost(config, image_size=side, in_use=in_use) for in_use in (False, True)]


def _millions(block: BlockCost) -> tuple[float | None, float]:
    return block.multiply_adds / 1e6 or None, block.activation_bytes / 1e6


def _intensity(block: BlockCost) -> float | None:
    return block.intensity or None


def rates() -> Table:
    """What a false-alarm rate takes in good images, and where its threshold stands with fewer."""
    rows = []
    for rate in RATES:
        needed = images_needed(rate)
        held_out = next(n for n in count(MIN_GOOD) if len(split(n, 0)[1]) >= needed)
        shown = f"{rate} (preset)" if rate == DEFAULT.detection.false_alarm_rate else str(rate)
        limits = [_limit(few, rate) if few < needed else None for few in FEW]
        rows.append([shown, round(1 / rate), needed, max(needed, MIN_GOOD), held_out, *limits])
    limits_from = [f"limit from {FEW[0]} left out, s", *(f"from {few}, s" for few in FEW[1:])]
    columns = [
        "rate", "one good image in", "left-out images needed", "good images for `default`, `fast`",
        "for `autoencoder`, `paper`", *limits_from,
    ]  # fmt: skip
    return Table(columns, rows, dict.fromkeys(limits_from, 2))


def _limit(images: int, rate: float) -> float:
    """How far above the median of log-scores, those above it standing at a distance of 1."""
    half = images // 2
    # No two of the lower ones are the same, or they would be taken for copies.
    values = [math.exp(-1 - 1e-9 * n) for n in range(half)] + [math.exp(1)] * half
    return math.log(threshold_at(values, rate).value)
