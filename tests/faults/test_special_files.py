"""Pipes, devices, folders and links that lead back, wherever a path is taken: said, at once."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from haloae.cli import main

pytestmark = pytest.mark.faults
SECONDS = 20
Make = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """What waits for somebody to write into a pipe would wait for ever."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


MAKES: dict[str, Make] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "leads back": lambda path: path.symlink_to(path.name),
}
MODEL = ("info {}", "predict {} {images} --out o", "export {} --out m.onnx")
SETTINGS = ("train {good} --out o --config {}",)
WEIGHTS = ("train {good} --out o --backbone {}",)
FOLDERS = ("train {} --out o", "evaluate {model} {} --out o", "calibrate {model} {}")
TARGETS = ("train {good} --out {}", "predict {model} {images} --out {}", "demo --out {}")


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("command", [*MODEL, *SETTINGS, *WEIGHTS, *FOLDERS, *TARGETS])
def test_a_path_of_another_kind_is_refused(
    command: str,
    kind: str,
    two_models: list[Path],
    labelled: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kind == "folder" and command in (*FOLDERS, *TARGETS):
        pytest.skip("it is one that they take")
    MAKES[kind](Path("given"))
    places = {"images": labelled / "test", "good": labelled, "model": two_models[0]}
    words = [word.format("given", **places) for word in command.split()]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "given" in said
    assert "internal error" not in said
    assert said.count("\n") == 1
    assert list(Path().glob("o/*")) == []


@pytest.mark.parametrize("kind", MAKES)
def test_an_image_of_another_kind_is_one_that_cannot_be_read(
    kind: str, two_models: list[Path], labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MAKES[kind](Path("given.png"))
    image = labelled / "test/good/0.png"
    if kind == "folder":
        Path("given.png/0.png").symlink_to(image)
    code = main(["predict", str(two_models[0]), str(image), "given.png", "--out", "o"])
    said = capsys.readouterr().err
    assert "internal error" not in said
    assert code == (0 if kind == "folder" else 1)
    assert ("given.png" in said) == (kind != "folder")


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("checkpoint.pt", "train {good} --out run --resume"),
        ("checkpoint.pt", "train {good} --out run --overwrite"),
        ("model.safetensors", "train {good} --out run --overwrite"),
        ("losses.csv", "train {good} --out run --overwrite"),
        ("predictions.jsonl", "predict {model} {images} --out run --overwrite"),
        ("metrics.json", "evaluate {model} {good} --out run --overwrite"),
    ],
)
def test_a_result_of_another_kind_is_not_gone_on_with_nor_replaced(
    name: str,
    command: str,
    kind: str,
    two_models: list[Path],
    labelled: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kind in ("device", "leads back") and "--overwrite" in command:
        pytest.skip("a link is replaced, whatever it leads to")
    Path("run").mkdir()
    path = Path("run", name)
    MAKES[kind](path)
    places = {"images": labelled / "test", "good": labelled, "model": two_models[0]}
    assert main([word.format(**places) for word in command.split()]) == 2
    said = capsys.readouterr().err
    assert f"run/{name}" in said
    assert "internal error" not in said
    assert [entry.name for entry in Path("run").iterdir()] == [name]


def test_a_stored_run_that_is_a_pipe_is_made_anew_elsewhere(tmp_path: Path) -> None:
    from haloae.experiments.grid import Point, run_point
    from haloae.presets import preset

    good = tmp_path / "good"
    good.mkdir()
    (good / "0.png").touch()
    point = Point("fast", good, preset("fast"))
    folder = tmp_path / "out" / point.labels["folder"]
    folder.mkdir(parents=True)
    os.mkfifo(folder / "run.json")
    said = run_point(tmp_path / "out", point, lambda run: {"metrics": {}})["error"]
    assert "run.json: is a pipe" in said


def test_settings_have_a_bound(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("large.toml").write_text("#" * 2**21)
    assert main(["train", str(labelled), "--out", "o", "--config", "large.toml"]) == 2
    assert "large.toml: cannot be read (it is larger than" in capsys.readouterr().err
