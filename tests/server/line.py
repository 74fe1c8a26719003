"""A whole line: the service, a camera's folder, clients, a broker and a web server around it."""

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Event, Lock, Thread

import httpx
import numpy as np

from conftest import texture
from haloae.server.history import History
from haloae.server.images import KeptMap
from server.plant import free_port, until
from server.services import coded
from server.test_mqtt import Broker, Heard, listening
from server.test_run import Served, served
from server.test_webhook import receiver

SETTINGS = """
[[source]]
kind = "folder"
name = "camera"
recipe = "cloth"
path = "{folder}/in"
move_to = "{folder}/done"
settle = 0.05

[[sink]]
kind = "folder"
path = "{data}/out"

[[sink]]
kind = "webhook"
url = "http://127.0.0.1:{port}/hook"

[[sink]]
kind = "mqtt"
url = "{broker}"
topic = "plant/line-1"
"""
CLIENTS = 3
MOST_PENDING = 30
"""Files of the camera that wait: it stops where the machine is too busy for more."""
PAUSE = 0.01
"""Seconds between two requests of a client, and between two files."""


@dataclass
class Outcome:
    """What came of a fault, for the table."""

    times: int
    answered: int = 0
    """Inspections that a client has the answer of."""
    files: int = 0
    """Files that were put away as inspected."""
    lost: int = 0
    """Of both, those that are not in the store."""
    undelivered: dict[str, int] = field(default_factory=dict)
    """By sink, inspections of the store that never came."""
    twice: dict[str, int] = field(default_factory=dict)
    """By sink, inspections that came more than once."""
    files_twice: int = 0
    """Files that were inspected more than once."""
    images: int = 0
    """Inspections of the store whose image was not kept."""
    refused: dict[str, int] = field(default_factory=dict)
    """Requests that were answered with another status than 200, by status."""
    failed: list[str] = field(default_factory=list)
    """What else is wrong."""


