"""Commands that are killed, stopped, out of room or not alone leave the old results or the new."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tiny_trunk  # noqa: F401 - registers the trunk
from faults.campaign import Record, Tally
from faults.disks import largest_file
from faults.kills import contents, hidden_in, killed_before
from faults.models import TINY
from haloae.claims import claim_folder, write_together
from haloae.cli import main
from haloae.config import Config
from haloae.detector import Detector
from haloae.errors import OutputError
from haloae.experiments.benchmark import run_benchmark
from haloae.experiments.grid import MEASURED
from haloae.outputs.evaluation import EVALUATION
from haloae.outputs.folder import PREDICTION
from haloae.training.run_folder import RUN

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def haloae(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments] + ["--quiet"])


# predict


def predicted(model: Path, images: Path, out: Path, *more: str) -> int:
    return haloae("predict", model, images, "--out", out, "--overlays", "all", *more)


def test_a_prediction_that_fails_leaves_the_old_one(
    two_models: list[Path], labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path("o")
    assert predicted(two_models[0], labelled / "test", out) == 0
    old = contents(out)
    Path("bad.png").write_bytes(b"bad")
    shutil.copytree(labelled / "test", "parts")
    shutil.copy("bad.png", "parts/z.png")
    assert predicted(two_models[1], Path("parts"), out, "--overwrite", "--strict") == 2
    with largest_file(600):
        assert predicted(two_models[1], labelled / "test", out, "--overwrite") == 2
    assert "free some space" in capsys.readouterr().err
    assert contents(out) == old
    assert hidden_in(out) == set()


def kill_predictions(two_models: list[Path], labelled: Path, steps: Iterator[int]) -> Tally:
    whole = []
    for name, model, part in (("old", two_models[0], "test"), ("new", two_models[1], "test/hole")):
        assert predicted(model, labelled / part, Path(name)) == 0
        whole.append(contents(Path(name)))
    found = []
    for step in steps:
        out = Path(f"o{step}")
        shutil.copytree("old", out)

        def work(out: Path = out) -> None:
            assert predicted(two_models[1], labelled / "test/hole", out, "--overwrite") == 0

        is_killed = killed_before(step, work, out)
        with (
            pytest.raises(OutputError, match="not empty"),
            claim_folder(out, PREDICTION, overwrite=False),
        ):
            pass
        found.append(whole.index(contents(out)))
        if not is_killed:
            break
    assert sorted(found) == found
    assert set(found) == {0, 1}
    return Tally(len(found))


def test_predict_killed_before_some_steps(two_models: list[Path], labelled: Path) -> None:
    kill_predictions(two_models, labelled, iter([3, 12, 40, 44, 1000]))


@pytest.mark.slow
def test_predict_killed_before_any_step(
    two_models: list[Path], labelled: Path, record: Record
) -> None:
    found = kill_predictions(two_models, labelled, iter(range(1, 1000)))
    record("kill -9 of `predict --overwrite`, before each step", found)


# evaluate


@pytest.mark.usefixtures("capsys")  # else what is said goes to a file, which is limited too
def test_an_evaluation_that_fails_leaves_the_old_one(
    two_models: list[Path], labelled: Path
) -> None:
    out = Path("e")
    assert haloae("evaluate", two_models[0], labelled, "--out", out) == 0
    old = contents(out)
    assert set(old) == set(EVALUATION.files)
    with largest_file(1500):
        assert haloae("evaluate", two_models[1], labelled, "--out", out, "--overwrite") == 2
    assert contents(out) == old
    assert hidden_in(out) == set()


def test_only_the_models_own_losses_are_in_its_report(
    two_models: list[Path], labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    nothing = SimpleNamespace(skipped=())
    monkeypatch.setattr("haloae.evaluation.evaluate.evaluate", lambda *_, **__: nothing)
    monkeypatch.setattr(
        "haloae.outputs.evaluation.write_evaluation",
        lambda *_, losses, **__: taken.append(losses is not None),
    )
    run, rows = Path("run"), "step,features,features_weight,learning_rate\n1,7,1,0.1\n2,6,1,0.1\n"
    run.mkdir()
    for name, more in (("model", ""), ("model", "3,5,1,0.1\n"), ("other", ""), ("model", "3,")):
        shutil.copy(two_models[0], run / f"{name}.safetensors")
        (run / "losses.csv").write_text(rows + more)
        out = f"e{len(taken)}"
        assert haloae("evaluate", run / f"{name}.safetensors", labelled, "--out", out) == 0
    (run / "losses.csv").unlink()
    os.mkfifo(run / "losses.csv")
    assert haloae("evaluate", run / "model.safetensors", labelled, "--out", "e4") == 0
    assert taken == [True, False, False, False, False]


# train


def trained(labelled: Path, *more: str) -> int:
    Path("tiny.toml").write_text(TINY)
    fit = ("--config", "tiny.toml", "--backbone", "random", "--device", "cpu")
    return haloae("train", labelled, "--out", "run", *fit, *more)


@pytest.mark.usefixtures("capsys")
def test_a_training_that_stops_leaves_the_old_run_and_goes_on(
    labelled: Path, processes: ForkServerContext
) -> None:
    run = Path("run")
    assert trained(labelled) == 0
    old = contents(run)
    assert set(old) == set(RUN.files)
    with largest_file(30_000):
        assert trained(labelled, "--overwrite", "--seed", "1") == 2
    assert contents(run) == old
    assert hidden_in(run) == set()
    for checkpoints in (1, 2):  # at the start, at the end
        # Not forked from here: autograd, once used by threads, cannot be taken along.
        arguments = (labelled, checkpoints + 1)
        child = processes.Process(target=train_until_checkpoint, args=arguments)
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        assert contents(run) == old
    assert trained(labelled, "--resume", "--seed", "1") == 0
    resumed = contents(run)
    assert hidden_in(run) == set()
    shutil.rmtree(run)
    assert trained(labelled, "--seed", "1") == 0
    fresh = contents(run)
    assert [resumed[name] for name in ("model.safetensors", "losses.csv")] == [
        fresh[name] for name in ("model.safetensors", "losses.csv")
    ]
    assert resumed["model.safetensors"] != old["model.safetensors"]


def train_until_checkpoint(labelled: Path, number: int) -> None:
    """A training anew that is killed when it is about to write a checkpoint, or then its model."""
    from haloae import files

    left = number
    write = files.write_atomic

    def killing(path: Path, data: bytes, *, durable: bool = True) -> None:
        nonlocal left
        left -= path.suffix in (".pt", ".safetensors")
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, data, durable=durable)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("haloae.training.run_folder.write_atomic", killing)
        patch.setattr("haloae.detection.model_file.write_atomic", killing)
        trained(labelled, "--overwrite", "--seed", "1")


def test_a_folder_named_as_the_model_is_said(
    labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run/model.safetensors").mkdir(parents=True)
    assert trained(labelled, "--overwrite") == 2
    assert "run/model.safetensors: is a folder" in capsys.readouterr().err


def test_two_commands_do_not_write_to_one_folder(
    two_models: list[Path], labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [
        ("predict", two_models[0], labelled / "test"),
        ("evaluate", two_models[0], labelled, "--overwrite"),
        ("train", labelled, "--resume"),
        ("benchmark", labelled.parent, "--resume"),
        ("demo", "--overwrite"),
    ]
    with claim_folder(Path("run"), RUN, overwrite=False):
        for command in commands:
            assert haloae(*command, "--out", "run") == 2
            said = capsys.readouterr().err
            assert f"run: process {os.getpid()} is writing there: wait until it is done" in said
    assert list(Path("run").iterdir()) == []


# benchmark


def test_a_benchmark_replaces_runs_and_tables_when_they_are_whole(
    labelled: Path, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path("b")
    first, second = (
        {"tiny": tiny.replace(training={"steps": steps}).replace(seed=0)} for steps in (2, 3)
    )
    run_benchmark(labelled.parent, out, first)
    old = contents(out)

    def stop(run: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_benchmark(labelled.parent, out, first, report=stop)
    assert contents(out) == old
    with monkeypatch.context() as patch:
        patch.setattr("haloae.experiments.benchmark.evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(KeyboardInterrupt):
            run_benchmark(labelled.parent, out, second, report=stop)
    assert contents(out) == old
    result = run_benchmark(labelled.parent, out, second)["runs"][0]
    saved = json.loads((out / result["folder"] / "run.json").read_text())
    assert saved["config"]["training"]["steps"] == 3
    assert set(contents(out / result["folder"])) == set(MEASURED.files) - {"checkpoint.pt"}
    assert hidden_in(out) == set()
    with pytest.raises(OutputError, match="not empty: give --resume"):
        run_benchmark(labelled.parent, out, second, overwrite=False)


# export


@pytest.mark.slow
def test_an_openvino_export_killed_before_any_step(two_models: list[Path]) -> None:
    pytest.importorskip("openvino")
    image = np.full((40, 40, 3), 100, np.uint8)
    scores = []
    for number, model in enumerate(two_models):
        assert haloae("export", model, "--format", "openvino", "--out", f"{number}.xml") == 0
        scores.append(Detector.load(f"{number}.xml").predict(image).score)

    found = []
    for step in range(1, 100):
        pair = {Path(f"m{step}.xml"): Path("1.xml"), Path(f"m{step}.bin"): Path("1.bin")}
        for target in pair:
            shutil.copy(Path("0.xml").with_suffix(target.suffix), target)
        new = {target.absolute(): source.read_bytes() for target, source in pair.items()}
        is_killed = killed_before(step, lambda new=new: write_together(new), Path.cwd())
        found.append(scores.index(Detector.load(f"m{step}.xml").predict(image).score))
        if not is_killed:
            break
    assert sorted(found) == found
    assert set(found) == {0, 1}


# Everything, at random moments


def replaced(old: dict[str, bytes], now: dict[str, bytes]) -> bool:
    """Whether results are the new ones; some of each would be neither."""
    assert set(now) == set(old)
    differs = {now[name] != old[name] for name in old}
    assert len(differs) == 1
    return differs.pop()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_evaluate_killed_at_random_steps(seed: int, two_models: list[Path], labelled: Path) -> None:
    rng = np.random.default_rng(seed)
    assert haloae("evaluate", two_models[0], labelled, "--out", "old") == 0
    old = contents(Path("old"))
    for number, step in enumerate(rng.integers(1, 30, 6).tolist()):
        out = Path(shutil.copytree("old", f"e{number}"))

        def work(out: Path = out) -> None:
            assert haloae("evaluate", two_models[1], labelled, "--out", out, "--overwrite") == 0

        is_killed = killed_before(step, work, out)
        assert haloae("evaluate", two_models[1], labelled, "--out", out) == 2  # it is not empty
        assert replaced(old, contents(out)) or is_killed
        assert hidden_in(out) <= {name for name in hidden_in(out) if "tmp-" in name}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_benchmark_killed_at_random_steps(
    seed: int, labelled: Path, tiny: Config, record: Record
) -> None:
    rng = np.random.default_rng(seed)
    first, second = ({"tiny": tiny.replace(training={"steps": steps})} for steps in (2, 3))
    run_benchmark(labelled.parent, Path("old"), first)
    old = contents(Path("old/tiny/cloth/seed-0"))
    for number, step in enumerate(rng.integers(1, 120, 5).tolist()):
        out = Path(shutil.copytree("old", f"b{number}"))
        run = out / "tiny/cloth/seed-0"

        def work(out: Path = out) -> None:
            run_benchmark(labelled.parent, out, second)

        killed_before(step, work, out)
        with claim_folder(
            run, MEASURED, overwrite=False, goes_on=lambda place, run=run: place == run
        ):
            pass
        replaced(old, contents(run))
        run_benchmark(labelled.parent, out, second)
        assert replaced(old, contents(run))
        results = json.loads((out / "results.json").read_text())["runs"]
        assert results[0]["metrics"]["threshold"] == metrics_of(run)["threshold"]
    record("kill -9 of `benchmark`, then `--resume`", Tally(5))


def metrics_of(out: Path) -> dict[str, object]:
    return dict(json.loads((out / "metrics.json").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_train_killed_at_random_steps(seed: int, labelled: Path) -> None:
    assert trained(labelled) == 0
    run, rng = Path("run"), np.random.default_rng(seed)
    old = contents(run)
    shutil.copytree(run, "old")
    for step in rng.integers(1, 60, 10).tolist():
        shutil.rmtree(run)
        shutil.copytree("old", run)

        def work() -> None:
            assert trained(labelled, "--overwrite", "--seed", "1") == 0

        killed_before(step, work, run)
        assert trained(labelled) == 2  # it is not empty
        now = contents(run)
        if not replaced(old, now):
            assert trained(labelled, "--overwrite", "--seed", "1") == 0
        assert replaced(old, contents(run))
        assert hidden_in(run) <= {name for name in hidden_in(run) if "tmp-" in name}


TWO = "import sys, tiny_trunk; from haloae.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_two_predictions_at_once(number: int, two_models: list[Path], labelled: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    images = [labelled / part for part in ("test/good", "test/hole")]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, "predict", model, part, "--out", "o", "--quiet"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for model, part in zip(two_models, images, strict=True)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    loser = [process.returncode for process in both].index(2)
    assert "is writing there" in said[loser] or "is not empty" in said[loser]
    lines = [json.loads(line) for line in Path("o/predictions.jsonl").read_text().splitlines()]
    assert {Path(line["path"]).parent for line in lines} == {images[1 - loser]}
    assert len(list(Path("o/maps").iterdir())) == len(lines) == 2
