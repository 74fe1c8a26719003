"""Files in docs/results are written by programs that exist, from what experiments leave."""

import importlib.util
import json
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.gathering import rates_now
from benchmarks.kinds import KINDS
from benchmarks.machine import machine
from benchmarks.mutants import Mutant
from benchmarks.results import main
from benchmarks.tables import ROOT
from PIL import Image

import haloae
from benchmarks import bad_images, counted, folder
from conftest import texture
from faults.bad_images import SHORT
from haloae.config import Config
from haloae.detection.calibration import threshold_at
from haloae.detector import Detector
from haloae.experiments.benchmark import run_benchmark

RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
MODULE = re.compile(r"python -m ([\w.]+)")
SUBCOMMAND = re.compile(r"\bhaloae (\w+)")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories, the second without masks."""
    root = tmp_path_factory.mktemp("sets")
    for name in ("cloth", "felt"):
        places = {f"train/good/{number}": texture(number) for number in range(12)}
        for number in range(3):
            spotted, mask = texture(20 + number), np.zeros((40, 40), np.uint8)
            spotted[8:24, 8:24], mask[8:24, 8:24] = (250, 10, 10), 255
            places |= {f"test/good/{number}": texture(40 + number), f"test/hole/{number}": spotted}
            if name == "cloth":
                places[f"ground_truth/hole/{number}_mask"] = mask
        for place, pixels in places.items():
            path = root / name / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def runs(sets: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Config) -> Path:
    """What a benchmark left: two heads that train nothing, on both sets."""
    network = {"autoencoder": False, "classifier": False}
    configs = {
        f"tiny, {head}": tiny.replace(network=network, detection={"head": head})
        for head in ("nearest", "gaussian")
    }
    out = tmp_path_factory.mktemp("runs")
    run_benchmark(sets, out, configs, device="cpu")
    return out


def written(root: Path, name: str, *runs: Path) -> dict[str, Any]:
    assert main([name, *map(str, runs)], root) == 0
    values = json.loads((root / "docs" / "results" / f"{name}.json").read_text())
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_results_file_has_a_program_that_writes_it_or_is_a_record(path: Path) -> None:
    values = json.loads(path.read_text("utf-8"))
    assert {"title", "columns", "rows"} <= set(values)
    assert set(values) <= {
        "title", "command", "record", "note", "measured", "columns", "digits", "rows",
    }  # fmt: skip
    if "record" in values:
        assert "command" not in values
        assert re.match(r"commit [0-9a-f]{7}: .", values["record"])
    else:
        kind = KINDS[path.stem]
        command = values["command"]
        assert command.startswith(kind.runs)
        assert f"python -m benchmarks.results {path.stem}" in command
        assert (values["title"], values.get("note", "")) == (kind.title, kind.note)
    assert any(f"results/{path.name}" in page.read_text("utf-8") for page in PAGES)


def test_experiments_are_programs_that_exist() -> None:
    from typer.main import get_command

    from haloae.cli.front import app

    told = " ".join(kind.runs for kind in KINDS.values())
    assert all(importlib.util.find_spec(name) for name in MODULE.findall(told))
    known = get_command(app).commands
    assert all(name in known for name in SUBCOMMAND.findall(told))


def test_a_benchmark_is_put_together_from_its_runs(runs: Path, tmp_path: Path) -> None:
    values = written(tmp_path, "benchmark", runs / "tiny-nearest", runs / "tiny-gaussian")
    assert "seeds 0" in values["measured"]
    assert f"torch {torch.__version__}, float32" in values["measured"]
    found = [dict(zip(values["columns"], row, strict=True)) for row in values["rows"]]
    variants = ("tiny, nearest", "tiny, gaussian")
    assert [(row["variant"], row["set"]) for row in found] == [
        (variant, name) for variant in variants for name in ("cloth", "felt", "**mean**")
    ]
    results = json.loads((runs / "results.json").read_text())
    for row, told in zip(found, results["summary"], strict=True):
        for column, metric in (
            ("image AUROC", "image_auroc"),
            ("AUPRO", "pixel_aupro"),
            ("defects detected", "detection_rate"),
            ("false alarms", "false_alarm_rate"),
        ):
            if row["set"] != "**mean**" or told[metric] is not None:
                assert row[column] == told[metric]
        assert row["pixel difference"] == results["pixel_difference"][told["category"]]
    # Only one set has masks: the mean is of that.
    assert found[2]["AUPRO"]["mean"] == found[0]["AUPRO"]["mean"]
    assert found[1]["AUPRO"] is None


def test_rates_are_of_the_threshold_as_it_is_fitted_now(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = runs.glob("tiny-nearest/cloth/*")
    run = shutil.copytree(before, tmp_path / "run")
    detector = Detector.load(run / "model.safetensors", device="cpu")
    scores = detector.calibration.scores
    now, then = (threshold_at(scores, 0.01, tail).value for tail in ("upper", "all"))
    assert now != then
    lines = [f"{label},{(now + then) / 2}" for label in ("good", "hole")]
    (run / "scores.csv").write_text("\n".join(["label,score", *lines]))
    # As an older version fitted and kept it.
    older = detector.calibration.model_copy(update={"tail": "all", "fitted_threshold": then})
    monkeypatch.setattr(detector, "calibration", older)
    detector.save(run / "model.safetensors")
    is_above = float(now < then)
    assert rates_now(run) == {"detection_rate": is_above, "false_alarm_rate": is_above}


def test_a_demo_has_a_row_for_each_category(runs: Path, tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    for name in ("cloth", "felt"):
        (metrics,) = runs.glob(f"tiny-nearest/{name}/*/metrics.json")
        (demo / name).mkdir(parents=True)
        shutil.copy(metrics, demo / name)
    values = written(tmp_path, "demo", demo)
    told = json.loads((demo / "cloth" / "metrics.json").read_text())
    assert [row[0] for row in values["rows"]] == ["cloth", "felt"]
    assert values["rows"][0][1] == told["image_auroc"]
    assert values["rows"][0][-1] == told["false_alarm_rate"]
    assert "weights random" in values["measured"]


def test_a_folder_s_rates_and_memory(
    sets: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model,) = runs.glob("tiny-nearest/cloth/*/model.safetensors")
    monkeypatch.setattr(folder, "SPEED_IMAGES", 4)
    monkeypatch.setattr(folder, "ROUNDS", 1)
    monkeypatch.setattr(folder, "COUNTS", {"predict": (2, 9)})
    monkeypatch.setattr(folder, "peak", lambda *given: 500.4 + given[3])
    out = tmp_path / "folder"
    monkeypatch.setattr(
        sys, "argv", ["folder", str(model), str(sets / "cloth"), "--out", str(out), "--threads=1"]
    )
    folder.main()
    ((name, alone, whole, share),) = written(tmp_path, "folder", out)["rows"]
    assert name.startswith("`custom`, 32², torch")
    assert share == pytest.approx(100 * whole / alone, abs=0.51)
    values = written(tmp_path, "memory", out)
    assert [row[1:] for row in values["rows"]] == [["`predict`", 2, 502], ["`predict`", 9, 509]]
    assert "1 thread;" in values["measured"]


def test_bad_images_are_set_beside_an_older_package(tmp_path: Path) -> None:
    whole = Path(haloae.__file__).parents[1]
    (tmp_path / "short.png").write_bytes(SHORT["png L of 1 rows"](np.random.default_rng(0)))
    read = bad_images.read(tmp_path / "short.png", whole)
    assert 0 < read["seconds"] < bad_images.MOST_SECONDS
    for name, found in (("old", {"said": "stopped", "seconds": 60, "mb": 2000.4}), ("new", read)):
        (tmp_path / name).mkdir()
        results = {"machine": machine(1), "files": {"png": {"bytes": 99, **found}}}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    values = written(tmp_path, "bad-images", tmp_path / "old", tmp_path / "new")
    ((name, size, seconds_before, memory_before, _, _, outcome),) = values["rows"]
    assert (name, size, seconds_before, memory_before) == ("png", 99, "> 60", 2000)
    assert outcome == "refused: damaged"


def test_what_is_counted_is_as_the_docs_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counted, "GROWING", ("`autoencoder`",))
    monkeypatch.setattr(counted, "SIDES", (256,))
    shown = {name: counted.SHOWN[name] for name in ("`autoencoder`", "`fast`")}
    monkeypatch.setattr(counted, "SHOWN", shown)
    for name in ("cost", "growth", "rates"):
        values = written(tmp_path, name)
        known = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text("utf-8"))
        assert values["rows"]
        assert all(row in known["rows"] for row in values["rows"])


def test_runs_that_do_not_fit_are_refused_and_nothing_is_written(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, folders, message in (
        ("curve", [tmp_path], "no run in it is finished"),
        ("folder", [runs], "a run holds no 'throughput'"),
        ("speed-presets", [tmp_path], "No such file"),
        ("demo", [tmp_path], "there is nothing of it"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([name, *map(str, folders)], tmp_path)
    for wrong in (["benchmark"], ["rates", "runs"], ["speed"]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong, tmp_path)
    assert "give their folders" in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()


def test_mutants_are_counted_by_package_and_by_what_they_change(tmp_path: Path) -> None:
    file = "src/haloae/{}/whole.py"
    places = [("data", False), ("data", True), ("detection", False), ("data", False)]
    for name, outcomes in (
        ("first", ("killed", "survived", "late", "untested")),
        ("again", ("killed", "survived", "late", "killed")),
    ):
        tried = [
            Mutant(file.format(part), 3, (1, 9), told, "a", "b", outcome)
            for (part, told), outcome in zip(places, outcomes, strict=True)
        ]
        population = [[file.format(part), told] for part, told in places] * 10
        (tmp_path / name).mkdir()
        told = {"machine": machine(1), "population": population, "mutants": map(asdict, tried)}
        (tmp_path / name / "results.json").write_text(json.dumps(told, default=list))
    values = written(tmp_path, "mutants", tmp_path / "first", tmp_path / "again")
    rows = {row[0]: row[1:] for row in values["rows"]}
    assert rows["`data`"] == [20, 2, 1, "50 (9–91)", 2, 2, "100 (34–100)"]
    assert rows["`data`, words of errors and of the log"][:3] == [10, 1, 0]
    assert rows["`detection`, words of errors and of the log"] == [0, 0, 0, None, 0, 0, None]
    assert rows["all"][:3] == [40, 4, 2]