class Line:
    """One that runs and is loaded, on a service that comes and goes.

    Args:
        folder: for all of it.
        model: an exported model file.
        data: for what the service keeps and writes; None: in the folder.
    """

    def __init__(self, folder: Path, model: Path, data: Path | None = None) -> None:
        self.folder, self.data = folder, data or folder / "service"
        self.data.mkdir(exist_ok=True)
        for name in ("in", "recipes", "broker"):
            (folder / name).mkdir()
        shutil.copy(model, folder / "recipes" / "cloth.onnx")
        self.broker = Broker(folder / "broker")
        self.web = receiver()
        self.web_port = free_port()
        text = SETTINGS.format(
            folder=folder, data=self.data, port=self.web_port, broker=self.broker.url
        )
        (folder / "serve.toml").write_text(text)
        self.answered: dict[str, str] = {}
        """Hash of the image, by the inspection's id."""
        self.thresholds: list[float] = []
        """Those that were set, as the service has said."""
        self.refused: Counter[str] = Counter()
        self.made: dict[str, str] = {}
        """Hash of a file, by its name."""
        self._url: str | None = None
        self._numbers = count()
        self._lock = Lock()
        self._is_over = Event()
        self._pixels = texture(1)

    def image(self) -> bytes:
        """One that is like no other."""
        with self._lock:
            number = next(self._numbers)
            self._pixels[0, 0] = [number >> 16, number >> 8 & 255, number & 255]
            return coded(self._pixels)

    @contextmanager
    def serving(self) -> Iterator[Served]:
        """The service; it is killed at the end, unless it has ended."""
        recipes, settings = self.folder / "recipes", self.folder / "serve.toml"
        with served(recipes, "--config", settings, folder=self.data) as service:
            self._url = service.url
            try:
                yield service
                service.process.kill()
            finally:
                self._url = None

    @contextmanager
    def loaded(self) -> Iterator[Heard]:
        """Clients that ask, a camera that writes, and all who listen."""
        asking = [Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]
        threads = [*asking, Thread(target=self._write)]
        self.start_web()
        with listening(self.broker) as heard:
            for thread in threads:
                thread.start()
            try:
                yield heard
            finally:
                self.end_load()
                for thread in threads:
                    thread.join()
                self.stop_web()
                self.broker.stop()

    def start_web(self) -> None:
        """Start the web server that the webhook posts to."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.web_port), self.web)
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop_web(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()

    def end_load(self) -> None:
        """Nothing new comes."""
        self._is_over.set()

    def _ask(self, client: int) -> None:
        with httpx.Client(timeout=60) as session:
            for turn in count():
                if self._is_over.wait(PAUSE):
                    return
                if (url := self._url) is None:
                    continue
                with suppress(httpx.TransportError):  # it is gone
                    if client == 0 and turn % 20 == 0:
                        self._set_threshold(session, url, 1000 + turn / 1000)
                    image = self.image()
                    answer = session.post(f"{url}v1/predict", content=image)
                    if answer.status_code == 200:
                        self.answered[answer.json()["id"]] = sha256(image).hexdigest()
                    else:
                        self.refused[str(answer.status_code)] += 1

    def _set_threshold(self, session: httpx.Client, url: str, value: float) -> None:
        given = {"who": "Ada", "threshold": value}
        answer = session.post(f"{url}page/threshold?recipe=cloth", json=given)
        if answer.status_code == 200:
            self.thresholds.append(value)

    def _write(self) -> None:
        for number in count():
            if self._is_over.wait(PAUSE):
                return
            if len(self._pending()) > MOST_PENDING:
                continue
            name, image = f"{number:06}.png", self.image()
            with suppress(FileNotFoundError):  # the folder is gone, for a while
                hidden = self.folder / "in" / f".{name}"
                hidden.write_bytes(image)
                hidden.rename(self.folder / "in" / name)
                self.made[name] = sha256(image).hexdigest()

    def _pending(self) -> list[Path]:
        """Files that were not taken in yet."""
        return list((self.folder / "in").glob("*.png"))

    # What came of it

    def settled(self, heard: Heard, seconds: float = 120) -> None:
        """Wait until nothing is under way any more."""
        until(lambda: not self._pending(), seconds)
        stored = set(self.stored())
        for came in (self.lines, self.posted, lambda: ids(heard.records())):
            until(lambda came=came: stored <= set(came()), seconds)  # type: ignore[misc]

    def stored(self) -> dict[str, tuple[str, str]]:
        """Source and image's hash of inspections in the store, by their ids."""
        with closing(sqlite3.connect(self.data / "data" / "store.db")) as database:
            rows = database.execute("SELECT id, source, image FROM inspections").fetchall()
        return {identity: (source, image) for identity, source, image in rows}

    def lines(self) -> list[str]:
        """Ids in the records that the folder sink has written."""
        return ids(self.records())

    def records(self) -> list[dict[str, str]]:
        """What the folder sink has written."""
        files = (self.data / "out").glob("*/inspections.jsonl")
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def posted(self) -> list[str]:
        """Ids that the webhook has sent."""
        return ids(self.web.records)

    def outcome(self, times: int, heard: Heard) -> Outcome:
        """All that can be told, when the service has ended."""
        stored = self.stored()
        images = Counter(image for source, image in stored.values() if source == "camera")
        done = {path.name: path.read_bytes() for path in (self.folder / "done").glob("*.png")}
        sinks = {"folder": self.lines(), "webhook": self.posted(), "MQTT": ids(heard.records())}
        lost = [one for one, image in self.answered.items() if stored.get(one, "")[1:] != (image,)]
        lost += [name for name in done if self.made[name] not in images]
        return Outcome(
            times=times,
            answered=len(self.answered),
            files=len(done),
            lost=len(lost),
            undelivered={name: len(stored.keys() - set(came)) for name, came in sinks.items()},
            twice={name: len(came) - len(set(came)) for name, came in sinks.items()},
            files_twice=sum(number > 1 for number in images.values()),
            images=len(stored) - self._whole_images(stored),
            refused=dict(self.refused),
            failed=[*self._wrong_files(done), *self._wrong_records()],
        )

    def _whole_images(self, stored: dict[str, tuple[str, str]]) -> int:
        """Of kept images and maps, those that are there; all that are there are whole."""
        whole = 0
        for path in (self.data / "data" / "images").glob("*/*.png"):
            assert sha256(path.read_bytes()).hexdigest() == stored[path.stem][1], path
            KeptMap.read(path.with_suffix(".npz"))
            whole += 1
        return whole

    def _wrong_files(self, done: dict[str, bytes]) -> Iterator[str]:
        for name, data in done.items():
            if sha256(data).hexdigest() != self.made[name]:
                yield f"{name} is not what it was"
        yield from (f"{name} is neither done nor there" for name in self.made.keys() - done.keys())
        for record in self.records():
            if record["file"] is not None:
                (path,) = (self.data / "out").glob(f"*/{record['file']}")
                if sha256(path.read_bytes()).hexdigest() != record["image"]:
                    yield f"{path} is not what it was"

    def _wrong_records(self) -> Iterator[str]:
        history = History(self.data / "data" / "store.db")
        if (broken := history.first_broken()) is not None:
            yield f"entry {broken} of the audit is not what it was"
        changes = history.changes(10**6)
        on_record = {each.after["threshold"] for each in changes if each.action == "threshold"}
        yield from (f"{one} is not on record" for one in set(self.thresholds) - on_record)
        with closing(sqlite3.connect(history.path)) as database:
            if (found := database.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                yield f"the store: {found}"


def ids(records: list[dict[str, str]]) -> list[str]:
    """Of records, in order."""
    return [record["id"] for record in records]


def moments(number: int) -> Iterator[float]:
    """Seconds of load until each fault."""
    rng = np.random.default_rng(0)
    return (float(rng.uniform(0.1, 2.0)) for _ in range(number))
