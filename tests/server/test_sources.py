"""Sources at work: what breaks is reported and tried again, and stops no other."""

import logging
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from pydantic import BaseModel, ConfigDict

from haloae import ConfigError, ImageError
from haloae.server.sources import SOURCES, Images, Source, Sources, Taken, register_source
from haloae.server.sources.base import SourceSettings
from haloae.server.sources.supervisor import SourceState
from server.plant import QUICK, until


class Settings(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    source: SourceSettings = ()


class Counting(Source):
    """Gives its numbers, one image each, and breaks once after some of them."""

    last: int = 3
    breaks_after: int = -1

    def images(self, stop: Event, memory: Path) -> Images:
        first = int(memory.read_text()) if memory.exists() else 1
        for number in range(first, self.last + 1):
            yield Taken(b"%d" % number, f"number {number}")
            memory.write_text(str(number + 1))
            if number == self.breaks_after:
                raise OSError("the cable is out")


class Patient(Counting):
    live = False


class Endless(Source):
    def images(self, stop: Event, memory: Path) -> Images:
        while not stop.wait(0.01):
            yield None


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    before = dict(SOURCES)
    for kind, source in (("counting", Counting), ("patient", Patient), ("endless", Endless)):
        register_source(kind)(source)
    yield
    SOURCES.clear()
    SOURCES.update(before)


def parse(*tables: dict[str, object]) -> tuple[Source, ...]:
    return Settings.model_validate({"source": tables}).source


class Line:
    """Inspects, and says what was asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []

    def __call__(self, recipe: str, image: bytes, source: str) -> None:
        self.seen.append((recipe, image.decode(), source))


def test_a_source_from_outside_is_inspected_to_its_end(tmp_path: Path) -> None:
    line, heard = Line(), []
    sources = Sources(
        parse({"kind": "counting", "recipe": "bottle", "name": "mine"}),
        line,
        tmp_path / "new",
        on_change=heard.append,
    )
    sources.start()
    until(lambda: sources.states()[0].status == "ended")
    assert line.seen == [("bottle", str(number), "mine") for number in (1, 2, 3)]
    state = sources.states()[0]
    assert (state.inspected, state.refused, state.dropped, state.reason) == (3, 0, 0, None)
    assert [each.status for each in heard] == ["running", "ended"]
    assert state.last is not None
    sources.stop()


def test_one_that_breaks_says_why_goes_on_and_disturbs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line, heard = Line(), list[SourceState]()
    settings = parse(
        {"kind": "counting", "recipe": "a", "breaks_after": 2, "name": "one"},
        {"kind": "counting", "recipe": "b", "name": "two"},
        {"kind": "endless", "recipe": "c"},
    )
    with caplog.at_level(logging.INFO):
        sources = Sources(settings, line, tmp_path, on_change=heard.append, back_off=QUICK)
        sources.start()
        until(lambda: [s.status for s in sources.states()] == ["ended", "ended", "running"])
        sources.stop()
    assert [image for recipe, image, _ in line.seen if recipe == "a"] == ["1", "2", "3"]
    assert [image for recipe, image, _ in line.seen if recipe == "b"] == ["1", "2", "3"]
    broken = [each for each in heard if each.status == "retrying"]
    assert [(each.name, each.reason) for each in broken] == [("one", "the cable is out")]
    assert broken[0].since is not None
    assert "source one: retrying: the cable is out" in caplog.text
    assert [each.status for each in sources.states()] == ["ended", "ended", "stopped"]


def test_what_cannot_be_inspected_now_waits_or_is_dropped_by_whether_it_is_live(
    tmp_path: Path,
) -> None:
    busy = {"a": 2, "b": 2}
    seen: list[tuple[str, str]] = []

    def inspect(recipe: str, image: bytes, source: str) -> None:
        if image == b"2" and busy[recipe]:
            busy[recipe] -= 1
            raise RuntimeError("the queue is full")
        seen.append((recipe, image.decode()))

    settings = parse({"kind": "counting", "recipe": "a"}, {"kind": "patient", "recipe": "b"})
    sources = Sources(settings, inspect, tmp_path, back_off=QUICK)
    sources.start()
    until(lambda: all(state.status == "ended" for state in sources.states()))
    live, patient = sources.states()
    assert [image for recipe, image in seen if recipe == "a"] == ["1", "3"]
    assert (live.inspected, live.dropped) == (2, 1)
    assert [image for recipe, image in seen if recipe == "b"] == ["1", "2", "3"]
    assert (patient.inspected, patient.dropped) == (3, 0)


def test_what_is_no_image_is_counted_and_the_next_one_comes(tmp_path: Path) -> None:
    def inspect(recipe: str, image: bytes, source: str) -> None:
        if image == b"1":
            raise ImageError("truncated")

    sources = Sources(parse({"kind": "patient", "recipe": "a"}), inspect, tmp_path)
    sources.start()
    until(lambda: sources.states()[0].status == "ended")
    assert (sources.states()[0].inspected, sources.states()[0].refused) == (2, 1)


def test_one_that_hangs_holds_up_no_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hanging, let_go = Event(), Event()

    def inspect(recipe: str, image: bytes, source: str) -> None:
        hanging.set()
        let_go.wait()

    sources = Sources(parse({"kind": "counting", "recipe": "a"}), inspect, tmp_path)
    sources.start()
    assert hanging.wait(5)
    sources.stop(timeout=0.05)
    assert "source counting: hangs" in caplog.text
    let_go.set()
    until(lambda: sources.states()[0].status == "stopped")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([{"kind": "teapot", "recipe": "a"}], "source 1: no kind is called 'teapot'.*folder"),
        ([{"recipe": "a"}], "source 1: no kind is called 'None'"),
        ([{"kind": "folder", "recipe": "a"}], r"source 1 \(folder\): setting path: field required"),
        ([{"kind": "folder", "recipe": "a", "path": "x", "pathh": 1}], "pathh: no such setting"),
        (["folder"], "source 1: give its kind"),
        ("folder", r"\[\[source\]\]"),
        (
            [{"kind": "endless", "recipe": "a"}, {"kind": "endless", "recipe": "b"}],
            "source 'endless': is the name of two",
        ),
        ([{"kind": "endless", "recipe": "a", "name": "page"}], "source 'page': is kept for"),
        ([{"kind": "camera", "recipe": "a"}], "either the device or the url"),
        ([{"kind": "camera", "recipe": "a", "device": 0, "user": "u"}], "belong together"),
        ([{"kind": "camera", "recipe": "a", "url": "ftp://x"}], "rtsp:// or rtsps://"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(tables: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Settings.model_validate({"source": tables})
    assert "\n" not in str(caught.value)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="give them as settings") as caught:
        parse({"kind": "camera", "recipe": "a", "url": "rtsp://me:hunter2@camera/1"})
    assert "hunter2" not in str(caught.value)
