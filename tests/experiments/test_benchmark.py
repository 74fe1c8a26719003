"""The paper's experiment: real runs of a tiny network over real folders."""

import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import texture
from haloae.cli import main
from haloae.config import Config
from haloae.errors import ConfigError
from haloae.experiments.benchmark import (
    ABLATIONS,
    MVTEC_AD,
    run_benchmark,
    summarise,
    tables,
    variants,
)
from haloae.outputs.report.words import METRICS
from haloae.presets import PRESETS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two whole categories, one whose images are too few, and a folder that is none."""
    root = tmp_path_factory.mktemp("sets")
    for name, first, good in (("cloth", 0, 12), ("felt", 50, 12), ("scrap", 100, 2)):
        for number in range(good):
            save(root / name / f"train/good/{number}.png", texture(first + number))
        for number in range(3):
            save(root / name / f"test/good/{number}.png", texture(first + 20 + number))
            pixels, mask = texture(first + 30 + number), np.zeros((40, 40), np.uint8)
            pixels[8:24, 8:24], mask[8:24, 8:24] = (250, 10, 10), 255
            save(root / name / f"test/hole/{number}.png", pixels)
            save(root / name / f"ground_truth/hole/{number}_mask.png", mask)
    (root / "notes").mkdir()
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_every_run_is_measured_and_a_failing_category_does_not_stop_the_rest(
    root: Path, tmp_path: Path, tiny: Config
) -> None:
    told = []
    results = run_benchmark(root, tmp_path, {"tiny": tiny}, seeds=(0, 1), report=told.append)
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert told == results["runs"]
    runs = [(run["category"], run["seed"], "error" in run) for run in results["runs"]]
    assert runs == [
        ("cloth", 0, False), ("cloth", 1, False), ("felt", 0, False), ("felt", 1, False),
        ("scrap", 0, True), ("scrap", 1, True),
    ]  # fmt: skip
    for run in results["runs"][:4]:
        folder = tmp_path / run["folder"]
        assert json.loads((folder / "metrics.json").read_text()) == run["metrics"]
        assert (folder / "model.safetensors").exists()
        assert not (folder / "checkpoint.pt").exists()
    assert "2 good images" in results["runs"][4]["error"]
    row = next(row for row in results["summary"] if row["category"] == "cloth")
    values = [run["metrics"]["image_auroc"] for run in results["runs"][:2]]
    assert row["image_auroc"] == {
        "mean": pytest.approx(statistics.fmean(values)),
        "std": pytest.approx(statistics.stdev(values)),
        "n": 2,
    }
    mean = next(row for row in results["summary"] if row["category"] == "mean")
    assert mean["image_auroc"] is None, "a category failed, so there is no mean of all"
    page = (tmp_path / "report.html").read_text()
    assert 'href="tiny/cloth/seed-1/report.html"' in page
    assert (tmp_path / "tiny/cloth/seed-1/report.html").exists()
    text = (tmp_path / "results.md").read_text()
    assert "| pixel difference | " in text
    assert "- tiny, scrap, seed 1: " in text


def test_resuming_keeps_what_is_finished(root: Path, tmp_path: Path, tiny: Config) -> None:
    first = run_benchmark(root, tmp_path, {"tiny": tiny}, categories=["cloth"])
    model = tmp_path / "tiny/cloth/seed-0/model.safetensors"
    before = model.stat().st_mtime_ns
    again = run_benchmark(root, tmp_path, {"tiny": tiny}, categories=["cloth", "felt"])
    assert model.stat().st_mtime_ns == before
    assert again["runs"][0] == first["runs"][0]
    assert [run["category"] for run in again["runs"]] == ["cloth", "felt"]
    changed = tiny.replace(training={"steps": 7})
    other = run_benchmark(root, tmp_path, {"tiny": changed}, categories=["cloth"])
    assert model.stat().st_mtime_ns != before, "another configuration is another run"
    assert other["runs"][0]["seconds"] != first["runs"][0]["seconds"]


def test_changed_images_are_another_run(root: Path, tmp_path: Path, tiny: Config) -> None:
    mine = tmp_path / "sets"
    shutil.copytree(root / "cloth", mine / "cloth")
    run_benchmark(mine, tmp_path / "out", {"tiny": tiny})
    (mine / "cloth/test/hole/0.png").unlink()
    again = run_benchmark(mine, tmp_path / "out", {"tiny": tiny})
    assert again["runs"][0]["metrics"]["defective"] == 2


def test_a_run_that_was_stopped_goes_on(
    root: Path, tmp_path: Path, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_benchmark(root, tmp_path / "a", {"tiny": tiny}, categories=["cloth"])

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("haloae.experiments.benchmark.evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            run_benchmark(root, tmp_path / "b", {"tiny": tiny}, categories=["cloth"])
    run = tmp_path / "b/tiny/cloth/seed-0"
    assert (run / "checkpoint.pt").exists()
    losses = (run / "losses.csv").stat().st_mtime_ns
    resumed = run_benchmark(root, tmp_path / "b", {"tiny": tiny}, categories=["cloth"])
    assert len((run / "losses.csv").read_text().splitlines()) == 1 + tiny.training.steps
    assert (run / "losses.csv").stat().st_mtime_ns >= losses
    keys = ("image_auroc", "pixel_auroc", "threshold")
    assert [resumed["runs"][0]["metrics"][key] for key in keys] == [
        whole["runs"][0]["metrics"][key] for key in keys
    ]


def test_variants_change_what_they_say() -> None:
    found = variants(["paper", "autoencoder"], list(ABLATIONS))
    paper = PRESETS["paper"]
    assert found["paper"] == paper
    assert not found["paper, no_ssl"].network.classifier
    assert found["paper, no_image"].network.image_decoder is None
    assert found["paper, fixed_weights"].loss.fixed_weights == (1, 1, 1)
    for mode in ("published", "window_mean", "global", "none"):
        assert found[f"paper, attention_{mode}"].network.attention.mode == mode
    assert "paper, attention_halo" not in found, "it has that already"
    for same in ("no_image", "fixed_weights", "attention_none"):
        assert f"autoencoder, {same}" not in found
    assert not found["autoencoder, no_ssl"].loss.clean_targets
    assert found["autoencoder, attention_halo"].network.attention.mode == "halo"
    assert variants(["fast"], backbone="random")["fast"].backbone == "random"
    changed = variants(["paper"], ["no_ssl"], settings={"training": {"steps": 7}})
    assert {config.training.steps for config in changed.values()} == {7}
    assert changed["paper"].preset == "paper"
    assert not changed["paper, no_ssl"].network.classifier
    with pytest.raises(ConfigError, match="no such setting"):
        variants(["fast"], settings={"no_such": 1})
    with pytest.raises(ConfigError, match="no ablation is called 'no_such'"):
        variants(["fast"], ["no_such"])


def fake_run(category: str, seed: int, value: float) -> dict[str, object]:
    metrics = dict.fromkeys(METRICS, value)
    metrics |= {"pixel_difference_image_auroc": 0.7, "backbone": "bundled"}
    return {
        "variant": "fast", "category": category, "seed": seed, "seconds": 1.0,
        "folder": f"fast/{category}/seed-{seed}", "metrics": metrics,
    }  # fmt: skip


def test_means_are_over_categories_first_and_the_paper_stands_beside_mvtec_ad() -> None:
    names = sorted(MVTEC_AD)
    runs = [fake_run(name, seed, 0.8 + 0.1 * seed) for name in names for seed in (0, 1)]
    results = summarise("mvtec", runs)
    mean = results["summary"][-1]
    assert mean["category"] == "mean"
    assert mean["image_auroc"]["mean"] == pytest.approx(0.85)
    assert mean["image_auroc"]["std"] == pytest.approx(statistics.stdev([0.8, 0.9]))
    assert results["paper"] == {"image_auroc": 0.914, "pixel_auroc": 0.912}
    assert results["pixel_difference"]["mean"] == pytest.approx(0.7)
    text = tables(results)
    assert "| the paper | " in text
    assert text.count("0.914") == 1
    assert summarise("mvtec", runs[:-2])["paper"] is None, "a part of the set is not the set"


def test_the_command(
    root: Path, tmp_path: Path, tiny: Config, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(PRESETS, "fast", tiny)
    command = ["benchmark", str(root), "--presets", "fast", "--out", str(tmp_path / "out")]
    assert main([*command, "--categories", "cloth"]) == 0
    out = capsys.readouterr().out
    assert "fast, cloth, seed 0: image AUROC " in out
    assert "| pixel difference | " in out
    assert main([*command, "--categories", "cloth"]) == 2
    assert "give --resume to go on" in capsys.readouterr().err
    assert main([*command, "--resume", "--categories", "cloth,scrap"]) == 1
    assert "failed: fast, scrap, seed 0: " in capsys.readouterr().err
    assert main([*command, "--resume", "--categories", "scrap"]) == 2
    assert "every run failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--seeds", "0,a", "no whole numbers"),
        ("--seeds", ",", "names nothing"),
        ("--seeds", "-1", "no whole numbers"),
        ("--presets", "slow", "no preset is called 'slow'"),
        ("--ablations", "no_such", "no ablation is called"),
        ("--categories", "silk", "holds no category 'silk'"),
    ],
)
def test_wrong_options(
    root: Path, tmp_path: Path, option: str, value: str, part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = ["benchmark", str(root), "--out", str(tmp_path / "out"), f"{option}={value}"]
    assert main(command) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing is made before the options are known good"
