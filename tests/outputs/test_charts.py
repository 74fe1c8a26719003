"""The report's charts: axes, histograms, and the curves of a training's losses."""

from pathlib import Path

import numpy as np
import pytest

from haloae.outputs.report.charts import Axis, histogram
from haloae.outputs.report.loss_log import MOST_LOSS_POINTS, read_losses


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ([1.0, 1.2, 1.4], False),
        ([1.0, 1e4], True),
        ([0.0, 0.0], False),
        ([0.0, 1e-7, 1.0], False),
        ([3.0], False),
        ([1e-300, 1e300], False),
        ([], False),
    ],
)
def test_axes(values: list[float], is_log: bool) -> None:
    axis = Axis.around(values)
    assert axis.is_log is is_log
    places = axis.place(values)
    assert ((places >= 0) & (places <= 1)).all()
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(axis.low <= tick <= axis.high for tick in ticks)


def test_a_histogram_keeps_the_scores_near_the_threshold_apart() -> None:
    drawing, above = histogram([1.0, 1.1, 1.2], [1.6, 5e8], 1.5)
    assert above == 1
    assert drawing.count("<rect") == 5
    drawing, above = histogram([1.0, 1.1], [], 1e90)
    assert "threshold" not in drawing
    assert above == 0
    histogram([0.0, 0.0], [0.0], 0.0)


def test_losses_are_condensed(tmp_path: Path) -> None:
    assert read_losses(tmp_path / "none.csv") == {}
    path = tmp_path / "losses.csv"
    path.write_bytes(b"\xff\x00,,\n\n")
    assert read_losses(path) == {}
    rows = "".join(f"{step},{2 * step},1,,0.1\n" for step in range(5001))
    path.write_text("step,features,features_weight,image,learning_rate\n" + rows + "1,2\nx")
    curves = read_losses(path)
    assert list(curves) == ["features"]
    curve = curves["features"]
    assert MOST_LOSS_POINTS / 2 <= len(curve.x) <= MOST_LOSS_POINTS
    assert np.allclose(curve.y, 2 * curve.x)
