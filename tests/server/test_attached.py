"""From a file in a folder to a line on disk, through a real model."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from haloae import ConfigError
from haloae.server.settings import Settings, read_settings
from haloae.server.sources import SOURCES
from server.plant import until

pytest.importorskip("fastapi", reason="fastapi is not installed")

from fastapi.testclient import TestClient

from haloae.server.app import create_app

CONFIG = """
[[source]]
kind = "folder"
name = "line-1"
recipe = "m"
path = "{folder}/in"
move_to = "{folder}/done"
settle = 0.05

[[source]]
kind = "folder"
name = "line-2"
recipe = "m"
path = "{folder}/missing"

[[sink]]
kind = "folder"
path = "{folder}/out"
"""


def settings_of(tmp_path: Path, text: str = CONFIG) -> Settings:
    (tmp_path / "serve.toml").write_text(text.format(folder=tmp_path.as_posix()))
    return read_settings(tmp_path / "serve.toml")


def test_a_file_comes_in_is_inspected_and_handed_on_and_what_is_broken_is_a_problem(
    tmp_path: Path, two_models: list[Path], good_paths: list[Path]
) -> None:
    settings = settings_of(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.png").write_bytes(good_paths[0].read_bytes())
    (tmp_path / "in" / "torn.png").write_bytes(good_paths[0].read_bytes()[:100])
    app = create_app(two_models[0], data=tmp_path / "kept", settings=settings)
    service = app.state.service
    with TestClient(app, base_url="http://localhost") as client:
        until(lambda: not any((tmp_path / "in").iterdir()))
        until(lambda: [problem.part for problem in service.problems.now()] == ["source line-2"])
        assert "missing: no such folder" in service.problems.now()[0].message
        metrics = client.get("/metrics").text
        assert 'haloae_source_works{source="line-2"} 0.0' in metrics
        assert 'haloae_inspections_total{recipe="m",source="line-1",' in metrics
        refused = 'haloae_source_refused_total{source="line-1"} 1.0'
        until(lambda: refused in client.get("/metrics").text)
        (tmp_path / "missing").mkdir()
        until(lambda: not service.problems.now())
    (file,) = (tmp_path / "out").rglob("inspections.jsonl")
    (line,) = [json.loads(each) for each in file.read_text().splitlines()]
    assert (line["source"], line["recipe"]) == ("line-1", "m")
    assert (file.parent / line["file"]).read_bytes() == good_paths[0].read_bytes()
    assert (tmp_path / "done" / "refused" / "torn.png").exists()
    assert [state.status for state in service.attached.sources.states()] == ["stopped", "stopped"]


def test_what_a_kill_has_kept_from_a_sink_follows_after_the_start(
    tmp_path: Path, two_models: list[Path], good_paths: list[Path]
) -> None:
    settings = settings_of(tmp_path, '[[sink]]\nkind = "folder"\npath = "{folder}/out"\n')
    data = tmp_path / "kept"
    image = good_paths[0].read_bytes()

    def served() -> TestClient:
        app = create_app(two_models[0], data=data, settings=settings)
        return TestClient(app, base_url="http://localhost")

    def lines() -> list[dict[str, object]]:
        files = (tmp_path / "out").rglob("inspections.jsonl")
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    with served() as client:
        first = client.post("/v1/predict", content=image).json()["id"]
    with served() as client:
        second = client.post("/v1/predict", content=image).json()["id"]
    assert [line["id"] for line in lines()] == [first, second]
    # As if all had been killed after the second was answered, before any sink had it.
    shutil.rmtree(tmp_path / "out")
    with closing(sqlite3.connect(data / "sink-folder.sqlite")) as database, database:
        database.execute("UPDATE mark SET id = ?", (first,))
    with served():
        until(lambda: [line["id"] for line in lines()] == [second])
    (line,) = lines()
    (file,) = (tmp_path / "out").rglob(str(line["file"]))
    assert file.read_bytes() == image
    with served():  # it is known now
        pass
    assert len(lines()) == 1


def test_a_wrong_table_is_named_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"serve.toml: source 1 \(folder\): .*path"):
        settings_of(tmp_path, '[[source]]\nkind = "folder"\nrecipe = "m"\n')


def test_a_file_of_ones_own_adds_a_kind(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from haloae.server.sources import Source, register_source\n"
        '@register_source("mine")\n'
        "class Mine(Source):\n"
        "    serial: str\n"
        "    def images(self, stop, memory):\n"
        "        yield None\n"
    )
    text = 'modules = ["{folder}/mine.py"]\n[[source]]\nkind = "mine"\nrecipe = "m"\n'
    try:
        (source,) = settings_of(tmp_path, text + 'serial = "42"\n').source
        assert source.model_dump() == {"name": "mine", "recipe": "m", "serial": "42"}
        with pytest.raises(ConfigError, match=r"source 1 \(mine\): setting serial: field required"):
            settings_of(tmp_path, text)
    finally:
        SOURCES.pop("mine", None)
    with pytest.raises(ConfigError, match=r"gone.py: cannot be loaded \(FileNotFoundError"):
        settings_of(tmp_path, 'modules = ["{folder}/gone.py"]\n')


def test_without_a_folder_for_what_is_kept_nothing_starts(
    tmp_path: Path, two_models: list[Path]
) -> None:
    with pytest.raises(ConfigError, match="give a folder"):
        create_app(two_models[0], settings=settings_of(tmp_path))
