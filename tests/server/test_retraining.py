"""A new model, fitted as the old one was, and both compared on what people have reviewed."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from haloae import load
from haloae.data.limits import current_limits
from haloae.deploy.export import export_model
from haloae.errors import DataError
from haloae.files import sha256_of
from haloae.presets import preset
from haloae.server import retraining
from haloae.server.app import Service, create_app
from haloae.server.inspection import Inspection
from haloae.server.models import ABOUT, Person
from haloae.server.problems import RefusedError
from haloae.server.retrain import Job, retrain
from haloae.server.retraining import is_defective
from haloae.server.rows import Review, Stored
from haloae.server.settings import RetrainingSettings, Settings
from server.made_up import anomalous, inspection, unusable

ADA = Person("Ada", "engineer")


def job(model: Path, good: list[Path], out: Path, reviewed: list[tuple[Path, bool]]) -> Job:
    return Job(
        model=model, good=good, data="cloth", reviewed=reviewed, out=out, limits=current_limits()
    )


def test_a_new_model_is_fitted_and_compared_on_what_it_has_not_seen(
    two_models: list[Path], good_paths: list[Path], labelled: Path, tmp_path: Path
) -> None:
    holes, fine = sorted(labelled.glob("test/hole/*")), sorted(labelled.glob("test/good/*"))
    copy = tmp_path / "copy.png"
    shutil.copy(good_paths[0], copy)
    reviewed = [
        *((path, True) for path in (*holes, holes[0])),  # one of them twice
        *((path, False) for path in (*fine, copy)),  # one of them is fitted to
        (tmp_path / "gone.png", True),
    ]
    about = retrain(job(two_models[0], good_paths, tmp_path / "new", reviewed))
    new = tmp_path / "new" / two_models[0].name
    assert (about["sha256"], about["compared_with"]) == (sha256_of(new), sha256_of(two_models[0]))
    assert (about["good"], about["defective"]) == (2, 2)
    assert set(about["metrics"]) == {"image_auroc", "false_alarm_rate", "detection_rate"}
    assert load(new).config == load(two_models[0]).config
    old = load(two_models[0])
    scores = [old.predict(path).score > old.calibration.threshold.value for path in holes]
    assert about["metrics"]["detection_rate"][0] == sum(scores) / 2
    assert (tmp_path / "new" / ABOUT).is_file()


@pytest.mark.slow
def test_an_exported_model_is_followed_by_one_of_its_format(
    two_models: list[Path], good_paths: list[Path], tmp_path: Path
) -> None:
    model = tmp_path / "cloth.onnx"
    export_model(load(two_models[0]), model, format="onnx", input_type="uint8")
    about = retrain(job(model, good_paths, tmp_path / "new", [(good_paths[0], False)]))
    new = load(tmp_path / "new" / "cloth.onnx")
    assert new.engine == load(model).engine
    assert about["sha256"] == sha256_of(tmp_path / "new" / "cloth.onnx")


def test_without_reviewed_images_there_is_nothing_to_compare(
    two_models: list[Path], good_paths: list[Path], tmp_path: Path
) -> None:
    about = retrain(job(two_models[0], good_paths, tmp_path / "new", []))
    assert (about["good"], about["defective"], about["metrics"]) == (0, 0, {})
    with pytest.raises(DataError):
        retrain(job(two_models[0], good_paths[:1], tmp_path / "none", []))
    assert not (tmp_path / "none" / ABOUT).exists()


def test_what_a_word_says_of_an_image() -> None:
    def said(one: Inspection) -> list[bool | None]:
        words = [Review(w, (), "Ada", "operator", one.time) for w in ("confirm", "overrule")]
        return [is_defective(Stored(1, one, word)) for word in words]

    assert said(anomalous(1)) == [True, False]
    assert said(inspection(1)) == [False, True]
    assert said(unusable(1)) == [None, None]
    assert is_defective(Stored(1, anomalous(1), None)) is None


@pytest.fixture
def service(two_models: list[Path], tmp_path: Path) -> Iterator[Service]:
    app = create_app(two_models[0], data=tmp_path / "data")
    with TestClient(app, base_url="http://localhost"):
        yield app.state.service


def test_what_cannot_be_retrained_says_so(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RefusedError, match="no good images of 'm'"):
        service.retraining.start("m", ADA)
    monkeypatch.setattr(retraining, "PACKAGES", ("torch_that_is_missing",))
    with pytest.raises(RefusedError, match=r"pip install 'haloae\[train\]'"):
        service.retraining.start("m", ADA)
    assert service.retraining.state() is None


@pytest.mark.slow
def test_a_retraining_that_fails_says_why_and_leaves_no_model(
    service: Service, tmp_path: Path
) -> None:
    good = tmp_path / "data" / "good" / "m"  # a trunk that only this process knows: it fails
    good.mkdir(parents=True)
    (good / "a.png").write_bytes(b"no image")
    service.retraining.start("m", ADA)
    with pytest.raises(RefusedError, match="is being retrained"):
        service.retraining.start("m", ADA)
    ended(service)
    state = service.retraining.state()
    assert state is not None
    assert "trunk" in str(state.error)
    assert service.models.new("m") is None
    assert service.records.store.history.changes(1)[0].action == "retrain"


def ended(service: Service, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while (state := service.retraining.state()) is not None and state.step is not None:
        assert time.monotonic() < deadline, state
        time.sleep(0.05)


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "haloae.server.retrain", str(tmp_path / "none.json")]
    with subprocess.Popen(program, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        assert child.wait(120) == 1


@pytest.mark.slow
def test_a_real_one_runs_beside_inspections_which_go_on(
    good_folder: Path, labelled: Path, tmp_path: Path
) -> None:
    from haloae.detector import fit_detector

    model = tmp_path / "recipes" / "cloth.safetensors"
    config = preset("gaussian").replace(image_size=64)
    paths = sorted(good_folder.iterdir())
    fit_detector(paths[:8], config, name="cloth", device="cpu").detector.save(model)
    settings = Settings(retraining=RetrainingSettings(good={"cloth": good_folder}))
    app = create_app(model.parent, data=tmp_path / "data", settings=settings)
    data = next(labelled.glob("test/hole/*")).read_bytes()
    with TestClient(app, base_url="http://localhost") as client:
        service: Service = app.state.service
        found = client.post("/v1/predict", content=data).json()
        client.post(f"/page/inspections/{found['id']}/review", json={"word": "confirm"})
        alone, beside = seconds(client, data, 200), []
        assert client.post("/page/retrain?recipe=cloth", json={"who": "Ada"}).status_code == 200
        deadline = time.monotonic() + 600
        while (state := service.retraining.state()) is not None and state.step is not None:
            assert time.monotonic() < deadline, state
            beside += seconds(client, data, 10)
        assert state is not None
        assert state.error is None
        assert len(beside) > 50
        # The 99th in a hundred.
        assert sorted(beside)[len(beside) * 99 // 100] <= 2 * max(0.02, sorted(alone)[198])
        about = client.get("/page/models?recipe=cloth").json()["new"]
        assert about["fitted_on"] == [8, 12]
        assert (about["good"], about["defective"]) == (0, 1)
        assert client.post("/page/promote?recipe=cloth", json={}).status_code == 200
        again = client.post("/v1/predict", content=data).json()
        assert again["model"] == about["sha256"] != found["model"]


def seconds(client: TestClient, data: bytes, count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.monotonic()
        assert client.post("/v1/predict", content=data).status_code == 200
        found.append(time.monotonic() - began)
    return found
