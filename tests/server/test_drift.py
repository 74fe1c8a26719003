"""What has changed is seen and said, good images raise no alarm, and people have the last word."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest

from conftest import texture
from haloae.data.images import image_from
from haloae.data.views import resize
from haloae.detection.calibration import Calibration
from haloae.detection.guard import MEASURES, Guard
from haloae.detection.looks import look_at
from haloae.server.drift import Alarm, Drift
from server.made_up import anomalous, inspection, unusable


class Judge(NamedTuple):
    calibration: Calibration
    guard: Guard | None


@pytest.fixture(scope="module")
def views() -> list[np.ndarray]:
    """Good images, each in a little more or less light."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(90):
        pixels = texture(number) * rng.uniform(0.97, 1.03)
        found.append(resize(image_from(pixels.clip(0, 255).astype(np.uint8)), 32))
    return found


@pytest.fixture(scope="module")
def judge(views: list[np.ndarray]) -> Judge:
    scores = tuple(sorted(np.random.default_rng(0).uniform(0, 1, 40).tolist()))
    calibration = Calibration(scores=scores, peaks=scores, false_alarm_rate=0.05)
    return Judge(calibration, Guard.fit(look_at(view) for view in views[:40]))


class Line:
    """A camera and what watches it."""

    def __init__(self, judge: Judge, views: list[np.ndarray]) -> None:
        self.raised: list[Alarm] = []
        self.judge, self.views = judge, views[40:]
        self.drift = Drift(lambda _: self.judge, on_alarm=self.raised.append)
        self.rng = np.random.default_rng(1)
        self.images = 0
        self.known: dict[Any, Mapping[str, float]] = {}

    def measures(self, spoil: Callable[[np.ndarray], np.ndarray]) -> Mapping[str, float]:
        key = int(self.rng.integers(len(self.views))), spoil
        if key not in self.known:
            assert self.judge.guard is not None
            view = np.asarray(spoil(self.views[key[0]]), np.float32)
            self.known[key] = self.judge.guard.measure(view)
        return self.known[key]

    def see(
        self,
        images: int,
        spoil: Callable[[np.ndarray], np.ndarray] = np.copy,
        kind: Callable[..., Any] = inspection,
        **changes: Any,  # noqa: ANN401 - of any field
    ) -> int | None:
        """Look at images; after how many the first new alarm is raised."""
        before, found = len(self.raised), None
        for number in range(1, images + 1):
            self.images += 1
            told = {"score": float(self.rng.uniform(0, 0.9)), "threshold": 0.95} | changes
            self.drift.add(kind(self.images, **told), self.measures(spoil))
            if found is None and len(self.raised) > before:
                found = number
        return found


def darker(view: np.ndarray) -> np.ndarray:
    return view * 0.8


def test_good_images_raise_no_alarm_and_a_fifth_less_light_does(
    judge: Judge, views: list[np.ndarray]
) -> None:
    line = Line(judge, views)
    assert line.see(500) is None
    assert line.drift.alarms() == []
    (before,) = line.drift.state()
    assert (before.recipe, before.images, before.alarms) == ("cap", 500, ())
    assert max(before.evidence.values()) < 0.8
    assert {*before.evidence} == {*MEASURES, "score"}
    assert (line.see(15, darker) or 99) <= 10
    (alarm,) = line.drift.alarms()
    assert (alarm.recipe, alarm.what) == ("cap", "brightness")
    assert alarm.words in {f"brightness: {n}% darker than usual" for n in range(17, 24)}
    assert alarm.time == inspection(alarm.images).time
    (state,) = line.drift.state()
    assert state.evidence["bright"] == 1
    assert state.change["bright"] == pytest.approx(math.log(0.8), abs=0.06)
    assert abs(state.change["sharpness"]) < 0.05  # it is less for want of light alone
    line.see(100, darker)
    assert [one.what for one in line.raised] == ["brightness"]  # which is said once


