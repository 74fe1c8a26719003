"""The contact sheet: which images are on it, in which order, and what is said of them."""

import io
import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PILImage

from haloae.detection.prediction import Prediction
from haloae.outputs.pictures import VERDICT_COLOURS
from haloae.outputs.sheet import Highest, Ranked, draw_sheet


def scored(score: float) -> Prediction:
    return Prediction(
        score=score,
        p_value=0.2,
        is_anomalous=score > 1,
        extrapolated=False,
        grid_map=np.zeros((1, 1), np.float32),
        size=(1, 1),
        pixel_threshold=1.0,
    )


# The highest


def test_the_highest_are_ranked_and_the_earlier_wins_a_tie() -> None:
    highest = Highest(keep=3)
    for name, score in (("a", 1), ("b", 3), ("c", 2), ("d", 3), ("e", 2), ("f", 0)):
        highest.add(name, scored(score))
    assert [entry.name for entry in highest.ranked()] == ["b", "d", "c"]
    highest.add("e", replace(scored(0.0), unusable="darker"))
    assert [entry.name for entry in highest.ranked()] == ["e", "b", "d"]


def test_memory_does_not_grow_with_the_images() -> None:
    rng = np.random.default_rng(0)
    made = 0

    def small() -> PILImage.Image:
        nonlocal made
        made += 1
        return PILImage.new("RGB", (64, 64))

    highest = Highest()
    tracemalloc.start()
    for number in range(200):
        highest.add(f"{number}.png", scored(rng.uniform()), small)
    before = tracemalloc.get_traced_memory()[0]
    for number in range(20_000):
        highest.add(f"{number}.png", scored(rng.uniform()), small)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000
    assert len(highest.ranked()) == 40
    assert made < 500, "a thumbnail only where it may be shown"


def test_names_are_one_printable_line() -> None:
    highest = Highest()
    highest.add("new\nline\x1b[31m" + os.fsdecode(b"\xff"), scored(2.0))
    (entry,) = highest.ranked()
    assert entry.name == "new\\nline\\x1b[31m\\udcff"
    draw_sheet([entry], "1 of 1")


# The contact sheet


@pytest.mark.parametrize("number", [1, 3, 9, 40])
def test_the_sheet_keeps_the_order_and_shows_the_verdict(number: int) -> None:
    shades = np.linspace(40, 250, number).astype(int)
    ranked = [
        Ranked(
            False,
            number - i,
            -i,
            "n" * 300,
            0.1,
            "normal" if i % 2 else "anomalous",
            PILImage.new("RGB", (200, 200), (s, 0, s)),
        )
        for i, s in enumerate(shades.tolist())
    ]
    shown = np.asarray(PILImage.open(io.BytesIO(draw_sheet(ranked, "headline")))).astype(int)
    frames = [
        np.abs(shown - VERDICT_COLOURS[word]).max(axis=-1) <= 25 for word in ("anomalous", "normal")
    ]
    assert frames[0].any()
    assert frames[1].any() == (number > 1)
    purple = (
        (shown[..., 1] < 25) & (np.abs(shown[..., 0] - shown[..., 2]) < 15) & (shown[..., 0] > 30)
    )
    columns = min(8, max(4, number))
    width, found = 14 + 212 + 12, []
    for i in range(number):
        left = 14 + i % columns * width
        rows = np.flatnonzero(purple[:, left + 100])
        starts = rows[np.flatnonzero(np.diff(rows, prepend=-9) > 1)]
        assert len(starts) == -(-(number - i % columns) // columns)
        found.append(shown[starts[i // columns] + 50, left + 100, 0])
    np.testing.assert_allclose(found, shades, atol=4)
