"""Images of inspections: kept for as long as there is room, and read back as they were."""

import io
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from haloae.detection.prediction import Prediction
from haloae.errors import OutputError
from haloae.server.images import PART, KeptImages
from haloae.server.problems import Problems
from haloae.server.records import Records
from haloae.server.settings import KeepSettings
from server.made_up import anomalous, inspection, unusable


def until(is_so: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def seen(side: int = 8, seed: int = 0, **changes: Any) -> Any:  # noqa: ANN401 - what a listener looks at
    """An image of some bytes and its map, whose highest value is twice the limit."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, format="bmp")
    values: dict[str, Any] = {
        "score": 0.5,
        "p_value": 0.25,
        "is_anomalous": False,
        "extrapolated": False,
        "grid_map": np.linspace(0, 6, 16, dtype=np.float32).reshape(4, 4),
        "size": (side, side),
        "pixel_threshold": 3.0,
        "threshold": 1.0,
    }
    return SimpleNamespace(given=buffer.getvalue(), prediction=Prediction(**values | changes))


REGION = np.arange(130).reshape(10, 13) % 3 > 0
CHANGES = {
    "tiles that reach past the image": {"covered": (1.25, 1.6)},
    "pixels that do not count": {"inside": REGION, "cells": np.arange(16).reshape(4, 4) > 2},
    "anomalous by its score alone": {"is_anomalous": True, "score": 2.0, "pixel_threshold": 7.0},
}


def started(folder: Path, problems: Problems, **settings: Any) -> KeptImages:  # noqa: ANN401
    settings = {"image_days": 1e5} | settings  # what is made up is of long ago
    images = KeptImages(folder, KeepSettings(**settings), problems)
    images.start()
    return images


@pytest.fixture
def problems() -> Problems:
    return Problems()


def test_an_image_and_its_map_come_back(tmp_path: Path, problems: Problems) -> None:
    one, given = inspection(1), seen()
    images = started(tmp_path / "images", problems)
    images.keep(one, given)
    at_once = images.read(one)
    images.close(20)
    again = KeptImages(tmp_path / "images", KeepSettings(), problems)
    for kept in (at_once, again.read(one)):
        assert kept is not None
        assert (kept.data, kept.suffix) == (given.given, "bmp")
        np.testing.assert_allclose(kept.map.grid_map, given.prediction.grid_map / 3, rtol=1e-3)
        prediction = kept.prediction(one, (8, 8))
        assert prediction.verdict == "normal"
        assert prediction.defects.any()
    path = again.path_of(one)
    assert path is not None
    assert path.relative_to(tmp_path).parts == ("images", "2026-03-01", f"{one.id}.bmp")
    assert again.read(inspection(2)) is None
    assert problems.now() == []


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_drawn_of_a_kept_image_is_what_was_found(
    tmp_path: Path, problems: Problems, changes: dict[str, Any]
) -> None:
    given = seen(size=(10, 13), **changes)
    one = inspection(1, score=given.prediction.score)
    images = started(tmp_path, problems)
    images.keep(one, given)
    images.close(20)
    kept = KeptImages(tmp_path, KeepSettings(), problems).read(one)
    assert kept is not None
    found, wanted = kept.prediction(one, (10, 13)), given.prediction
    scaled = found.anomaly_map * wanted.pixel_threshold
    np.testing.assert_allclose(scaled, wanted.anomaly_map, rtol=2e-3, atol=1e-3)
    assert found.mark_above * wanted.pixel_threshold == pytest.approx(wanted.mark_above, rel=1e-3)
    np.testing.assert_array_equal(found.defects, wanted.defects)
    assert found.defects.any()


def test_a_map_that_was_torn_is_none(tmp_path: Path, problems: Problems) -> None:
    images = started(tmp_path, problems)
    images.keep(inspection(1), seen())
    images.close(20)
    (path,) = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    for length in (0, 3, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert images.read(inspection(1)) is None


def test_pixels_are_kept_as_a_png(tmp_path: Path, problems: Problems) -> None:
    given = seen()
    given.given = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    images = started(tmp_path, problems)
    images.keep(inspection(1), given)
    images.close(20)
    path = images.path_of(inspection(1))
    assert path is not None
    assert path.suffix == ".png"
    np.testing.assert_array_equal(np.array(Image.open(path)), given.given)


def test_what_was_reviewed_stays(tmp_path: Path, problems: Problems) -> None:
    images = started(tmp_path, problems)
    images.keep(inspection(1), seen())
    images.hold(inspection(1))
    images.hold(inspection(2))  # of which there is no image
    images.close(20)
    started(tmp_path, problems, image_days=1, image_bytes=1).close(20)
    kept = KeptImages(tmp_path, KeepSettings(), problems).read(inspection(1))
    assert kept is not None
    assert kept.data == seen().given
    assert [path.parent.name for path in tmp_path.rglob("*.bmp")] == ["reviewed"]


def test_an_id_that_is_none_leads_nowhere(tmp_path: Path, problems: Problems) -> None:
    outside = tmp_path / "secret.png"
    outside.write_bytes(b"")
    images = KeptImages(tmp_path / "images", KeepSettings(), problems)
    (tmp_path / "images" / "2026-03-01").mkdir(parents=True)
    for name in ("../../secret", "/etc/passwd", "", "." * 32, "A" * 32):
        assert images.path_of(replace(inspection(1), id=name)) is None


def test_the_oldest_go_where_there_is_no_room(tmp_path: Path, problems: Problems) -> None:
    theirs = tmp_path / "2026-03-01" / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("of somebody")
    size = len(seen(32).given)
    images = started(tmp_path, problems, image_bytes=10 * size)
    made = [inspection(number) for number in range(30)]
    for number, one in enumerate(made):
        images.keep(one, seen(32, seed=number))
    images.close(20)
    kept = [one for one in made if images.path_of(one)]
    assert kept == made[-len(kept) :]
    assert 3 <= len(kept) < 10
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.*")) <= 10 * size + 20
    assert theirs.exists()
    again = started(tmp_path, problems, image_bytes=1)  # knows those of before
    until(lambda: not any(again.path_of(one) for one in made))
    again.close(20)


def test_those_of_long_ago_go(tmp_path: Path, problems: Problems) -> None:
    images = started(tmp_path, problems, image_days=30)
    images.keep(inspection(1), seen())
    images.close(20)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("wanted", "kept"), [("all", "yyyy"), ("to_review", "nyyy"), ("none", "nnnn")]
)
def test_only_those_that_are_wanted_are_kept(
    tmp_path: Path, problems: Problems, wanted: str, kept: str
) -> None:
    made = [inspection(0), inspection(1, score=0.95), anomalous(2), unusable(3)]
    images = started(tmp_path, problems, images=wanted)
    for one in made:
        images.keep(one, seen())
    images.close(20)
    assert "".join("ny"[images.read(one) is not None] for one in made) == kept


def test_a_disk_that_takes_nothing_is_said_and_stops_nothing(
    tmp_path: Path, problems: Problems
) -> None:
    (tmp_path / "images").write_text("a file where the folder should be")
    images = started(tmp_path / "images", problems)
    images.keep(inspection(1), seen())
    until(problems.now)
    (problem,) = problems.now()
    assert problem.part == PART
    os.unlink(tmp_path / "images")  # noqa: PTH108
    images.keep(inspection(2), seen())
    until(lambda: not problems.now())
    images.close(20)
    assert [images.read(inspection(number)) is not None for number in (1, 2)] == [False, True]


def test_two_services_do_not_keep_in_one_folder(tmp_path: Path, problems: Problems) -> None:
    first, second = (Records(tmp_path / "data", KeepSettings(), problems) for _ in range(2))
    first.open()
    with pytest.raises(OutputError, match=r"data: process \d+ is writing there"):
        second.open()
    second.close(0)
    first.close(20)
    second.open()
    second.close(20)
