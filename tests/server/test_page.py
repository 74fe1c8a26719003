"""The operator's page in a real browser, from the first image to the next model."""

import io
import json
import shutil
import socket
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pytest
import uvicorn
from PIL import Image

from conftest import texture
from haloae import load
from haloae.detection.calibration_file import calibration_path
from haloae.files import sha256_of, write_atomic
from haloae.server import retraining
from haloae.server.app import Service, create_app
from haloae.server.models import ABOUT
from haloae.server.safety import Tokens, read_tokens
from haloae.server.settings import KeepSettings, RetrainingSettings, Settings
from haloae.server.store import MOST_WAITING
from server.made_up import anomalous, inspection
from server.services import coded

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
TEXTURES = texture(100), texture(101)
OPERATOR, ENGINEER = "operators-token-0123456789", "engineers-token-0123456789"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *camera]
        )
        yield browser
        browser.close()


class Opened(NamedTuple):
    """A page, and the service behind it."""

    page: Any
    service: Service
    model: Path
    data: Path

    def upload(self, pixels: np.ndarray) -> str:
        """Inspect an image by hand; what is said of it in large letters."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="png")
        known = {one.inspection.id for one in self.service.records.last(50, "cloth")}
        self.page.set_input_files(
            "#file", {"name": "a.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
        )
        until(lambda: self.newest().id not in known)
        self.page.locator(f'#verdict[data-id="{self.newest().id}"] strong').wait_for()
        return str(self.page.inner_text("#verdict strong"))

    def newest(self) -> Any:  # noqa: ANN401 - `Inspection`
        return self.service.records.last(1, "cloth")[0].inspection

    def say_yes(self) -> None:
        self.page.click("#sure button[value=yes]")


def until(is_so: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not _without_error(is_so):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def _without_error(is_so: Callable[[], object]) -> object:
    try:
        return is_so()
    except IndexError:
        return False


Open = Callable[..., Opened]


@pytest.fixture
def opened(
    chromium: Any,  # noqa: ANN401
    two_models: list[Path],
    good_folder: Path,
    tmp_path: Path,
) -> Iterator[Open]:
    """Starts a service in this process and opens its page; nothing may go wrong in the browser."""
    ends: list[Callable[[], object]] = []
    wrong: list[str] = []

    def start(
        tokens: Tokens | None = None,
        keep: KeepSettings | None = None,
        **context: Any,  # noqa: ANN401
    ) -> Opened:
        model = tmp_path / "recipes" / "cloth.safetensors"
        model.parent.mkdir()
        shutil.copy(two_models[0], model)
        settings = Settings(
            retraining=RetrainingSettings(good={"cloth": good_folder}), keep=keep or KeepSettings()
        )
        app = create_app(model.parent, data=tmp_path / "data", settings=settings, tokens=tokens)
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", loop="asyncio"))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        page = chromium.new_context(base_url=url, **context).new_page()

        def stop() -> None:
            page.context.close()
            server.should_exit = True
            thread.join()
            listening.close()

        ends.append(stop)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: asked.url.startswith(url) or wrong.append(asked.url))
        page.goto("/")
        return Opened(page, app.state.service, model, tmp_path / "data")

    yield start
    for end in ends:
        end()
    assert [said for said in wrong if "status of 4" not in said] == []


def test_a_shift_from_the_first_image_to_the_next_model(
    opened: Open, two_models: list[Path]
) -> None:
    here = opened()
    page, service = here.page, here.service
    page.locator("#verdict.none").wait_for()
    assert page.inner_text("#state") == "Ready"

    # A covered camera, and two images that the slider will tell apart.
    assert here.upload(np.zeros((40, 40, 3), np.uint8)) == "CANNOT TELL"
    assert "darker" in page.inner_text("#verdict .why")
    detector = load(here.model)
    first, second = sorted(TEXTURES, key=lambda pixels: detector.predict(pixels).score)
    assert here.upload(first) in ("OK", "NOK")
    here.upload(second)
    page.locator("#picture").wait_for()
    until(lambda: page.evaluate("document.querySelector('#picture').naturalWidth") > 400)
    page.locator("#last li:nth-child(3)").wait_for()
    assert page.inner_text("#state") == "Running"
    assert page.inner_text("#count-unusable") == "1"

    # The threshold between them, by the keyboard alone.
    page.click("nav >> text=Threshold")
    page.locator("#slider").wait_for()
    page.fill("#who", "Ada")
    wanted = sum(one.score for one in detector.predict([first, second])) / 2
    page.fill("#exact", str(wanted))
    assert page.inner_text("#chosen-0") == "1 of 2 NOK (50\u00a0%)"
    page.focus("#slider")
    page.keyboard.press("End")
    assert page.inner_text("#chosen-0") == "0 of 2 NOK (0\u00a0%)"
    page.fill("#exact", str(wanted))
    before = here.model.read_bytes()
    page.click("#save")
    here.say_yes()
    page.locator(".done", has_text="beside the model").wait_for()
    assert here.model.read_bytes() == before
    assert json.loads(calibration_path(here.model).read_text())["who"] == "Ada"
    until(lambda: service.recipes.get("cloth").detector.calibration.threshold.value == wanted)
    page.click("nav >> text=Inspect")
    assert [here.upload(first), here.upload(second)] == ["OK", "NOK"]

    # What it says is confirmed and overruled.
    page.click("nav >> text=Review")
    page.locator("#confirm").wait_for()
    waiting = service.records.store.history.to_review(100, recipe="cloth")
    page.fill("#tags", "hole, edge")
    page.keyboard.press("Escape")
    page.click("#confirm")
    page.locator("#review h1", has_text=f"1 of {len(waiting) - 1}").wait_for()
    page.keyboard.press("g")
    page.locator(".done", has_text="good images").wait_for()
    page.keyboard.press("o")
    page.locator("#review h1", has_text=f"1 of {len(waiting) - 1}").wait_for(state="detached")
    said = [service.records.find(one.inspection.id).review for one in waiting[:2]]  # type: ignore[union-attr]
    assert [(one.word, one.who) for one in said if one] == [("confirm", "Ada"), ("overrule", "Ada")]
    assert said[0] is not None
    assert said[0].tags == ("hole", "edge")
    with page.expect_download() as download:
        page.click("text=Export disagreements")
    with zipfile.ZipFile(download.value.path()) as archive:
        (line,) = archive.read("disagreements.jsonl").splitlines()
        assert json.loads(line)["file"] in archive.namelist()

    # A new model, as a retraining leaves it, is used, and the former one again.
    new = service.models.new_folder("cloth")
    write_atomic(new / here.model.name, two_models[1].read_bytes())
    about = {
        "sha256": sha256_of(two_models[1]),
        "compared_with": sha256_of(here.model),
        "fitted_on": [8, 9],
        "threshold": [1.0, 2.0],
        "good": 4,
        "defective": 2,
        "metrics": {"image_auroc": [0.5, 0.75], "detection_rate": [0.5, 1.0]},
    }
    write_atomic(new / ABOUT, json.dumps(about).encode())
    page.click("nav >> text=Models")
    page.locator("#models h1").wait_for()
    assert "0.500\n0.750" in page.inner_text("#new-model").replace("\t", "\n")
    page.click("#promote")
    here.say_yes()
    page.locator(".done", has_text="new model is in use").wait_for()
    assert here.model.read_bytes() == two_models[1].read_bytes()
    assert service.recipes.get("cloth").sha256 == sha256_of(two_models[1])
    page.click("#former >> text=Roll back")
    here.say_yes()
    page.locator(".done", has_text="former model is in use").wait_for()
    assert here.model.read_bytes() == before
    assert service.recipes.get("cloth").detector.calibration.threshold.value == wanted
    actions = [change.action for change in service.records.store.history.changes(9)]
    assert actions == ["roll back", "promote", "good image", "threshold"]
    assert "Ada (engineer)" in page.inner_text("#changes")


@pytest.mark.slow
def test_an_operator_logs_in_and_changes_nothing(opened: Open, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'operator = "{OPERATOR}"\nengineer = "{ENGINEER}"\n')
    here = opened(read_tokens(tokens))
    page = here.page
    page.fill("#token", "nobody's")
    page.click("#login button")
    page.locator("#login .wrong", has_text="not known").wait_for()
    page.fill("#token", OPERATOR)
    page.click("#login button")
    page.locator("#verdict.none").wait_for()
    assert page.inner_text("#role") == "Operator"
    assert page.locator("nav a:visible").all_inner_texts() == ["Inspect", "Review"]
    page.click("#camera")
    page.locator("#video").wait_for()
    until(lambda: page.evaluate("document.querySelector('#video').videoWidth") > 0)
    page.click("#take")
    until(lambda: here.newest().source == "page")
    asked = "fetch('/page/retrain?recipe=cloth', {method: 'POST', body: '{}'}).then(a => a.status)"
    assert page.evaluate(asked) == 403
    page.click("#log-out")
    page.locator("#token").wait_for()


@pytest.mark.slow
def test_what_is_not_stored_is_listed_and_a_database_that_is_away_is_said(
    opened: Open, tmp_path: Path
) -> None:
    secret = tmp_path / "database"
    secret.write_text("postgresql://plant:hunter2@127.0.0.1:9/plant")  # where nobody answers
    here = opened(keep=KeepSettings(database=secret, box="line-1"))
    page, store = here.page, here.service.records.store
    page.locator("#problems", has_text="database plant on 127.0.0.1").wait_for()
    page.click("nav >> text=Boxes")
    page.locator("#boxes p", has_text="not read yet").wait_for()
    page.click("nav >> text=Inspect")
    assert page.locator("#gaps").is_hidden()
    with closing(sqlite3.connect(here.data / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(MOST_WAITING + 3):
            store.add(inspection(number))
        page.locator("#gaps.now summary", has_text="Not stored: 20,003").click()
        page.locator("#gaps li", has_text="20,000 inspections, which wait").wait_for()
        page.locator("#gaps li", has_text="3 inspections, which are lost").wait_for()
        page.locator("#problems", has_text="another program holds it").wait_for()
        other.execute("ROLLBACK")
    page.locator("#gaps summary", has_text="Not stored: 3").wait_for()
    page.locator("#gaps:not(.now)").wait_for()
    assert "another program holds it" in page.inner_text("#gaps")
    assert "another program holds it" not in page.inner_text("#problems")


@pytest.mark.slow
def test_an_image_goes_to_the_recipe_that_was_chosen_this_moment(
    opened: Open, two_models: list[Path]
) -> None:
    here = opened()
    shutil.copy(two_models[1], here.model.with_name("lid.safetensors"))
    here.page.locator("#recipe option[value=lid]").wait_for(state="attached")
    here.page.select_option("#recipe", "lid")
    image = {"name": "a.png", "mimeType": "image/png", "buffer": coded(TEXTURES[0])}
    here.page.set_input_files("#file", image)
    until(lambda: here.service.records.last(1, "lid")[0])
    assert here.service.records.last(1, "cloth") == []
    here.page.locator("#last li").wait_for()
    assert here.page.input_value("#recipe") == "lid"
    # A proxy that speaks for the service is no reason for words that nobody understands.
    here.page.route("**/v1/predict*", lambda route: route.fulfill(status=400, body="<html>"))
    here.page.set_input_files("#file", image)
    here.page.locator("#inspect-wrong", has_text="No connection to the service: try").wait_for()


@pytest.mark.slow
def test_it_has_no_serious_fault_for_who_sees_or_moves_otherwise(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    monkeypatch.setattr(retraining, "PACKAGES", ("torch_that_is_missing",))
    secret = tmp_path / "database"
    secret.write_text("postgresql://127.0.0.1:9/plant")  # where nobody answers
    keep = KeepSettings(database=secret)
    here = opened(keep=keep, color_scheme="dark", viewport={"width": 390, "height": 844})
    store = here.service.records.store
    with closing(sqlite3.connect(here.data / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(MOST_WAITING + 3):
            store.add(inspection(number, recipe="cloth"))
        other.execute("ROLLBACK")
    for number in range(240):  # something has changed
        made = (inspection if number < 200 else anomalous)(number, recipe="cloth")
        here.service.drift.add(made, {})
    until(lambda: store.state().waiting == 0)
    here.upload(texture(30))
    here.upload(np.zeros((40, 40, 3), np.uint8))
    for theme in ("dark", "light"):
        for view, there in (
            ("Inspect", "#verdict.unusable"),
            ("Review", "#confirm"),
            ("Boxes", "#boxes h1"),
            ("Threshold", "#slider"),
            ("Models", "#retrain"),
        ):
            here.page.click(f"nav >> text={view}")
            here.page.locator(there).wait_for()
            found = axe.Axe().run(here.page).response["violations"]
            serious = [one for one in found if one["impact"] in ("serious", "critical")]
            assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == [], (view, theme)
            wide = "document.documentElement.scrollWidth > innerWidth"
            assert not here.page.evaluate(wide), (view, theme)
        here.page.click("#theme")
    # Who cannot train here is told so.
    assert here.page.is_disabled("#retrain")
    assert "pip install 'haloae[train]'" in here.page.inner_text("#missing")
