"""What is added to the store is there, whatever happens to the process, the disk and the file."""

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest

from haloae.errors import ConfigError, DataError, OutputError
from haloae.server.store import Store
from server.made_up import START, anomalous, inspection, unusable
from server.plant import disk, fill


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plant" / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(path, days=1e5) as store:
        yield store


def until(is_so: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


# What is asked of it


def test_an_inspection_comes_back_as_it_was(store: Store, path: Path) -> None:
    given = [inspection(0), anomalous(1, source="caf\udce9 1\0"), unusable(2)]
    for each in given:
        store.add(each)
    last = store.history.last(10)
    assert [each.number for each in last] == [3, 2, 1]
    assert [last[2].inspection, last[0].inspection] == [given[0], given[2]]
    assert last[1].inspection.boxes == given[1].boxes
    assert last[1].inspection.source == r"caf\udce9 1\x00"
    assert store.history.one(given[2].id) == last[0]
    assert store.history.one("none") is None
    assert json.loads(json.dumps(last[0].as_record()))["reason"] == given[2].reason
    state = store.state()
    assert (state.stored, state.waiting, state.lost, state.words) == (3, 0, 0, None)
    store.add(given[0])  # an id is never given twice
    assert len(store.history.last(10)) == 3
    store.close()
    with Store(path) as again:
        assert again.history.last(10) == last


def test_counts_and_lists_are_those_of_a_loop(store: Store) -> None:
    made = []
    for number in range(120):
        recipe = ("cap", "lid")[number % 2]
        kind = (anomalous, unusable)[number % 9 > 3] if number % 3 == 0 else inspection
        score = {} if kind is not inspection else {"score": 0.85 + number / 500}
        made.append(kind(number, recipe=recipe, **score))
        store.add(made[-1])
    history = store.history
    for recipe in ("cap", "lid", None):
        mine = [each for each in made if recipe in (None, each.recipe)]
        assert [s.inspection for s in history.last(7, recipe=recipe)] == mine[::-1][:7]
        start, end = START + timedelta(seconds=20), START + timedelta(seconds=71)
        counts = history.counts(start, end, recipe=recipe)
        inside = [each.verdict for each in mine if start <= each.time < end]
        assert counts == tuple(map(inside.count, ("normal", "anomalous", "unusable")))
        assert sum(counts) == len(inside)
        assert counts.rate == counts.anomalous / (counts.anomalous + counts.normal)
        wanted = [each for each in mine if each.verdict != "normal" or each.score >= 0.9]
        found = history.to_review(1000, recipe=recipe)
        assert [s.inspection for s in found] == wanted[::-1]
        assert len(wanted) < len(mine)
    assert history.counts(datetime.now(UTC)).rate is None
    judged = [e.score for e in made if e.recipe == "cap" and e.verdict != "unusable"]
    assert history.scores("cap", made[0].model).tolist() == judged[::-1]
    assert history.scores("cap", made[0].model, 5).tolist() == judged[::-1][:5]
    assert history.scores("cap", "another").size == 0


def test_the_last_word_on_an_inspection_counts(store: Store) -> None:
    for number in range(3):
        store.add(anomalous(number))
    first, second, third = (anomalous(number).id for number in range(3))
    store.review(first, word="confirm", tags=["scratch"], who="Ada", role="operator")
    store.review(second, word="overrule", who="Ada", role="operator")
    store.review(first, word="overrule", tags=["dust", "lens"], who="Bo", role="engineer")
    assert [s.inspection.id for s in store.history.to_review(10)] == [third]
    found = list(store.history.disagreements())
    assert [s.inspection.id for s in found] == [first, second]
    review = found[0].review
    assert review is not None
    assert review[:4] == ("overrule", ("dust", "lens"), "Bo", "engineer")
    assert abs(review.time - datetime.now(UTC)) < timedelta(minutes=1)
    assert json.loads(json.dumps(found[0].as_record()))["review"]["who"] == "Bo"
    assert list(store.history.disagreements(recipe="lid")) == []
    with pytest.raises(DataError, match="none: is not stored"):
        store.review("none", word="confirm", who="Ada", role="operator")
    with pytest.raises(ConfigError, match="'perhaps' is neither"):
        store.review(first, word="perhaps", who="Ada", role="operator")  # type: ignore[arg-type]


def test_disagreements_are_listed_to_the_last(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haloae.server.history.AT_ONCE", 2)
    for number in range(5):
        store.add(anomalous(number))
        store.review(anomalous(number).id, word="overrule", who="Ada", role="operator")
    assert [s.number for s in store.history.disagreements()] == [1, 2, 3, 4, 5]


# The audit


def test_the_audit_is_only_added_to(store: Store, path: Path) -> None:
    for number in range(3):
        store.audit(
            "threshold", "cap", before=number, after={"new": number + 1}, who="Bo", role="engineer"
        )
    newest, *_ = changes = store.history.changes(10)
    assert [change.before for change in changes] == [2, 1, 0]
    assert newest[1:] == ("Bo", "engineer", "threshold", "cap", 2, {"new": 3})
    assert store.history.first_broken() is None
    with contextlib.closing(sqlite3.connect(path)) as other:
        for statement in ("DELETE FROM audit", "UPDATE audit SET who = 'Al' WHERE number = 2"):
            with pytest.raises(sqlite3.IntegrityError, match="only added to"):
                other.execute(statement)
        other.execute("DROP TRIGGER audit_stays")
        other.execute("UPDATE audit SET who = 'Al' WHERE number = 2")
        other.commit()
    assert store.history.first_broken() == 2


# What is kept


def test_what_is_too_old_goes_with_what_was_said_of_it(path: Path) -> None:
    now = datetime.now(UTC)
    with Store(path, days=4) as store:
        for number in range(1200):
            age = timedelta(days=3 if number < 1100 else 1)
            store.add(anomalous(number, time=now - age + timedelta(seconds=number)))
        for number in (0, 1150):
            store.review(anomalous(number).id, word="overrule", who="Ada", role="operator")
        store.audit("model", "cap", before=None, after="a", who="Bo", role="engineer")
        assert len(store.history.last(2000)) == 1200
    with Store(path, days=2) as store:
        until(lambda: len(store.history.last(2000)) == 100)
        assert [s.number for s in store.history.last(2000)] == list(range(1200, 1100, -1))
        assert [s.number for s in store.history.disagreements()] == [1151]
        assert len(store.history.changes(5)) == 1
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM reviews").fetchone() == (1,)


def test_the_file_stays_as_small_as_wanted(path: Path) -> None:
    with Store(path, days=1e5, most_bytes=800_000) as store:
        for number in range(2500):
            store.add(inspection(number))
        store.retain()
        assert 400_000 < store.state().bytes <= 800_000
        kept = [s.number for s in store.history.last(5000)]
        assert kept == list(range(2500, 2500 - len(kept), -1))
        assert 500 <= len(kept) < 2500
    assert path.stat().st_size < 1_000_000


# What goes wrong


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """The file, held by another program that writes to it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def test_a_file_that_another_program_holds_stops_nothing(store: Store, path: Path) -> None:
    store.add(inspection(0))
    with held(path):
        for number in range(1, 50):
            before = time.monotonic()
            store.add(inspection(number))
            assert time.monotonic() - before < 2
        state = store.state()
        assert (state.stored, state.waiting, state.lost) == (1, 49, 0)
        assert state.words is not None
        assert "49 inspections waiting" in state.words
        assert "another program holds it: close that" in state.words
        assert [s.number for s in store.history.last(10)] == [1]
        with pytest.raises(OutputError, match="another program holds it"):
            store.review(inspection(0).id, word="confirm", who="Ada", role="operator")
        with pytest.raises(OutputError, match="another program holds it"):
            store.audit("model", "cap", before=1, after=2, who="Bo", role="engineer")
    until(lambda: store.state().words is None)
    assert [s.inspection for s in store.history.last(100)] == [
        inspection(number) for number in reversed(range(50))
    ]
    assert store.history.gaps(10) == []


def test_what_finds_no_room_in_memory_is_on_record_as_a_gap(path: Path) -> None:
    with Store(path, days=1e5, most_waiting=10) as store:
        with held(path):
            for number in range(25):
                store.add(inspection(number))
            state = store.state()
            assert (state.stored, state.waiting, state.lost) == (0, 10, 15)
            assert state.words is not None
            assert "10 inspections waiting and 15 lost" in state.words
        until(lambda: store.state().words is None)
        assert [s.inspection for s in store.history.last(100)] == [
            inspection(number) for number in reversed(range(15, 25))
        ]
        (gap,) = store.history.gaps(10)
        assert gap[:3] == (inspection(0).time, inspection(14).time, 15)
        assert "another program holds it" in gap.reason


def test_an_inspection_that_no_table_holds_does_not_stop_the_others(store: Store) -> None:
    for each in (inspection(0), inspection(1, score=float("nan")), inspection(2)):
        store.add(each)
    assert [s.inspection.id for s in store.history.last(9)] == [inspection(2).id, inspection(0).id]
    assert (store.state().lost, store.state().words) == (1, None)
    (gap,) = store.history.gaps(10)
    assert gap.images == 1
    assert "NOT NULL" in gap.reason


def test_a_file_that_was_removed_is_made_anew(store: Store, path: Path) -> None:
    store.add(inspection(0))
    path.unlink()
    until(path.exists)
    store.add(inspection(1))
    until(lambda: [s.inspection for s in store.history.last(9)] == [inspection(1)])


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE audit (x)")
    newer = tmp_path / "newer.db"
    Store(newer).close()
    with contextlib.closing(sqlite3.connect(newer)) as database:
        database.execute("PRAGMA user_version = 99")
    text = tmp_path / "text.db"
    text.write_text("not a database, but a text of some length. " * 30)
    (tmp_path / "folder").mkdir()
    for path, message in (
        (other, "is a database of another program"),
        (newer, "has version 99, and this haloae knows up to 1: upgrade"),
        (text, "it is no database: move it away"),
        (tmp_path / "folder", "is a folder"),
        (text / "store.db", "cannot be opened: check its folder"),
    ):
        old = path.read_bytes() if path.is_file() else None
        with pytest.raises(OutputError, match=message):
            Store(path)
        assert old == (path.read_bytes() if path.is_file() else None)
    with pytest.raises(DataError, match="cannot be opened"):
        Store(newer.with_name("new.db")).history.__class__(tmp_path / "none.db").last(1)


def test_any_number_of_threads_may_add_and_ask(store: Store) -> None:
    def work(first: int) -> None:
        for number in range(first, first + 50):
            store.add(inspection(number))
            assert store.history.one(inspection(number).id)

    threads = [Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {s.inspection.id for s in store.history.last(500)} == {
        inspection(1000 * n + i).id for n in range(4) for i in range(50)
    }


# kill -9


WRITER = """
import sys
from pathlib import Path
from haloae.server.store import Store
from server.made_up import inspection
store, first = Store(Path(sys.argv[1]), days=1e5), int(sys.argv[2])
for number in range(first, first + 100_000):
    store.add(inspection(number))
    if number % 10 == 0:
        store.review(inspection(number).id, word="confirm", who="Ada", role="operator")
        store.audit("threshold", "cap", before=number, after=0, who="Bo", role="engineer")
    print(number, flush=True)
"""


def killed_while_writing(path: Path, kills: int) -> None:
    """Start a process that writes and says what it has added; kill it; look; and again."""
    said: list[int] = []
    for kill in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(100_000 * kill)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            text=True,
        )
        assert writer.stdout is not None
        first = int(writer.stdout.readline())
        time.sleep(0.037 * (kill + 1))
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split("\n")[:-1]  # whole lines
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
        said += [first, *map(int, rest)]
        with Store(path, days=1e5) as store:
            found = {s.inspection.id for s in store.history.last(10**6)}
            assert {inspection(number).id for number in said} <= found
            assert store.history.first_broken() is None
            tens = {number for number in said if number % 10 == 0}
            assert tens <= {change.before for change in store.history.changes(10**6)}
        with contextlib.closing(sqlite3.connect(path)) as other:
            assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert len(said) > 3 * kills


@pytest.mark.faults
def test_what_was_added_outlives_a_process_that_is_killed(path: Path) -> None:
    killed_while_writing(path, 2)


@pytest.mark.slow
@pytest.mark.faults
def test_twenty_kills_lose_nothing(path: Path) -> None:
    killed_while_writing(path, 20)


# A full disk


@pytest.mark.faults
def test_a_full_disk_stops_nothing_and_all_is_stored_once_there_is_room(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 4000) as place, Store(place / "store.db", days=1e5) as store:
        store.add(inspection(0))
        fill(place / "ballast", 8192)
        for number in range(1, 200):
            store.add(inspection(number))
        state = store.state()
        assert state.stored + state.waiting == 200
        assert state.waiting > 0
        assert state.words is not None
        assert "free some space" in state.words
        assert len(store.history.last(500)) == state.stored
        (place / "ballast").unlink()
        until(lambda: store.state().words is None)
        assert [s.inspection for s in store.history.last(500)] == [
            inspection(number) for number in reversed(range(200))
        ]


@pytest.mark.faults
@pytest.mark.parametrize("is_new", [False, True])
def test_on_a_full_disk_the_service_starts_all_the_same(tmp_path: Path, is_new: bool) -> None:
    with disk(tmp_path / "disk", 2000) as place:
        if not is_new:
            Store(place / "store.db").close()
        fill(place / "ballast")
        with Store(place / "store.db", days=1e5) as store:
            store.add(inspection(0))
            assert store.state().waiting == 1
            (place / "ballast").unlink()
            until(lambda: store.state().words is None)
            assert [s.inspection for s in store.history.last(5)] == [inspection(0)]
