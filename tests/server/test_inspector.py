"""What is taken in is inspected once, in batches, or refused at once."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from conftest import texture
from haloae import Detector, ImageError
from haloae.server.inspection import Inspection, file_of
from haloae.server.inspector import Inspector, Seen
from haloae.server.problems import Problems, RefusedError
from haloae.server.recipes import Recipes
from haloae.server.settings import QueueSettings
from server.services import coded

Make = Callable[..., Inspector]
IMAGES = [coded(texture(number)) for number in range(8)]


@pytest.fixture
def make(small_model: Path) -> Iterator[Make]:
    """An inspector that was not started yet."""
    with ExitStack() as stack:

        def made(**settings: float) -> Inspector:
            problems = Problems()
            recipes = Recipes(small_model, threads=1, memory=2**40, look=3600, problems=problems)
            inspector = Inspector(recipes, QueueSettings.model_validate(settings), problems)
            stack.callback(inspector.stop, 10)
            return inspector

        yield made


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were measured at once, each time."""
    sizes: list[int] = []
    judge = Detector.judge

    def judging(self: Detector, batch: list) -> list:
        sizes.append(len(batch))
        return judge(self, batch)

    monkeypatch.setattr(Detector, "judge", judging)
    return sizes


def scores(futures: list) -> list[float]:
    return [future.result(10).inspection.score for future in futures]


def test_what_waits_is_measured_in_batches_and_each_gets_its_own_answer(
    make: Make, batches: list[int], small_model: Path
) -> None:
    wanted = [one.score for one in Detector.load(small_model).predict(IMAGES)]
    batches.clear()
    inspector = make(threads=1, batch=4, wait=0)
    futures = inspector.submit(IMAGES, recipe="cloth", source="request")
    inspector.start()
    assert scores(futures) == pytest.approx(wanted, rel=1e-5)
    assert batches == [4, 4]
    assert inspector.queued == 0


def test_those_that_come_within_the_wait_are_measured_together(
    make: Make, batches: list[int]
) -> None:
    inspector = make(threads=1, batch=2, wait=10)
    inspector.start()
    first = inspector.submit(IMAGES[:1], recipe="cloth", source="camera 1")
    second = inspector.submit(IMAGES[1:2], recipe="cloth", source="camera 2")
    wait([*first, *second], 5)
    assert batches == [2]


def test_while_a_thread_is_idle_nothing_waits(make: Make, batches: list[int]) -> None:
    inspector = make(threads=2, batch=8, wait=10)
    inspector.start()
    time.sleep(0.05)  # until both are idle
    [future] = inspector.submit(IMAGES[:1], recipe="cloth", source="request")
    assert future.result(5).inspection.source == "request"
    assert batches == [1]


def test_beyond_its_places_the_queue_refuses_all_of_a_request(make: Make) -> None:
    inspector = make(threads=1, places=3)
    taken = inspector.submit(IMAGES[:2], recipe="cloth", source="request")
    with pytest.raises(RefusedError, match="2 images are waiting, and there are 3 places") as error:
        inspector.submit(IMAGES[:2], recipe="cloth", source="request")
    assert error.value.status == 429
    assert (error.value.retry_after or 0) >= 1
    inspector.start()
    assert len(scores(taken)) == 2
    assert len(scores(inspector.submit(IMAGES[:3], recipe="cloth", source="request"))) == 3


def test_one_that_is_late_or_given_up_leaves_its_place(make: Make, batches: list[int]) -> None:
    inspector = make(threads=1, places=2, seconds=0.05)
    late, given_up = inspector.submit(IMAGES[:2], recipe="cloth", source="request")
    assert given_up.cancel()
    assert inspector.queued == 1
    time.sleep(0.06)
    inspector.start()
    assert isinstance(late.exception(5), RefusedError)
    assert (batches, inspector.queued) == ([], 0)


def test_a_bad_image_fails_alone(make: Make) -> None:
    inspector = make(threads=1, wait=0)
    futures = inspector.submit([IMAGES[0], b"bad", IMAGES[1]], recipe="cloth", source="request")
    inspector.start()
    assert isinstance(futures[1].exception(10), ImageError)
    assert len(scores([futures[0], futures[2]])) == 2


def test_an_image_that_takes_long_to_decode_keeps_no_other_waiting(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()
    decode = "haloae.data.images.decode_apart"

    def slowly(*_: object) -> tuple[np.ndarray, int, bool]:
        assert is_over.wait(10)
        return texture(0), 8, False

    monkeypatch.setattr(decode, slowly)
    inspector = make(threads=1)
    inspector.start()
    slow = inspector.submit([coded(texture(0), "gif")] * 2, recipe="cloth", source="request")
    quick = inspector.submit(IMAGES, recipe="cloth", source="request")
    assert len(scores(quick)) == 8
    assert not any(future.done() for future in slow)
    is_over.set()
    assert len(scores(slow)) == 2


def test_a_stop_finishes_what_was_taken_in(make: Make) -> None:
    inspector = make(threads=2)
    futures = inspector.submit(IMAGES, recipe="cloth", source="request")
    inspector.start()
    inspector.stop(10)
    assert all(future.done() for future in futures)
    assert len(scores(futures)) == 8
    with pytest.raises(RefusedError, match="the service is being stopped"):
        inspector.submit(IMAGES, recipe="cloth", source="request")


def test_listeners_hear_of_each_before_it_is_answered_and_may_fail(make: Make) -> None:
    inspector = make(threads=1)
    heard: list[tuple[Inspection, Seen]] = []

    def breaks(*_: object) -> None:
        if len(heard) < 2:
            raise OSError("the disk is full")

    inspector.listeners |= {"store": breaks, "page": lambda *one: heard.append(one)}
    inspector.start()
    [future] = inspector.submit(IMAGES[:1], recipe="cloth", source="request")
    inspection = future.result(10).inspection
    assert [one.id for one, _ in heard] == [inspection.id]
    assert [(p.part, p.message) for p in inspector.problems.now()] == [
        ("store", "OSError: the disk is full")
    ]
    seen = heard[0][1]
    assert (seen.given, seen.image.pixels.shape) == (IMAGES[0], (40, 40, 3))
    scores(inspector.submit(IMAGES[:2], recipe="cloth", source="request"))
    assert inspector.problems.now() == []


def test_pixels_become_a_file_that_is_judged_alike(make: Make) -> None:
    inspector = make(threads=1)
    inspector.start()
    pixels = texture(3)
    inspection, seen = inspector.submit([pixels], recipe="cloth", source="camera")[0].result(10)
    file = file_of(seen.given)
    again, _ = inspector.submit([file], recipe="cloth", source="camera")[0].result(10)
    assert again.score == inspection.score
    assert again.id != inspection.id
