"""What the page asks the service, and what it is refused."""

import io
import logging
import re
import shutil
import sqlite3
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, time, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from haloae.errors import ConfigError
from haloae.server.app import create_app
from haloae.server.page import changes, views
from haloae.server.page.page import shift_start
from haloae.server.page.texts import english
from haloae.server.safety import read_tokens
from haloae.server.settings import KeepSettings, PageSettings, Settings
from haloae.server.store import MOST_WAITING
from server.made_up import anomalous, inspection
from server.plant import until

OPERATOR, ENGINEER = "operators-token-0123456789", "engineers-token-0123456789"
STATIC = files("haloae.server.page") / "static"
Start = Callable[..., TestClient]


@pytest.fixture
def start(two_models: list[Path], tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(**options: Any) -> TestClient:  # noqa: ANN401
            options = {"data": tmp_path / "data"} | options
            app = create_app(two_models[0], **options)
            return stack.enter_context(TestClient(app, base_url="http://localhost"))

        yield started


def inspected(client: TestClient, path: Path) -> dict[str, Any]:
    found: dict[str, Any] = client.post("/v1/predict", content=path.read_bytes()).json()
    return found


def test_what_is_at_a_glance_is_what_was_inspected(start: Start, good_paths: list[Path]) -> None:
    client = start()
    empty = client.get("/page/state").json()
    assert (empty["state"], empty["recipe"], empty["last"]) == ("ready", "m", [])
    found = [inspected(client, path) for path in good_paths[:3]]
    state = client.get("/page/state?recipe=m").json()
    assert [one["id"] for one in state["last"]] == [one["id"] for one in found[::-1]]
    assert (state["state"], state["problems"], state["role"]) == ("running", [], "engineer")
    counts = state["counts"]
    assert counts["normal"] + counts["anomalous"] + counts["unusable"] == 3
    wanted = found[0]["verdict"]
    assert counts[wanted] >= 1
    client.post("/v2/repository/models/m/unload")
    parked = client.get("/page/state?recipe=none").json()
    assert (parked["state"], parked["reason"]) == ("error", english()["recipe_unloaded"])


def test_what_has_changed_is_said_until_somebody_says_that_it_is_put_right(start: Start) -> None:
    client = start()
    service = client.app.state.service  # type: ignore[attr-defined]
    for number in range(240):
        made = inspection if number < 200 else anomalous
        service.drift.add(made(number, recipe="m"), {})
    alarms = client.get("/page/state").json()["alarms"]
    assert {alarm["recipe"] for alarm in alarms} == {"m"}
    words = [alarm["words"] for alarm in alarms]
    assert any("are anomalous" in said for said in words)
    metrics = client.get("/metrics").text
    assert 'haloae_drift_alarm{recipe="m",what="anomalous"} 1.0' in metrics
    assert 'haloae_drift_evidence{recipe="m",what="score"}' in metrics
    said = {"accept": False, "who": "Ada"}
    assert client.post("/page/alarms?recipe=m", json=said).status_code == 200
    assert client.get("/page/state").json()["alarms"] == []
    (change,) = service.records.store.history.changes(9)
    assert (change.action, change.before) == ("alarms", "; ".join(words))
    assert (change.after, change.who) == ("put right", "Ada")


def test_the_page_s_own_looks_fill_no_log(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    client = start()
    caplog.set_level(logging.INFO, "haloae.server.requests")
    client.get("/page/state")
    client.get("/page/review?recipe=m")
    client.get(f"/page/inspections/{'0' * 32}/heat.jpg")
    logged = [(record.path, record.status) for record in caplog.records]  # type: ignore[attr-defined]
    assert logged == [
        ("/page/review", 200),
        ("/page/inspections/{inspection}/{kind}.jpg", 404),
    ]


def test_pictures_are_of_what_was_inspected_and_of_nothing_else(
    start: Start, good_paths: list[Path], tmp_path: Path
) -> None:
    client = start()
    one = inspected(client, good_paths[0])["id"]
    sizes = {}
    for kind in ("heat", "plain", "small"):
        answer = client.get(f"/page/inspections/{one}/{kind}.jpg")
        picture = Image.open(io.BytesIO(answer.content))
        sizes[kind] = picture.width
        assert picture.format == "JPEG"
        assert "private" in answer.headers["cache-control"]
    assert sizes["small"] < 250 < 450 < sizes["heat"] == sizes["plain"]
    shutil.copy(good_paths[0], tmp_path / "data" / "images" / "x.png")
    for wrong, status in (
        ("0" * 32 + "/heat.jpg", 404),
        ("x/heat.jpg", 422),
        (f"{one}/other.jpg", 422),
        ("..%2f..%2fx/heat.jpg", 404),
    ):
        assert client.get(f"/page/inspections/{wrong}").status_code == status, wrong
    for wrong in ("page.html", "..%2fpage.py", "../page.py", "", "%00"):
        assert client.get(f"/static/{wrong}").status_code in (404, 307), wrong


def test_an_operator_changes_nothing_and_a_stranger_sees_nothing(
    start: Start, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'operator = "{OPERATOR}"\nengineer = "{ENGINEER}"\n')
    client = start(tokens=read_tokens(tokens))
    fill = {"inspection": "0" * 32, "kind": "heat", "name": "page.css"}
    for router, is_for_operators in ((views.router, True), (changes.router, False)):
        for route in router.routes:
            url = route.path.format(**fill)  # type: ignore[attr-defined]
            for method in route.methods:  # type: ignore[attr-defined]
                is_open = url in ("/", "/static/page.css")
                nobody = client.request(method, url, json={})
                assert nobody.status_code == (200 if is_open else 401), url
                headers = {"authorization": f"Bearer {OPERATOR}"}
                asked = client.request(method, url, json={}, headers=headers)
                assert (asked.status_code == 403) is not is_for_operators, url
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"https?://|style=|<script>| on\w+=", page.text)


def test_a_page_of_another_origin_changes_nothing(start: Start, good_paths: list[Path]) -> None:
    client = start()
    one = inspected(client, good_paths[0])["id"]
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://other.example"}):
        url = f"/page/inspections/{one}/review"
        assert client.post(url, json={"word": "confirm"}, headers=headers).status_code == 403
    assert client.get("/page/review?recipe=m").status_code == 200


def test_words_are_kept_as_they_are_meant(start: Start, good_paths: list[Path]) -> None:
    client = start()
    one = inspected(client, good_paths[0])["id"]
    url = f"/page/inspections/{one}/review"
    said = client.post(url, json={"word": "overrule", "tags": [" hole "], "who": " Ada "}).json()
    assert (said["review"]["word"], said["review"]["tags"]) == ("overrule", ["hole"])
    assert (said["review"]["who"], said["review"]["role"]) == ("Ada", "engineer")
    for wrong in ({}, {"word": "maybe"}, {"word": "confirm", "tags": ["x" * 101]}):
        assert client.post(url, json=wrong).status_code == 422
    missing = f"/page/inspections/{'0' * 32}/review"
    assert client.post(missing, json={"word": "confirm"}).status_code == 404
    assert client.get("/page/threshold?recipe=other").status_code == 404


def test_without_images_there_is_nothing_to_see_or_add(
    start: Start, good_paths: list[Path]
) -> None:
    client = start(settings=Settings(keep=KeepSettings(images="none")))
    one = inspected(client, good_paths[0])["id"]
    assert client.get(f"/page/inspections/{one}/heat.jpg").status_code == 404
    assert client.post(f"/page/inspections/{one}/good", json={}).status_code == 404


def test_what_is_not_stored_yet_is_shown_all_the_same(
    start: Start, good_paths: list[Path], tmp_path: Path
) -> None:
    client = start()
    first = inspected(client, good_paths[0])["id"]
    with closing(sqlite3.connect(tmp_path / "data" / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        second = inspected(client, good_paths[1])["id"]
        state = client.get("/page/state").json()
        assert [one["id"] for one in state["last"]] == [second, first]
        assert "another program holds it" in " ".join(state["problems"])
        assert client.get(f"/page/inspections/{second}/small.jpg").status_code == 200
        other.execute("ROLLBACK")


def test_what_was_not_stored_is_listed_with_time_count_and_reason(
    start: Start, tmp_path: Path
) -> None:
    client = start()
    store = client.app.state.service.records.store  # type: ignore[attr-defined]
    state = client.get("/page/state").json()
    assert (state["waiting"], state["gaps"]) == (None, [])
    with closing(sqlite3.connect(tmp_path / "data" / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(MOST_WAITING + 3):
            store.add(inspection(number, recipe="m"))
        state = client.get("/page/state").json()
        other.execute("ROLLBACK")
    waiting, (gap,) = state["waiting"], state["gaps"]
    assert (waiting["images"], waiting["last"]) == (MOST_WAITING, None)
    assert datetime.now(UTC) - datetime.fromisoformat(waiting["first"]) < timedelta(minutes=1)
    times = [inspection(number).time.isoformat() for number in (0, 2)]
    assert [gap["first"], gap["last"], gap["images"]] == [*times, 3]
    assert gap["reason"] == waiting["reason"]
    assert "another program holds it" in gap["reason"]
    assert gap["reason"] in " ".join(state["problems"])
    until(lambda: client.get("/page/state").json()["waiting"] is None)
    state = client.get("/page/state").json()
    assert (state["gaps"], state["problems"]) == ([gap], [])


def test_boxes_are_asked_for_where_there_are_several(
    start: Start, tmp_path: Path, good_paths: list[Path]
) -> None:
    client = start()
    assert client.get("/page/state").json()["has_boxes"] is False
    assert client.get("/page/boxes").status_code == 404
    secret = tmp_path / "database"
    secret.write_text("postgresql://plant:hunter2@127.0.0.1:9/plant")  # where nobody answers
    keep = KeepSettings(database=secret, box="line-1")
    client = start(settings=Settings(keep=keep), data=tmp_path / "other")
    inspected(client, good_paths[0])
    until(lambda: client.get("/page/state").json()["problems"])
    state = client.get("/page/state").json()
    assert state["has_boxes"] is True
    assert "database plant on 127.0.0.1: nothing can be sent" in " ".join(state["problems"])
    boxes = client.get("/page/boxes").json()
    assert (boxes["box"], boxes["boxes"], boxes["read"]) == ("line-1", [], None)
    assert "hunter2" not in str((state, boxes))


def test_a_translation_takes_the_place_of_english(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "de.toml"
    path.write_text('language = "de"\nnok = "n. i. O."\nupload = "<b>Hochladen"\n')
    client = start(settings=Settings(page=PageSettings(texts=path)))
    page = client.get("/").text
    assert '<html lang="de">' in page
    assert "&lt;b&gt;Hochladen" in page
    assert "<b>Hochladen" not in page
    assert "n. i. O." in page
    path.write_text('no_such_text = "x"\n')
    with pytest.raises(ConfigError, match="no_such_text"):
        start(settings=Settings(page=PageSettings(texts=path)))


def test_every_text_has_its_place_and_every_place_its_text() -> None:
    sources = "".join(each.read_text() for each in STATIC.iterdir() if each.name.endswith(".js"))
    package = files("haloae.server.page")
    sources += (package / "templates" / "page.html").read_text()
    sources += (package / "page.py").read_text()
    known = tomllib.loads((package / "texts.toml").read_text())
    made = {f"{kind}_{part}" for kind in ("state", "step") for part in STEPS}
    unused = [name for name in known if not re.search(rf"\b{name}\b", sources) and name not in made]
    assert unused == []
    asked = set(re.findall(r'\btext\("(\w+)"', sources)) | set(re.findall(r"\bt\.(\w+)", sources))
    assert asked - known.keys() == {"texts"} & asked


STEPS = ("ready", "running", "error", "starting", "fitting", "exporting", "comparing")


def test_a_shift_begins_when_it_is_said_to() -> None:
    shifts = (time(6), time(14), time(22))
    day = datetime(2026, 3, 2, tzinfo=UTC)
    for hour, wanted in ((0, -2), (5, -2), (6, 6), (13, 6), (14, 14), (21, 14), (22, 22)):
        found = shift_start(day + timedelta(hours=hour), shifts)
        assert found == day + timedelta(hours=wanted)
