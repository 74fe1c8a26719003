"""What several boxes store is in one PostgreSQL, each row once, however the connection goes."""

import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from haloae.errors import ConfigError, MissingExtraError
from haloae.server.mirror import Mirror
from haloae.server.store import Store
from server.made_up import START, anomalous, inspection, unusable
from server.test_store import until

DOC = Path(__file__).parents[2] / "docs" / "store.md"
PASSWORD = "not-to-be-logged"  # noqa: S105


def test_what_is_no_url_is_refused_without_a_word_of_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not of the form postgresql://") as raised:
        Mirror(tmp_path / "store.db", f"user={PASSWORD} and more", box="a")
    assert PASSWORD not in str(raised.value)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"haloae\[postgres\]"):
        Mirror(tmp_path / "store.db", "postgresql://localhost/x", box="a")


class Server:
    """A PostgreSQL of its own, on loopback."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.url = f"postgresql://plant:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        (folder / "password").write_text(PASSWORD)
        if os.getuid() == 0:  # as whom it does not run
            shutil.chown(folder, "postgres")
            (folder / "password").chmod(0o644)
        self.run("initdb", "-U", "plant", "-A", "scram-sha-256", "--no-sync")
        self.start()

    def run(self, *command: str) -> None:
        program, *arguments = command
        whole = [program, "-D", str(self.folder / "data"), *arguments]
        if program == "initdb":
            whole.append(f"--pwfile={self.folder / 'password'}")
        as_whom = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        subprocess.run([*as_whom, *whole], check=True, capture_output=True, cwd=self.folder)

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F"
        self.run("pg_ctl", "-o", options, "-l", str(self.folder / "log"), "-w", "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-m", "immediate", "-w", "stop")

    def rows(self, query: str) -> list[Any]:
        import psycopg

        with psycopg.connect(self.url) as target:
            return target.execute(query).fetchall()  # type: ignore[arg-type]


@pytest.fixture
def server() -> Iterator[Server]:
    if shutil.which("pg_ctl") is None or shutil.which("initdb") is None:
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        yield server
        server.stop()


@pytest.mark.slow
def test_any_box_says_what_all_have_stored_and_that_the_database_is_away(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haloae.server.mirror.BREATH", 0.05)
    monkeypatch.setattr("haloae.server.mirror.FRESH", timedelta())
    told: list[str | None] = []
    stores = {box: Store(tmp_path / f"{box}.db", days=1e5, most_waiting=1) for box in "ab"}
    mirrors = {
        box: Mirror(store.path, server.url, box=box, on_problem=told.append)
        for box, store in stores.items()
    }
    for number in range(8):
        made = (inspection, anomalous, inspection, unusable)[number % 4]
        stores["a"].add(made(number))
        stores["b"].add(inspection(number))
    with closing(sqlite3.connect(stores["b"].path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in (8, 9, 10):
            stores["b"].add(inspection(number))
        other.execute("ROLLBACK")
    since = START + timedelta(seconds=2)

    def found() -> dict[str, tuple[Any, ...]]:
        known = mirrors["a"].all_boxes(since)
        boxes = known.boxes if known and known.since == since else ()
        return {box: (last, tuple(counts), lost) for box, last, counts, lost in boxes}

    wanted = {
        "a": (START + timedelta(seconds=7), (3, 1, 2), 0),
        "b": (START + timedelta(seconds=10), (7, 0, 0), 2),
    }
    until(lambda: found() == wanted)
    query = DOC.read_text().split("```sql\n")[1].split("```")[0]
    assert sorted(row[:1] + row[2:] for row in server.rows(query)) == [
        ("a", 4, 2, 2),
        ("b", 9, 0, 0),
    ]
    since = START + timedelta(days=1)
    until(
        lambda: (
            {box: counts for box, (_, counts, _) in found().items()}
            == dict.fromkeys("ab", (0, 0, 0))
        )
    )
    server.stop()
    until(lambda: all(mirror.state().problem for mirror in mirrors.values()))
    before = time.monotonic()
    assert found()["a"][0] == wanted["a"][0]  # what was known, at once
    assert time.monotonic() - before < 0.1
    server.start()
    until(lambda: all(mirror.state().problem is None for mirror in mirrors.values()))
    assert told[-1] is None
    assert sum(problem is None for problem in told) == 2
    for each in (*mirrors.values(), *stores.values()):
        each.close()


@pytest.mark.slow
def test_a_database_that_hangs_is_said_and_holds_nothing_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haloae.server.mirror.BREATH", 0.05)
    with Store(tmp_path / "a.db", days=1e5) as store:
        mirror = Mirror(store.path, server.url, box="a")
        store.add(inspection(0))
        until(lambda: mirror.state().sent == 1)
        ((pid,),) = server.rows(
            "SELECT pid FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid != pg_backend_pid()"
        )
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr("haloae.server.mirror.LONGEST", 100)
        monkeypatch.setattr("haloae.server.mirror.PATIENCE", 1)
        until(lambda: "does not answer" in (mirror.state().problem or ""))
        before = time.monotonic()
        store.add(inspection(1))
        assert mirror.all_boxes(START) is None
        assert time.monotonic() - before < 0.1
        os.kill(pid, signal.SIGCONT)
        until(lambda: mirror.state() == (2, None))
        mirror.close()


@pytest.mark.slow
def test_two_boxes_have_each_row_there_once_whatever_happens(
    server: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("haloae.server.mirror.BREATH", 0.05)
    monkeypatch.setattr("haloae.server.mirror.AT_ONCE", 7)
    caplog.set_level(logging.DEBUG, "haloae")
    paths = [tmp_path / f"{box}.db" for box in "ab"]
    stores = [Store(path, days=1e5) for path in paths]
    mirrors = [Mirror(path, server.url, box=path.stem) for path in paths]
    for number in range(20):
        for store in stores:
            store.add(anomalous(number))
            store.review(anomalous(number).id, word="confirm", who="Ada", role="operator")
    stores[0].audit("threshold", "cap", before=1, after={"to": 2}, who="Bo", role="engineer")
    until(lambda: [mirror.state().sent for mirror in mirrors] == [41, 40])
    server.stop()
    for store in stores:
        store.add(inspection(20))
    until(lambda: all(mirror.state().problem for mirror in mirrors))
    mirrors[1].close()
    server.start()
    mirrors[1] = Mirror(paths[1], server.url, box="b")
    until(lambda: [mirror.state().sent for mirror in mirrors] == [42, 1])
    until(lambda: all(mirror.state().problem is None for mirror in mirrors))
    counted = "SELECT box, count(*), count(DISTINCT id) FROM haloae.inspections GROUP BY box"
    assert sorted(server.rows(counted)) == [("a", 21, 21), ("b", 21, 21)]
    assert server.rows("SELECT count(*), min(word) FROM haloae.reviews") == [(40, "confirm")]
    assert server.rows("SELECT box, who, after FROM haloae.audit") == [("a", "Bo", '{"to": 2}')]
    last = "SELECT id, score, verdict FROM haloae.inspections WHERE box = 'b' AND number = 21"
    assert server.rows(last) == [(inspection(20).id, 0.5, "normal")]
    # A file that is made anew is another, and its rows are no doubles.
    for each in (mirrors[1], stores[1]):
        each.close()
    paths[1].unlink()
    stores[1] = Store(paths[1], days=1e5)
    stores[1].add(inspection(20))
    mirrors[1] = Mirror(paths[1], server.url, box="b")
    until(lambda: mirrors[1].state().sent == 1)
    assert sorted(server.rows(counted)) == [("a", 21, 21), ("b", 22, 21)]
    for either in (*mirrors, *stores):
        either.close()
    assert "nothing can be sent" in caplog.text
    assert PASSWORD not in caplog.text
