"""Whole commands on hostile folders, names, disks and with each other: a sentence, nothing lost."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import texture
from faults.attacks import EXPORTS, MODELS, prepare
from faults.campaign import Ended, Record, Tally, spread
from faults.kills import contents, hidden_in, killed_before
from faults.models import TINY
from faults.pictures import NAMES, cut_short, mutated, polyglot, retagged, sound
from haloae.cli import main
from haloae.config import Config
from haloae.detector import Detector
from haloae.training.run_folder import CHECKPOINT

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)


def haloae(*words: str | Path) -> int:
    return main([os.fspath(word) for word in words] + ["--quiet"])


def trained(good: Path, out: str, *more: str) -> int:
    fit = ("--config", "tiny.toml", "--backbone", "random", "--device", "cpu")
    return haloae("train", good, "--out", out, *fit, *more)


# Folders


def predict_hostile(count: int, model: Path, said: pytest.CaptureFixture[str]) -> Tally:
    """Score a folder of hostile images; a case is an image."""
    folder = Path("images")
    folder.mkdir()
    for number in range(count):
        write = (mutated, cut_short, retagged, polyglot)[number % 4]
        (folder / f"{number:04}.png").write_bytes(write(number // 4))
    for number in range(8):
        Image.fromarray(texture(number)).save(folder / f"sound-{number}.png")
    said.readouterr()
    assert haloae("predict", model, folder, "--out", "o") == 1
    lines = Path("o/predictions.jsonl").read_text().splitlines()
    tally = Tally()
    for number, line in enumerate(lines):
        found = json.loads(line, parse_constant=pytest.fail)  # NaN and its kind
        is_refused = found["error"] is not None
        is_right = is_refused or 0 <= found["score"] < np.inf
        word = "refused" if is_refused else "read"
        tally.add(number, Ended(word if is_right else line, 0, is_failure=not is_right))
    foreign = [line for line in said.readouterr().err.splitlines() if not line.startswith("haloae")]
    assert [line for line in foreign if line.split(":")[0] not in ("skipped", "WARNING")] == []
    assert tally.tried == count + 8
    assert sum("sound-" in line and json.loads(line)["error"] is None for line in lines) == 8
    assert len(list(Path("o/maps").rglob("*.png"))) == tally.ended["read"]
    tally.seconds = None
    return tally


def test_some_hostile_images(two_models: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert predict_hostile(24, two_models[0], capfd).failed == []


@pytest.mark.slow
def test_a_folder_of_hostile_images(
    two_models: list[Path], most: int, record: Record, capfd: pytest.CaptureFixture[str]
) -> None:
    found = predict_hostile(min(3061, most), two_models[0], capfd)
    record("a folder of them through `haloae predict`", found)
    assert found.failed == []


# Names


HOSTILE_NAMES = (
    *("a\nb", "a\tb", "\r", "\x1b[31mred", "\x7f", "\u202egnp.live", "\u200b", "-", "--out", "-rf"),
    *("..", "...", " ", " a ", "a b", "'", '"', "`id`", "$(id)", "<b>", "&amp;", "%s", "{}", "*"),
    *("#", "é", "e\u0301", "名前", "x" * 240, "\udcff", "con", "a,b;c|d"),
)


@pytest.mark.parametrize(
    "most_names", [4, pytest.param(len(HOSTILE_NAMES), marks=pytest.mark.slow)]
)
def test_no_name_breaks_a_command(
    most_names: int,
    two_models: list[Path],
    labelled: Path,
    record: Record,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tally = Tally()
    for number in spread(len(HOSTILE_NAMES), most_names):
        name = f"{HOSTILE_NAMES[number]}.png"
        place = Path(f"set-{number}")
        shutil.copytree(labelled, place)
        shutil.copy(labelled / "test/good/0.png", place / "test/good" / name)
        model = place / f"{HOSTILE_NAMES[number]}.safetensors"
        shutil.copy(two_models[0], model)
        commands = (
            ("predict", model, place / "test", "--out", place / f"{name}.out", "--overlays", "all"),
            ("info", model),
            ("info", f"{model}.none"),
            ("evaluate", model, place, "--out", place / "e"),
        )
        for command in commands[: 3 if most_names < len(HOSTILE_NAMES) else 4]:
            code = haloae(*command)
            out, err = capfd.readouterr()
            odd = [c for c in out + err if not c.isprintable() and c != "\n"]
            expected = 2 if str(command[1]).endswith(".none") else 0
            is_right = code == expected and not odd and "internal error" not in err
            said = f"{name!r} {command[0]}: {code} {odd} {err}"
            tally.add(number, Ended("done" if is_right else said, 0, is_failure=not is_right))
        assert len(list((place / f"{name}.out/maps").rglob("*.png"))) == (
            4 if name.startswith(".") else 5  # those are left out
        )
        if (place / "e").exists():
            assert b"<b>.png" not in (place / "e/report.html").read_bytes()
    tally.seconds = None
    if most_names == len(HOSTILE_NAMES):
        record("names: commands on them", tally)
    assert tally.failed == []


# Disks


@contextlib.contextmanager
def disk(kilobytes: int) -> Iterator[Path]:
    """A small disk of its own."""
    place = Path("disk").absolute()
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", place]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here; test_outputs limits the size of files instead")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


def replacing(model: Path, labelled: Path, out: Path) -> dict[str, tuple[str | Path, ...]]:
    fit = ("--config", "tiny.toml", "--backbone", "random", "--device", "cpu")
    stricter = ("--false-alarm-rate", "0.1", "--out", out / "c.safetensors")
    return {
        "predict": ("predict", model, labelled / "test", "--out", out, "--overlays", "all"),
        "evaluate": ("evaluate", model, labelled, "--out", out),
        "train": ("train", labelled, "--out", out, *fit),
        "calibrate": ("calibrate", model, *stricter),
        "export": ("export", EXPORTED, "--out", out / "m.onnx"),
    }


EXPORTED = Path("model.safetensors")
FREE = (0, 4, 12, 40, 120)


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there(
    two_models: list[Path], labelled: Path, record: Record
) -> None:
    tally = Tally()
    shutil.copy(two_models[0], EXPORTED)
    for name in replacing(two_models[0], labelled, Path()):
        with disk(4000) as place:
            out = place / "out"
            if name in ("calibrate", "export"):
                out.mkdir()
            command = replacing(two_models[0], labelled, out)[name]
            assert haloae(*command) == 0
            old = contents(out)
            for number, free in enumerate(FREE):
                ballast = place / "ballast"
                left = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
                ballast.write_bytes(bytes(max(left - 1024 * free, 0)))
                code = haloae(*command, "--overwrite")
                now = contents(out)
                # A training that has stopped may be gone on with.
                hidden = hidden_in(out) - ({".haloae-new-run"} if name == "train" else set())
                is_right = hidden == set() and (now == old if code else set(now) == set(old))
                ballast.unlink()
                changed = sorted(n for n in {*now, *old} if now.get(n) != old.get(n))
                word = f"exit code {code}"
                if not is_right:
                    word = f"{name} of {free} kB: {code}, {changed}, {hidden_in(out)}"
                tally.add(number, Ended(word, 0, is_failure=not is_right or code not in (0, 2)))
                old = now
    tally.seconds = None
    record("disk full", tally)
    assert tally.failed == []


@pytest.mark.slow
def test_a_disk_that_is_read_only_is_said(
    two_models: list[Path],
    labelled: Path,
    record: Record,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally = Tally()
    shutil.copy(two_models[0], EXPORTED)
    with disk(20_000) as place:
        outs = {name: place / name for name in replacing(two_models[0], labelled, Path())}
        for name, out in outs.items():
            out.mkdir()
            assert haloae(*replacing(two_models[0], labelled, out)[name]) == 0
        old = contents(place)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        for number, (name, out) in enumerate(outs.items()):
            for new in (out, out / "new"):
                command = replacing(two_models[0], labelled, new)[name]
                capsys.readouterr()
                code = haloae(*command, "--overwrite")
                err = capsys.readouterr().err
                is_right = code == 2 and "Read-only file system" in err and err.count("\n") == 1
                word = "refused" if is_right else f"{name}: {code} {err}"
                tally.add(number, Ended(word, 0, is_failure=not is_right))
        assert contents(place) == old
    tally.seconds = None
    record("read-only", tally)
    assert tally.failed == []


# Kills


@pytest.mark.slow
def test_a_training_killed_and_resumed_is_the_same(
    labelled: Path, most: int, record: Record
) -> None:
    assert trained(labelled, "whole") == 0
    whole = contents(Path("whole"))
    rng, tally = np.random.default_rng(0), Tally()
    for number in range(min(40, most)):
        out = f"r{number}"
        more: tuple[str, ...] = ()
        for step in rng.integers(1, 25, 1 + number % 2).tolist():

            def work(out: str = out, more: tuple[str, ...] = more) -> None:
                assert trained(labelled, out, *more) == 0

            killed_before(step, work, Path(out).absolute())
            more = ("--resume",)
        assert trained(labelled, out, "--resume") == 0
        now = contents(Path(out))
        same = [name for name in ("model.safetensors", "losses.csv") if now[name] == whole[name]]
        is_right = len(same) == 2 and hidden_in(Path(out)) == set()
        tally.add(number, Ended(str(same), 0, is_failure=not is_right))
    tally.seconds = None
    record("kill -9 of `train`, then `--resume`", tally)
    assert tally.failed == []


# Two at once, and threads


def results(out: Path) -> dict[str, bytes]:
    """What is the same bytes each time."""
    return {name: data for name, data in contents(out).items() if name != CHECKPOINT}


def _command(words: list[str | Path], folder: Path, pipe: object) -> None:
    import tiny_trunk  # noqa: F401 - registers the trunk

    os.chdir(folder)
    pipe.send("ready")
    pipe.recv()
    pipe.send(haloae(*words))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "predict"])
def test_two_commands_on_one_folder(
    name: str,
    two_models: list[Path],
    labelled: Path,
    processes: ForkServerContext,
    most: int,
    record: Record,
) -> None:
    tally, alone = Tally(), []
    for model in two_models:
        assert haloae(*replacing(model, labelled, Path("alone"))[name]) == 0
        alone.append(results(Path("alone")))
        shutil.rmtree("alone")
    for number in range(min(10, most)):
        out = Path(f"o{number}")
        pipes = []
        for model in two_models:
            ours, theirs = processes.Pipe()
            words = list(replacing(model, labelled, out)[name])
            processes.Process(target=_command, args=(words, Path.cwd(), theirs)).start()
            theirs.close()
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()
        for pipe in pipes:
            pipe.send("go")
        codes = [pipe.recv() for pipe in pipes]
        is_right = sorted(codes) == [0, 2] and results(out) in alone
        tally.add(number, Ended("one of them", 0, is_failure=not is_right))
    tally.seconds = None
    record(f"two `{name}` into one folder", tally)
    assert tally.failed == []


THREADS, EACH = 8, 220


@pytest.mark.slow
@pytest.mark.parametrize("name", [MODELS[1], *EXPORTS])
def test_threads_say_what_one_says(
    name: str, tiny: Config, good_paths: list[Path], tmp_path: Path, most: int, record: Record
) -> None:
    prepare(tmp_path, tiny, good_paths)
    detector = Detector.load(tmp_path / name, device="cpu", threads=1)
    paths = []
    for kind in NAMES:
        paths.append(tmp_path / f"{kind}.img")
        paths[-1].write_bytes(sound(kind))
    chosen = [paths[number % len(paths)] for number in range(min(THREADS * EACH, most))]

    def said(path: Path) -> tuple[float, str, bytes]:
        found = detector.predict(path)
        return found.score, found.verdict, found.anomaly_map.tobytes()

    one = {path: said(path) for path in paths}
    tally = Tally()
    with ThreadPoolExecutor(THREADS) as pool:
        for number, (path, found) in enumerate(zip(chosen, pool.map(said, chosen), strict=True)):
            tally.add(number, Ended("the same", 0, is_failure=found != one[path]))
    tally.seconds = None
    record("8 threads, one detector", tally)
    assert tally.failed == []