def test_a_camera_that_starts_in_other_light_is_told_by_the_good_images(
    judge: Judge, views: list[np.ndarray]
) -> None:
    line = Line(judge, views)
    assert (line.see(30, darker) or 99) <= 15
    assert {alarm.what for alarm in line.raised} == {"brightness"}


@pytest.mark.parametrize(
    ("spoil", "what", "word"),
    [
        (lambda view: (view + np.roll(view, 1, 1) + np.roll(view, 1, 2)) / 3, "focus", "blurrier"),
        (lambda view: view * 1.3, "brightness", "brighter"),
        (lambda view: view * np.array([0.8, 1, 1])[:, None, None], "colour", "more colourful"),
        (lambda view: np.roll(view, 5, 2), "place", "less alike in layout"),
    ],
)
def test_what_has_changed_is_said(
    judge: Judge, views: list[np.ndarray], spoil: Callable, what: str, word: str
) -> None:
    if what == "place":  # of what always lies in the same place
        views = [0.8 * views[0] + 0.2 * view for view in views]
        judge = judge._replace(guard=Guard.fit(look_at(view) for view in views[:40]))
    line = Line(judge, views)
    assert line.see(150) is None
    line.see(40, spoil)
    said = {alarm.what: alarm.words for alarm in line.raised}
    assert f"{word} than usual" in said[what]


def test_scores_that_rise_below_the_threshold_are_seen(
    judge: Judge, views: list[np.ndarray]
) -> None:
    line = Line(judge, views)
    assert line.see(150) is None
    assert (line.see(60, score=0.85) or 99) <= 40
    (alarm,) = line.raised
    assert alarm.what == "scores"
    assert "higher than usual" in alarm.words


@pytest.mark.parametrize("kind", [anomalous, unusable])
def test_more_bad_images_than_is_usual_are_seen(
    judge: Judge, views: list[np.ndarray], kind: Callable
) -> None:
    line = Line(judge, views)
    assert line.see(200) is None
    assert (line.see(20, kind=kind) or 99) <= 8
    (alarm,) = line.raised
    assert alarm.what == kind.__name__
    assert alarm.words.endswith(f"of the last 20 are {kind.__name__}")


def test_people_have_the_last_word(judge: Judge, views: list[np.ndarray]) -> None:
    line = Line(judge, views)
    line.see(150)
    line.see(20, darker)
    assert len(line.drift.alarms()) == 1
    line.drift.restart("cap", accept=False)
    assert line.drift.alarms() == []
    assert line.see(20, darker) is not None  # nothing was put right
    line.drift.restart("cap", accept=True)
    assert line.see(300, darker) is None
    assert (line.see(20) or 99) <= 12
    assert "brighter" in line.raised[-1].words
    line.drift.restart("never seen", accept=False)


def test_another_model_or_threshold_begins_anew(judge: Judge, views: list[np.ndarray]) -> None:
    line = Line(judge, views)
    line.see(5)
    line.see(3, model="0" * 64)
    assert line.drift.state()[0].images == 3
    line.see(2, model="0" * 64, threshold=0.97)
    assert line.drift.state()[0].images == 2


def test_models_without_a_guard_and_images_without_measures_are_watched_by_score(
    judge: Judge, views: list[np.ndarray]
) -> None:
    line = Line(judge, views)
    line.judge, guard = judge._replace(guard=None), judge.guard
    assert guard is not None
    good = guard.measure(views[50])
    for number in range(200):
        score = 0.1 + 0.004 * (number % 50)
        line.drift.add(inspection(number, score=score), {})
        line.drift.add(inspection(number, score=score, recipe="lid"), good | {"red": math.nan})
    assert [state.recipe for state in line.drift.state()] == ["cap", "lid"]
    assert line.drift.state()[0].change["score"] != 0
    assert "red" not in line.drift.state()[1].change
