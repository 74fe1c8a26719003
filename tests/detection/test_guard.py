"""What a camera does to a picture is unusable; what is wrong with a part is not."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageFilter

from conftest import texture
from haloae.config import Config
from haloae.data.images import image_from
from haloae.data.views import resize
from haloae.demo_set.pictures import CATEGORIES, make_picture
from haloae.detection.guard import MEASURES, Guard, Limits
from haloae.detection.looks import LEVEL, MOST, Looks, look_at
from haloae.detector import Detector, fit_detector

View = NDArray[np.float32]
FITTED, UNSEEN = 30, 5


def board(number: int, defect: str | None = None) -> View:
    """A circuit board: the pictures are aligned."""
    return resize(image_from(make_picture("board", defect, (number,)).pixels), 192)


def stripes(seed: int) -> View:
    """Stripes of any phase: the pictures are not aligned."""
    return resize(image_from(texture(seed, 96, 96)), 96)


def blurred(view: View, radius: float) -> View:
    picture = PILImage.fromarray((view.transpose(1, 2, 0) * 255).round().astype(np.uint8))
    return resize(image_from(picture.filter(ImageFilter.GaussianBlur(radius))), view.shape[1])


def turned(view: View, degrees: float) -> View:
    picture = PILImage.fromarray((view.transpose(1, 2, 0) * 255).round().astype(np.uint8))
    back = tuple(int(value) for value in np.asarray(picture)[0, 0])
    return resize(image_from(picture.rotate(degrees, fillcolor=back)), view.shape[1])


def fitted_to(views: Iterable[View]) -> Guard:
    return Guard.fit(map(look_at, views))


def flat(value: float) -> View:
    return np.full((3, 32, 32), value, np.float32)


def noisy(view: View, sigma: float) -> View:
    noise = np.random.default_rng(0).normal(0, sigma, view.shape)
    return (view + noise).clip(0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def boards() -> list[View]:
    return [board(number) for number in range(FITTED + UNSEEN)]


@pytest.fixture(scope="module")
def guard(boards: list[View]) -> Guard:
    return fitted_to(boards[:FITTED])


@pytest.fixture(scope="module")
def unaligned() -> Guard:
    return fitted_to(stripes(number) for number in range(FITTED))


def test_unseen_good_pictures_can_be_judged(
    guard: Guard, unaligned: Guard, boards: list[View]
) -> None:
    assert guard.images == unaligned.images == FITTED
    assert [guard.why_unusable(view) for view in boards[FITTED:]] == [None] * UNSEEN
    assert [unaligned.why_unusable(stripes(100 + i)) for i in range(20)] == [None] * 20


@pytest.mark.parametrize("defect", CATEGORIES["board"][1])
def test_a_defect_is_none_of_its_business(guard: Guard, defect: str) -> None:
    assert [guard.why_unusable(board(number, defect)) for number in (0, 2)] == [None] * 2


@pytest.mark.parametrize("colour", [(1, 0, 0), (0, 0, 1), (0, 0, 0), (1, 1, 1)])
def test_a_spot_of_a_sixth_of_the_picture_is_a_defect_whatever_its_colour(
    guard: Guard, unaligned: Guard, boards: list[View], colour: tuple[float, ...]
) -> None:
    for fitted, view in ((guard, boards[FITTED].copy()), (unaligned, stripes(100))):
        side = round(view.shape[1] / np.sqrt(6))
        view[:, 8 : 8 + side, 8 : 8 + side] = np.array(colour, np.float32)[:, None, None]
        assert fitted.why_unusable(view) is None


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda view: 0 * view, "darker"),
        (lambda view: 0 * view + 1, "brighter"),
        (lambda view: 0 * view + view.mean(), "flatter"),
        (lambda view: view / 2, "darker"),
        (lambda view: (2 * view).clip(0, 1), "brighter"),
        (lambda view: blurred(view, 4), "blurrier"),
        (lambda view: noisy(view, 0.1), "noisier"),
        (lambda view: view * np.array([1, 1, 2], np.float32)[:, None, None], "bluer"),
        (lambda view: np.repeat(view.mean(0)[None], 3, axis=0), "paler"),
        (lambda view: np.roll(view, view.shape[2] // 4, axis=2), "less alike in layout"),
        (lambda view: turned(view, 10), "less alike in layout"),
        (lambda view: np.where(np.arange(view.shape[2]) < 96, 0, view), "darker"),
    ],
    ids=[
        *("black", "white", "fog", "half", "double", "blurred", "noisy", "blue", "grey"),
        *("shifted", "turned", "half covered"),
    ],
)
def test_what_a_camera_does_is_unusable(
    guard: Guard, boards: list[View], spoil: Callable[[View], View], word: str
) -> None:
    for view in boards[FITTED:]:
        said = guard.why_unusable(spoil(view).astype(np.float32))
        assert said is not None
        assert word in said
        assert f" than the {FITTED} good images by " in said


def test_how_far_is_told_in_ranges_of_the_good_images() -> None:
    limits = Limits(seen=(2, 4), usable=(1, None))
    assert [limits.beyond(value) for value in (0, 1, 3, 100)] == [-1, 0, 0, 0]
    guard = fitted_to([flat(0.5), flat(0.6)])
    times = (np.log(0.5 + LEVEL) - np.log(0.01 + LEVEL)) / (
        np.log(0.6 + LEVEL) - np.log(0.5 + LEVEL)
    )
    said = guard.why_unusable(flat(0.01))
    assert said == f"darker than the 2 good images by {times:.2g} times their range"


def test_the_layout_is_looked_at_only_where_good_pictures_are_aligned(
    guard: Guard, unaligned: Guard, boards: list[View]
) -> None:
    assert (guard.is_aligned, unaligned.is_aligned) == (True, False)
    assert unaligned.why_unusable(np.roll(stripes(100), 24, axis=2)) is None
    assert not fitted_to(boards[:29]).is_aligned, "too few to know"


def test_pictures_that_are_all_the_same_leave_room_for_another_exposure() -> None:
    same = fitted_to([stripes(0)] * 40)
    for factor in (0.8, 1.25):
        assert same.why_unusable((stripes(0) * factor).clip(0, 1)) is None
    assert same.why_unusable(stripes(0) * 0.5) is not None


@pytest.mark.parametrize("count", [4, 8])
def test_few_pictures_make_wide_limits_but_none_lets_a_black_one_through(count: int) -> None:
    exposures = np.random.default_rng(0).normal(-0.6, 0.15, 200)
    views = [flat(float(np.exp(exposure))) for exposure in exposures]
    few, many = fitted_to(views[:count]), fitted_to(views[:100])
    assert many.limits["dark"].usable[0] > few.limits["dark"].usable[0]  # type: ignore[operator]
    assert not any(few.why_unusable(view) for view in views[100:])
    assert "darker" in str(few.why_unusable(flat(0)))


def test_good_pictures_that_are_black_may_be_black() -> None:
    rng = np.random.default_rng(0)
    dark = [rng.uniform(0, 0.03 * (1 + i % 3), (3, 64, 64)).astype(np.float32) for i in range(40)]
    guard = fitted_to(dark)
    assert not any(guard.why_unusable(view) for view in dark)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_unusable(guard: Guard, value: float) -> None:
    view = board(0)
    view[1, 7, 9] = value
    with np.errstate(invalid="ignore"):
        assert guard.why_unusable(view) == "it holds values that are no numbers"


def test_images_are_looked_at_once_as_they_go_by_and_evenly_where_they_are_many() -> None:
    looks = Looks(3)
    for _ in range(2):
        assert [float(view.max()) for view in looks.watch(map(flat, (0.2, 0.3, 0.4)))] == (
            pytest.approx([0.2, 0.3, 0.4])
        )
    assert list(looks.seen) == [0, 1, 2]
    many = Looks(2 * MOST + 1)
    assert len(list(many.watch(map(flat, (0.1,) * 7)))) == 7
    assert list(many.seen) == [0, 3, 6]


def test_a_guard_is_the_same_after_json_and_refuses_other_keys(guard: Guard) -> None:
    text = guard.model_dump_json()
    assert Guard.model_validate_json(text) == guard
    assert len(text) < 5000
    for wrong in (
        {"limits": {}},
        {"mean_layout": (0.0,)},
        {"tints": {}},
        {"limits": {name: {"seen": (1, 0), "usable": (None, None)} for name in MEASURES}},
    ):
        with pytest.raises(ValueError, match=r"(needs|within) "):
            Guard.model_validate(guard.model_dump() | wrong)
    with pytest.raises(ValueError, match="more"):
        Guard.model_validate(guard.model_dump() | {"more": 1})


@pytest.fixture(scope="module")
def detector(tiny: Config, good_paths: list[Path]) -> Detector:
    return fit_detector(good_paths, tiny, name="textures", device="cpu").detector


def test_a_detector_gives_the_third_verdict_beside_score_and_map(detector: Detector) -> None:
    black, good = detector.predict([np.zeros((40, 40, 3), np.uint8), texture(100)])
    assert black.verdict == "unusable"
    assert str(black.unusable).startswith("darker")
    assert "than the 12 good images by" in str(black.unusable)
    assert black.is_anomalous == (black.score > detector.calibration.threshold.value)
    assert np.isfinite(black.anomaly_map).all()
    assert good.unusable is None
    assert good.verdict == ("anomalous" if good.is_anomalous else "normal")


def test_pixels_that_nobody_sees_are_a_black_picture(detector: Detector) -> None:
    transparent = np.dstack([texture(100), np.zeros((40, 40), np.uint8)])
    twelve_bits = texture(100).astype(np.uint16) * 16
    assert {p.verdict for p in detector.predict([transparent, twelve_bits])} == {"unusable"}


def test_the_guard_is_saved_and_fitted_anew_by_calibrating(
    detector: Detector, tmp_path: Path
) -> None:
    detector.save(tmp_path / "model.safetensors")
    loaded = Detector.load(tmp_path / "model.safetensors", device="cpu")
    assert loaded.guard == detector.guard
    assert detector.calibrated(false_alarm_rate=0.3).guard is detector.guard
    dimmed = [(texture(seed) * 0.3).astype(np.uint8) for seed in range(40, 50)]
    assert detector.predict(dimmed[0]).verdict == "unusable"
    assert detector.calibrated(dimmed).predict(dimmed[0]).verdict != "unusable"


def test_without_a_guard_nothing_is_unusable(detector: Detector, tmp_path: Path) -> None:
    old = Detector(detector.config, detector.calibration, detector.provenance, detector.backend)
    old.save(tmp_path / "model.safetensors")
    for each in (old, Detector.load(tmp_path / "model.safetensors", device="cpu")):
        assert each.guard is None
        assert each.predict(np.zeros((40, 40, 3), np.uint8)).unusable is None


def test_each_kind_of_unlike_image_is_logged_once(
    detector: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = detector.calibrated()
    grey, deep = texture(1)[..., 0], texture(1).astype(np.uint16) * 257
    with caplog.at_level(logging.WARNING, "haloae"):
        found = fresh.predict([grey, deep, texture(1)[:1, :1], grey, deep])
    words = ("is grey", "has 16 bits a channel", "is 1 pixels high and is 1 pixels wide")
    assert [said.split(",")[0] for said in caplog.messages] == [f"an image {how}" for how in words]
    assert dict(found[3].unlike) == {"colour": "is grey"}
    assert dict(found[4].unlike) == {"depth": "has 16 bits a channel"}
