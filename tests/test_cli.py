"""The command line, as someone who types it meets it: exit codes, files, sentences."""

import csv
import json
import logging
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image as PILImage
from safetensors.numpy import save_file

from faults.disks import largest_file
from haloae.cli import main

TINY = """\
preset = "autoencoder"
image_size = 32
[network]
reduced_channels = 8
head_channels = 8
encoder = [{channels = 8}]
decoder = [{}]
[training]
steps = 4
batch_size = 2
"""
COMMON = {"--help", "--quiet"}
RUNNING = COMMON | {"--device", "--threads", "--strict", "--limit", "--overwrite", "--out"}
OPTIONS = {
    "demo": RUNNING - {"--strict", "--limit"} | {"--set"},
    "train": RUNNING
    | {
        "--preset",
        "--config",
        "--set",
        "--backbone",
        "--view",
        "--place",
        "--image-size",
        "--seed",
        "--max-steps",
    }
    | {"--max-minutes", "--false-alarm-rate", "--resume"}
    | {"--roi", "--ignore", "--regions"},
    "calibrate": RUNNING | {"--false-alarm-rate", "--roi", "--ignore"},
    "predict": RUNNING | {"--maps", "--overlays", "--precision", "--roi", "--ignore"},
    "slide": RUNNING - {"--strict", "--limit"} | {"--everything", "--resume", "--precision"},
    "export": RUNNING - {"--device", "--strict"} | {"--format", "--good", "--test", "--input"},
    "evaluate": RUNNING | {"--precision", "--roi", "--ignore"},
    "benchmark": RUNNING - {"--strict", "--overwrite"}
    | {"--categories", "--presets", "--set", "--ablations", "--heads", "--seeds", "--backbone"}
    | {"--resume"},
    "info": COMMON | {"--json", "--cost", "--image-size"},
    "serve": COMMON
    | {"--host", "--port", "--data", "--token-file", "--config", "--limit"}
    | {"--certificate", "--key"},
}
HEAVY = ("torch", "numpy", "PIL", "pydantic", "scipy", "safetensors", "tqdm", "rich")
PREDICTION_KEYS = ["path", "score", "p_value", "is_anomalous", "extrapolated", "verdict"]
PREDICTION_KEYS += ["unusable", "unlike", "regions", "map", "overlay", "error"]
IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1max")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro", "pixel_aupro_005")
OTHER_METRICS = ("false_alarm_rate", "detection_rate", "ms_per_image", "protocol", "reasons")


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every test in its own folder, without ImageNet weights, and the logger as it was after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HALOAE_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-weights"))
    logger = logging.getLogger("haloae")
    before = logger.handlers, logger.propagate
    yield
    logger.handlers, logger.propagate = before


@pytest.fixture
def haloae(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; whatever happens, no traceback and no internal error."""

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "internal error" not in err
        return Result(code, out, err)

    return run


def refused(result: Result, *parts: str) -> None:
    """Exit code 2 and one line that holds every part."""
    assert result.code == 2, result
    assert result.out == ""
    assert result.err.startswith("haloae: ")
    assert result.err.count("\n") == 1
    assert result.err.rstrip().endswith((".", "?"))
    for part in parts:
        assert part in result.err


def write_image(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(pixels).save(path)
    return path


def good_pixels(rng: np.random.Generator) -> np.ndarray:
    columns = np.sin(np.arange(40) / 3)[None, :, None]
    noise = rng.normal(0, 5, (40, 40, 3))
    return np.clip(120 + 40 * columns + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets") / "bottle"
    rng = np.random.default_rng(0)
    for i in range(12):
        write_image(root / f"train/good/{i:03}.png", good_pixels(rng))
    for i in range(3):
        write_image(root / f"test/good/{i:03}.png", good_pixels(rng))
        pixels, mask = good_pixels(rng), np.zeros((40, 40), np.uint8)
        pixels[10:26, 8:24], mask[10:26, 8:24] = (250, 10, 10), 255
        write_image(root / f"test/hole/{i:03}.png", pixels)
        write_image(root / f"ground_truth/hole/{i:03}_mask.png", mask)
    return root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def fit(tiny: Path) -> tuple[str, ...]:
    return ("--config", str(tiny), "--backbone", "random", "--device", "cpu")


@pytest.fixture(scope="session")
def run_folder(
    category: Path, fit: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(category), "--out", str(out), *fit, "--false-alarm-rate", "0.1"]) == 0
    return out


@pytest.fixture(scope="session")
def model(run_folder: Path) -> Path:
    return run_folder / "model.safetensors"


@pytest.fixture
def own_category(category: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(category, tmp_path / "bottle"))


def predictions(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def steps_in(log: Path) -> list[int]:
    with log.open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def metrics_of(out: Path) -> dict[str, object]:
    return dict(json.loads((out / "metrics.json").read_text()))


# What there is to type


def test_every_command_is_pinned(haloae: Run) -> None:
    text = haloae("--help").out
    assert re.findall(r"^ {2}(\w+)(?:  |$)", text, re.MULTILINE) == list(OPTIONS)
    assert set(re.findall(r"(?<!\w)--[a-z-]+", text)) == {"--help", "--version"}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_is_pinned(haloae: Run, command: str) -> None:
    result = haloae(command, "--help")
    assert result.code == 0
    found = re.findall(r"^ {2}(?:-h, )?(--[a-z-]+)", result.out, re.MULTILINE)
    assert sorted(found) == sorted(OPTIONS[command])


def test_limits_of_an_image_are_set_by_name(haloae: Run, category: Path) -> None:
    train = ("train", category, "--out", "run")
    refused(haloae(*train, "--limit", "pixels"), "--limit pixels: give a limit and its number")
    refused(haloae(*train, "--limit", "pixel=10"), "give pixels, bytes, seconds or memory")
    limits = ("--limit", "pixels=1599", "--limit", "seconds=20")
    refused(haloae(*train, *limits), "0 good images are too few (12 more cannot be read)")


def test_choices_are_pinned(haloae: Run) -> None:
    assert "--device <auto|cpu|cuda>" in haloae("train", "--help").out
    assert "--maps <none|png|tiff>" in haloae("predict", "--help").out
    assert "--overlays <anomalous|all|none>" in haloae("predict", "--help").out
    assert "--precision <float32|bfloat16>" in haloae("predict", "--help").out
    assert "--input <float32|uint8>" in haloae("export", "--help").out


def test_help_names_every_preset(haloae: Run) -> None:
    from haloae.presets import PRESETS

    text = " ".join(haloae("train", "--help").out.split())
    (named,) = re.findall(r"--preset NAME (.*?) \(default: default\)", text)
    assert re.split(r", | or ", named) == list(PRESETS)


def test_defaults_are_said(haloae: Run) -> None:
    for command, default in {
        "demo": "haloae-demo", "train": "auto", "predict": "png", "export": "onnx",
        "evaluate": "float32", "benchmark": "default",
    }.items():  # fmt: skip
        # Where a line is full, the text goes on below.
        assert f"[default:{default}]" in "".join(haloae(command, "--help").out.split())


def test_version_is_the_package_s(haloae: Run) -> None:
    from haloae._version import __version__

    assert haloae("--version") == Result(0, f"haloae {__version__}\n", "")


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
import haloae
assert not [name for name in {HEAVY} if name in sys.modules], "import haloae"
from haloae.cli import main
helps = [[command, "--help"] for command in {list(OPTIONS)}]
for arguments in [["--help"], ["--version"], [], ["trian"], *helps]:
    code = main(arguments)
    assert code == (2 if arguments in ([], ["trian"]) else 0), arguments
    assert not [name for name in {HEAVY} if name in sys.modules], arguments
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        [str(Path(sys.executable).with_name("haloae"))],
        [sys.executable, "-m", "haloae"],
        [sys.executable, "-m", "haloae.cli"],
    ],
)
def test_every_way_to_start_it_answers(command: list[str]) -> None:
    done = subprocess.run([*command, "trian"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("haloae: No such command 'trian'.")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "Missing command"),
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["info"], "MODEL"),
        (["predict", "m"], "IMAGE_OR_FOLDER"),
        (["predict", "m", "x"], "--out"),
        (["info", "m", "x"], "unexpected"),
        (["train", "x"], "--out"),
        (["train", "x", "--out", "y", "--max-steps", "0"], "not positive"),
        (["train", "x", "--out", "y", "--max-minutes", "nan"], "not positive"),
        (["train", "x", "--out", "y", "--image-size", "big"], "--image-size"),
        (["train", "x", "--out", "y", "--device", "tpu"], "--device"),
        (["train", "x", "--out", "y", "--no-such-option"], "--no-such-option"),
        (["predict", "m", "x", "--out", "y", "--maps", "gif"], "--maps"),
        (["predict", "m", "x", "--out", "y", "--overlays", "some"], "--overlays"),
    ],
)
def test_bad_usage_exits_with_2(haloae: Run, arguments: list[str], part: str) -> None:
    refused(haloae(*arguments), part, "--help`")


# train and info


def test_train_leaves_model_checkpoint_and_losses(run_folder: Path) -> None:
    assert {path.name for path in run_folder.iterdir()} == {
        "model.safetensors",
        "checkpoint.pt",
        "losses.csv",
    }
    assert steps_in(run_folder / "losses.csv") == [1, 2, 3, 4]


UNTRAINED = ("--preset", "gaussian", "--set", "network.trunk=resnet18", "--image-size", "32")
UNTRAINED += ("--set", "network.reduced_channels=8", "--backbone", "random", "--device", "cpu")


@pytest.mark.parametrize("limit", [(), ("--max-steps", "1"), ("--max-minutes", "0.001")])
def test_a_preset_that_trains_nothing_leaves_a_model_alone(
    haloae: Run, category: Path, limit: tuple[str, ...]
) -> None:
    """Limits of training hold by themselves."""
    result = haloae("train", category, "--out", "run", *UNTRAINED, *limit)
    assert (result.code, result.err) == (0, "")
    assert "fitted to 12 good images" in result.out
    assert "--resume" not in result.out
    assert [path.name for path in Path("run").iterdir()] == ["model.safetensors"]
    said = haloae("info", "run/model.safetensors").out
    assert "bottle: 12 images, each left out in turn, 0 skipped; nothing trained" in said


def test_there_is_nothing_to_resume_where_nothing_is_trained(haloae: Run, category: Path) -> None:
    train = ("train", category, "--out", "run", *UNTRAINED)
    assert haloae(*train, "--resume").code == 0, "an empty folder is where a run starts"
    model = Path("run/model.safetensors").read_bytes()
    refused(haloae(*train, "--resume"), "run", "no checkpoint to resume", "--overwrite")
    assert haloae(*train, "--overwrite").code == 0
    assert Path("run/model.safetensors").read_bytes() == model


def test_what_trains_nothing_replaces_a_run_that_was_trained(
    haloae: Run, category: Path, run_folder: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    resume = ("train", category, "--out", run, "--resume", "--set", "network.autoencoder=false")
    refused(haloae(*resume, "--set", "detection.head=gaussian"), "other settings")
    assert haloae("train", category, "--out", run, *UNTRAINED, "--overwrite").code == 0
    assert [path.name for path in run.iterdir()] == ["model.safetensors"]


def test_other_good_images_only_calibrate_what_looks_at_features(
    haloae: Run, category: Path
) -> None:
    assert haloae("train", category, "--out", "run", *UNTRAINED).code == 0
    model = "run/model.safetensors"
    shutil.copytree(category / "test/good", "good")
    for i in range(3):
        shutil.copy(category / f"train/good/{i:03}.png", f"good/more-{i}.png")
    assert haloae("calibrate", model, "good", "--out", "m.safetensors").code == 0
    assert (
        "12 images, 6 held out, 0 skipped; nothing trained" in haloae("info", "m.safetensors").out
    )
    image = category / "test/hole/000.png"
    scores = []
    for name in (model, "m.safetensors"):
        assert haloae("predict", name, image, "--out", name.split("/")[0] + "-p").code == 0
        scores += [line["score"] for line in predictions(Path(name.split("/")[0] + "-p"))]
    assert scores[0] == scores[1]


def test_evaluate_and_export_take_what_was_not_trained(haloae: Run, category: Path) -> None:
    assert haloae("train", category, "--out", "run", *UNTRAINED).code == 0
    model = "run/model.safetensors"
    assert haloae("evaluate", model, category, "--out", "e").code == 0
    assert "nothing trained" in Path("e/report.html").read_text()
    assert haloae("export", model, "--out", "m.onnx").code == 0


def test_info_says_what_the_model_is(haloae: Run, model: Path) -> None:
    result = haloae("info", model)
    assert result.code == 0
    assert result.err == ""
    assert "bottle: 8 images, 4 held out, 0 skipped; 4 of 4 steps" in result.out
    assert "false-alarm rate of 0.1" in result.out
    assert "fitted to 12 good images, not aligned" in result.out


def test_info_json_is_for_scripts(haloae: Run, model: Path) -> None:
    result = haloae("info", model, "--json")
    values = json.loads(result.out)
    assert {"config", "calibration", "provenance", "format_version", "package_version"} <= set(
        values
    )
    assert values["config"]["image_size"] == 32
    assert values["config"]["network"]["encoder"][0]["channels"] == 8
    assert values["extrapolated"] is True
    assert values["images_needed"] == 9
    assert values["threshold"] > 0
    assert values["pixel_threshold"] > 0
    assert values["parameters"] > 0


def test_info_cost_is_a_table_of_blocks(haloae: Run, category: Path) -> None:
    Path("c.toml").write_text(TINY.replace("[training]", "classifier = true\n[training]"))
    train = ("train", category, "--config", "c.toml", "--backbone", "random", "--device", "cpu")
    assert haloae(*train, "--out", "run", "--max-steps", "1").code == 0
    model = "run/model.safetensors"
    plain = haloae("info", model).out
    result = haloae("info", model, "--cost")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(plain)
    title, _, _, head, *rows = result.out.removeprefix(plain).splitlines()
    assert "32² pixels" in title
    assert head.split() == ["MMAC", "parameters", "MB", "MB", "MMAC", "MB"]
    names = [row[:16].strip() for row in rows]
    assert names == [
        *("trunk layer1", "trunk layer2", "trunk layer3", "features", "head"),
        *("encoder 1", "decoder 1", "classifier", "detector head", "total"),
    ]
    needless = [name for name, row in zip(names, rows, strict=True) if "not needed" in row]
    assert needless == ["classifier"]


def test_info_cost_counts_the_head_as_it_is_in_the_file(haloae: Run, category: Path) -> None:
    assert haloae("train", category, "--out", "run", *UNTRAINED).code == 0
    cost = json.loads(haloae("info", "run/model.safetensors", "--json", "--cost").out)["cost"]
    head = cost["in_use"]["blocks"][-1]
    assert head["name"] == "detector head"
    # 4×4 places, 8 channels: a root of each covariance, whole and in float32.
    assert head["multiply_adds"] == 16 * 8 * 8
    assert head["weight_bytes"] == 4 * (16 * 8 + 16 * 8 * 8)


def test_info_cost_in_json_and_at_another_size(haloae: Run, model: Path) -> None:
    def cost(*arguments: str) -> dict[str, Any]:
        return dict(json.loads(haloae("info", model, "--json", *arguments).out)["cost"])

    own, large = cost("--cost"), cost("--cost", "--image-size", "64")
    assert (own["image_size"], large["image_size"]) == (32, 64)
    for counted in (own, own["in_use"], large, large["in_use"]):
        for key in ("multiply_adds", "parameters", "weight_bytes", "activation_bytes"):
            assert counted["total"][key] == sum(block[key] for block in counted["blocks"])
    assert large["in_use"]["total"]["activation_bytes"] < large["total"]["activation_bytes"]
    assert large["total"]["parameters"] == own["total"]["parameters"]
    assert "cost" not in json.loads(haloae("info", model, "--json").out)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--cost", "--image-size", "130"], ["130", "divisible by 4"]),
        (["--cost", "--image-size", "16"], ["image_size", "32", "16"]),
        (["--cost", "--image-size", "0"], ["image_size", "32", "0"]),
        (["--cost", "--image-size", "8192"], ["image_size", "4096", "8192"]),
        (["--image-size", "64"], ["--image-size", "--cost"]),
    ],
)
def test_info_refuses_a_bad_size(
    haloae: Run, model: Path, arguments: list[str], parts: list[str]
) -> None:
    refused(haloae("info", model, *arguments), *parts)


def test_info_needs_torch_for_the_cost_alone(model: Path) -> None:
    code = """
import sys
sys.modules["torch"] = None
from haloae.cli import main
assert main(["info", sys.argv[1]]) == 0
print("--cost", flush=True)
sys.exit(main(["info", sys.argv[1], "--cost"]))
"""
    command = [sys.executable, "-c", code, model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout.endswith("--cost\n"), "without torch the cost prints nothing"
    assert done.stderr.startswith("haloae: torch is not installed")


def test_a_module_of_ours_that_is_missing_is_no_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.setitem(sys.modules, "haloae.detection.model_file", None)
    assert main(["info", str(model)]) == 2
    assert "internal error (ModuleNotFoundError: " in (said := capsys.readouterr().err)
    assert "pip install" not in said
    monkeypatch.setenv("HALOAE_DEBUG", "1")
    with pytest.raises(ModuleNotFoundError):
        main(["info", str(model)])


def test_packages_of_every_extra_are_known() -> None:
    from haloae.errors import EXTRAS

    imported = {"scikit-learn": "sklearn", "openslide-python": "openslide"}
    imported |= {"openslide-bin": "openslide", "pyvips-binary": "pyvips"}
    imported |= {"opencv-python-headless": "cv2", "paho-mqtt": "paho"}
    imported |= {"prometheus-client": "prometheus_client"}
    found: dict[str, set[str]] = {}
    for requirement in requires("haloae") or ():
        name, _, extra = re.match(r"([\w-]+)(.*extra == '(\w+)')?", requirement).groups()
        if extra and name != "haloae":
            found.setdefault(imported.get(name, name), set()).add(extra)
    assert EXTRAS.keys() - found.keys() == {"markupsafe"}, "comes with jinja2"
    weights = {name for name in found if name.endswith("-pytorch-model")}
    unasked = {name for name in found if name.startswith("opentelemetry")}  # used where it is
    assert found.keys() - weights - unasked <= EXTRAS.keys()
    assert all(extra in found.get(name, {extra}) for name, extra in EXTRAS.items())


def test_quiet_prints_nothing(
    haloae: Run, category: Path, fit: tuple[str, ...], model: Path
) -> None:
    assert haloae("train", category, "--out", "run", *fit, "--quiet") == Result(0, "", "")
    assert haloae("predict", model, category / "test", "--out", "p", "--quiet") == Result(0, "", "")
    assert haloae("evaluate", model, category, "--out", "e", "--quiet") == Result(0, "", "")
    out = ("--out", "m.safetensors", "--quiet")
    assert haloae("calibrate", model, "--false-alarm-rate", "0.2", *out) == Result(0, "", "")


def test_no_bar_where_nobody_watches(
    haloae: Run, category: Path, fit: tuple[str, ...], model: Path
) -> None:
    assert haloae("train", category, "--out", "run", *fit).err == ""
    assert haloae("predict", model, category / "test", "--out", "p").err == ""
    assert haloae("evaluate", model, category, "--out", "e").err == ""


def test_train_skips_an_image_that_cannot_be_read(
    haloae: Run, own_category: Path, fit: tuple[str, ...]
) -> None:
    (own_category / "train/good/005.png").write_bytes(b"")
    refused(haloae("train", own_category, "--out", "strict", *fit, "--strict"), "005.png", "empty")
    result = haloae("train", own_category, "--out", "run", *fit)
    assert result.code == 1
    assert "skipped: " in result.err
    assert "005.png" in result.err
    assert "7 images, 4 held out, 1 skipped" in haloae("info", "run/model.safetensors").out


def test_train_refuses_a_folder_that_holds_something(
    haloae: Run, category: Path, fit: tuple[str, ...]
) -> None:
    mine = Path("run/mine.txt")
    mine.parent.mkdir()
    mine.write_text("mine")
    refused(haloae("train", category, "--out", "run", *fit), "run", "--resume", "--overwrite")
    assert haloae("train", category, "--out", "run", *fit, "--overwrite").code == 0
    assert mine.read_text() == "mine"


def test_resume_goes_on_where_it_stopped(
    haloae: Run, category: Path, fit: tuple[str, ...], run_folder: Path
) -> None:
    stopped = haloae("train", category, "--out", "run", *fit, "--max-steps", "2")
    assert stopped.code == 0
    assert "2 of 4 steps" in stopped.out
    assert "--resume" in stopped.out
    # What follows training may change; what comes before may not.
    resumed = haloae("train", category, "--out", "run", "--resume", "--false-alarm-rate", "0.1")
    assert resumed.code == 0
    assert "4 of 4 steps" in resumed.out
    assert (
        Path("run/model.safetensors").read_bytes()
        == (run_folder / "model.safetensors").read_bytes()
    )
    assert Path("run/losses.csv").read_text() == (run_folder / "losses.csv").read_text()


def test_a_resumed_log_has_one_kind_of_line_ending(
    haloae: Run, category: Path, fit: tuple[str, ...]
) -> None:
    assert haloae("train", category, "--out", "run", *fit, "--max-steps", "2").code == 0
    assert haloae("train", category, "--out", "run", "--resume").code == 0
    endings = {
        line.endswith(b"\r") for line in Path("run/losses.csv").read_bytes().split(b"\n")[:-1]
    }
    assert len(endings) == 1


def test_resume_without_a_checkpoint_starts(
    haloae: Run, category: Path, fit: tuple[str, ...]
) -> None:
    assert haloae("train", category, "--out", "run", *fit, "--resume").code == 0
    assert Path("run/model.safetensors").exists()


def test_resume_refuses_another_run(
    haloae: Run, own_category: Path, run_folder: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    resume = ("train", own_category, "--out", run, "--resume")
    refused(haloae(*resume, "--preset", "fast"), "'autoencoder'", "'fast'")
    refused(haloae(*resume, "--seed", "7"), "checkpoint.pt", "other settings")
    refused(haloae(*resume, "--overwrite"), "--resume", "--overwrite")
    (own_category / "train/good/011.png").unlink()
    refused(haloae(*resume), "checkpoint.pt", "other images")
    (run / "checkpoint.pt").write_bytes(b"PK\x03\x04")
    refused(haloae(*resume), "checkpoint.pt", "damaged")


def test_a_loss_that_is_not_finite_is_named(haloae: Run, category: Path, tiny: Path) -> None:
    Path("hot.toml").write_text(TINY + "learning_rate = 1e30\n")
    result = haloae(
        "train", category, "--out", "run", "--config", "hot.toml", "--backbone", "random"
    )
    refused(result, "loss is nan at step 1", "learning_rate")


def test_a_network_that_broke_at_its_last_step_is_named(haloae: Run, category: Path) -> None:
    Path("hot.toml").write_text(TINY.replace("steps = 4", "steps = 1\nlearning_rate = 1e30"))
    refused(
        haloae("train", category, "--out", "run", "--config", "hot.toml", "--backbone", "random")
    )


def test_train_on_a_folder_whose_name_is_not_utf8(
    haloae: Run, category: Path, fit: tuple[str, ...]
) -> None:
    folder = Path(os.fsdecode(b"parts\xff"))
    shutil.copytree(category / "train/good", folder)
    assert haloae("train", folder, "--out", "run", *fit).code == 0


# Settings that are wrong


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sed = 1", ["sed", "no such setting"]),
        ("[network]\nencoder = [{channels = 8, kernels = 3}]", ["network.encoder.0.kernels"]),
        ("seed = 'x'", ["seed", "integer", "'x'"]),
        ("[training]\nlearning_rate = nan", ["training.learning_rate", "finite"]),
        ("[network.attention]\nmode = 'x'", ["network.attention.mode", "'halo'"]),
        ("[network]\ntrunk = 'x'", ["network.trunk", "'efficientnet_lite0'"]),
        ("network = 3", ["network", "3"]),
        ("image_size = 33", ["image_size", "33", "8"]),
        ("image_size = 40", ["image_size 40", "halo", "divisible by 16"]),
        ("preset = 'autoencoder'\nimage_size = 33", ["image_size", "33", "4"]),
        ("[network]\nreduced_channels = 4000", ["too much", "network.reduced_channels"]),
        ("image_size = 16", ["image_size", "32", "16"]),
        ("preset = 'best'", ["'best'", "paper, autoencoder, default, fast"]),
        ("preset = 3", ["3", "paper, autoencoder, default, fast"]),
        ("preset = ['fast']", ["paper, autoencoder, default, fast"]),
        ("image_size = ", ["wrong.toml", "TOML"]),
        ("\x00", ["wrong.toml", "TOML"]),
        ("[detection]\nfalse_alarm_rate = 1.0", ["detection.false_alarm_rate", "1.0"]),
    ],
)
def test_wrong_settings_are_named(haloae: Run, category: Path, text: str, parts: list[str]) -> None:
    Path("wrong.toml").write_text(text)
    result = haloae("train", category, "--out", "run", "--config", "wrong.toml")
    refused(result, *parts)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("seed", ["--set seed", "network.attention.mode=halo"]),
        ("network..mode=halo", ["--set network..mode=halo"]),
        ("=halo", ["--set =halo"]),
        ("preset=fast", ["--set preset=fast", "of a preset"]),
        ("sed=1", ["sed", "no such setting"]),
        ("seed=x", ["seed", "integer", "'x'"]),
        ("seed=1\nimage_size=64", ["seed", "integer"]),
        ("network.attention.mode=x", ["network.attention.mode", "'halo'", "'x'"]),
        ("training.learning_rate=nan", ["training.learning_rate", "finite"]),
        ("network.encoder=[{channels = 8, kernels = 3}]", ["network.encoder.0.kernels"]),
        ("network=3", ["network", "3"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "demo", "benchmark"])
def test_wrong_assignments_are_named(
    haloae: Run, category: Path, command: str, assignment: str, parts: list[str]
) -> None:
    data = {"train": [category], "demo": [], "benchmark": [category.parent]}[command]
    refused(haloae(command, *data, "--out", "run", "--set", assignment), *parts)
    assert not Path("run").exists()


def test_settings_go_over_the_file_and_flags_over_settings(
    haloae: Run, category: Path, fit: tuple[str, ...]
) -> None:
    settings = ("seed=1", "training.steps=1", "network.encoder=[{channels = 4}]")
    settings += ("detection.normalisation=none", "training.steps=2")
    options = [part for one in settings for part in ("--set", one)]
    assert haloae("train", category, "--out", "run", *fit, *options, "--seed", "3").code == 0
    config = json.loads(haloae("info", "run/model.safetensors", "--json").out)["config"]
    assert config["preset"] == "autoencoder"
    assert config["image_size"] == 32, "of the file"
    assert config["training"]["steps"] == 2, "the later one"
    assert config["training"]["batch_size"] == 2
    assert config["network"]["encoder"][0]["channels"] == 4
    assert config["detection"]["normalisation"] == "none"
    assert config["seed"] == 3, "of the flag"


def test_wrong_flags_are_named(haloae: Run, category: Path, tiny: Path, model: Path) -> None:
    train = ("train", category, "--out", "run", "--config", tiny)
    refused(haloae("train", category, "--out", "run", "--config", "none.toml"), "none.toml")
    refused(haloae(*train, "--preset", "best"), "'best'", "paper, autoencoder, default")
    refused(haloae(*train, "--image-size", "34"), "image_size 34")
    refused(haloae(*train, "--seed", "-1"), "seed", "-1")
    refused(haloae(*train, "--false-alarm-rate", "0"), "false_alarm_rate", "0")
    refused(haloae("calibrate", model, "--false-alarm-rate", "nan"), "false_alarm_rate", "nan")
    refused(haloae(*train, "--backbone", "none.pth"), "none.pth", "--backbone")
    refused(haloae(*train, "--backbone", tiny), "tiny.toml", "weights")


def test_imagenet_weights_are_not_fetched_offline(haloae: Run, category: Path, tiny: Path) -> None:
    result = haloae("train", category, "--out", "r", "--config", tiny, "--backbone", "imagenet")
    refused(result, "HALOAE_OFFLINE=1", "no-weights", "--backbone bundled")


def test_the_backbone_is_said_in_one_line(haloae: Run, category: Path, tiny: Path) -> None:
    train = ("train", category, "--config", tiny, "--backbone", "auto")
    result = haloae(*train, "--out", "run")
    assert result.code == 0
    assert result.err == (
        "haloae: backbone: resnet18 with bundled weights (no ImageNet weights are cached)\n"
    )
    provenance = json.loads(haloae("info", "run/model.safetensors", "--json").out)["provenance"]
    assert provenance["backbone"] == "bundled"
    assert len(provenance["backbone_sha256"]) == 64
    assert haloae(*train, "--out", "quiet", "--quiet").err == ""


def test_cuda_where_there_is_none(
    haloae: Run, category: Path, model: Path, fit: tuple[str, ...]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    refused(haloae("train", category, "--out", "r", *fit[:4], "--device", "cuda"), "CUDA", "cpu")
    refused(haloae("predict", model, category, "--out", "p", "--device", "cuda"), "CUDA", "cpu")


# Data that is wrong


def test_training_data_that_is_wrong(haloae: Run, own_category: Path, fit: tuple[str, ...]) -> None:
    def train(data: str | Path) -> Result:
        return haloae("train", data, "--out", "run", *fit)

    Path("empty").mkdir()
    refused(train("missing"), "missing", "no such folder")
    refused(train("empty"), "empty", "no image found")
    refused(train(own_category / "train/good/000.png"), "000.png", "this is a file")
    refused(train(own_category.parent), "1 categories", "bottle")
    for i in range(7, 12):
        (own_category / f"train/good/{i:03}.png").unlink()
    refused(train(own_category), "7 good images", "at least 8")
    shutil.rmtree(own_category / "train")
    refused(train(own_category), "train/good")


def test_images_that_are_wrong(haloae: Run, model: Path) -> None:
    Path("empty").mkdir()
    refused(haloae("predict", model, "missing.png", "--out", "p"), "missing.png")
    refused(haloae("predict", model, "empty", "--out", "p"), "empty", "no image found")
    assert not Path("p").exists()


@pytest.mark.parametrize("command", ["info", "predict"])
def test_models_that_are_wrong(haloae: Run, model: Path, category: Path, command: str) -> None:
    def read(content: bytes | None) -> Result:
        path = Path("m.safetensors")
        if content is not None:
            path.write_bytes(content)
        return haloae(*((command, path) if command == "info" else predict))

    predict = ("predict", "m.safetensors", category / "test", "--out", "p")
    whole = model.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    refused(read(None), "m.safetensors", "no such model file")
    refused(read(b""), "not a model file", "0 bytes")
    refused(read(b"hello, world"), "not a model file", "12 bytes")
    refused(read(whole[:-1000]), "truncated")
    refused(read(whole[:40]), "truncated")
    refused(read(bytes(flipped)), "checksum")
    newer = whole.replace(rb"format_version\":1", rb"format_version\":9")
    refused(read(newer), "format version 9", "upgrade haloae")
    looser = whole.replace(rb"false_alarm_rate\":0.1", rb"false_alarm_rate\":0.2")
    assert looser != whole
    refused(read(looser), "checksum")
    refused(read(struct.pack("<Q", 1 << 40) + whole[8:]), "m.safetensors")
    save_file({"weight": np.zeros(3)}, "m.safetensors")
    refused(read(None), "not a model of haloae")


def test_a_folder_for_a_model(haloae: Run, run_folder: Path, category: Path) -> None:
    refused(haloae("info", run_folder), "did you mean", "model.safetensors")
    refused(haloae("info", category), "is a folder")


@pytest.mark.parametrize("command", ["info", "predict", "calibrate"])
def test_names_too_long_for_the_disk(haloae: Run, model: Path, command: str) -> None:
    name = "n" * 300
    arguments = {
        "info": ("info", name),
        "predict": ("predict", model, name, "--out", "p"),
        "calibrate": ("calibrate", model, "--false-alarm-rate", "0.2", "--out", name),
    }
    refused(haloae(*arguments[command]), name)


# predict


@pytest.fixture
def awkward(category: Path, tmp_path: Path) -> Path:
    """A folder as people leave it: 9 images that can be read, 3 that cannot."""
    source = (category / "test/hole/000.png").read_bytes()
    root = tmp_path / "parts"
    undecodable = os.fsdecode(b"byte\xff.png")
    for name in ("a b.png", "tab\t.png", "new\nline.png", "ünï ☃.png", "sub/deep dir/a.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(source)
    for name in ("a.png", "A.PNG.png", undecodable):
        (root / name).write_bytes(source)
    PILImage.open(root / "a.png").save(root / "a.jpg")
    (root / "x-empty.png").write_bytes(b"")
    (root / "x-text.png").write_text("hello")
    (root / "x-truncated.png").write_bytes(source[:200])
    (root / "notes.txt").write_text("no image")
    return root


def test_predict_takes_folders_as_they_come(haloae: Run, model: Path, awkward: Path) -> None:
    result = haloae("predict", model, awkward, "--out", "p")
    assert result.code == 1
    assert "9 anomalous, 0 normal, 3 skipped" in result.out
    assert [line.split(":")[1] for line in result.err.splitlines()] == [" skipped"] * 3
    found = predictions(Path("p"))
    assert len(found) == 12
    assert all(list(line) == PREDICTION_KEYS for line in found)
    assert {str(line["path"]) for line in found} == {
        str(path) for path in awkward.rglob("*") if path.suffix in (".png", ".jpg")
    }
    for line in found:
        if "x-" in str(line["path"]):
            assert str(line.pop("error")).startswith(str(line.pop("path")))
            assert set(line.values()) == {None}
            continue
        assert line["error"] is None
        assert 0 < float(str(line["p_value"])) <= 1
    maps = {str(line["map"]) for line in found if line["map"]}
    assert len(maps) == 9
    assert "maps/sub/deep dir/a.png" in maps
    assert maps == {p.relative_to("p").as_posix() for p in Path("p/maps").rglob("*.png")}
    overlays = {str(line["overlay"]) for line in found if line["overlay"]}
    assert len(overlays) == 9
    assert "overlays/sub/deep dir/a.jpg" in overlays
    assert overlays == {p.relative_to("p").as_posix() for p in Path("p/overlays").rglob("*.jpg")}
    assert {path.name for path in Path("p").iterdir()} == {
        "predictions.jsonl",
        "maps",
        "overlays",
        "contact_sheet.jpg",
    }


def test_strict_stops_at_the_first(haloae: Run, model: Path, awkward: Path) -> None:
    refused(haloae("predict", model, awkward, "--out", "p", "--strict"), "x-empty.png", "0 bytes")
    assert not Path("p/predictions.jsonl").exists()


def test_tiff_maps_are_the_prediction_s(haloae: Run, model: Path, category: Path) -> None:
    from haloae import Detector

    image = np.asarray(PILImage.open(category / "test/hole/000.png"))
    write_image(Path("parts/wide.png"), image[:20, :36])
    assert haloae("predict", model, "parts", "--out", "p", "--maps", "tiff").code == 0
    values = np.asarray(PILImage.open("p/maps/wide.tiff"))
    assert values.dtype == np.float32
    assert values.shape == (20, 36)
    prediction = Detector.load(model).predict("parts/wide.png")
    np.testing.assert_array_equal(values, prediction.anomaly_map)
    (line,) = predictions(Path("p"))
    assert line["score"] == prediction.score
    assert line["is_anomalous"] == prediction.is_anomalous


def test_an_unusable_image_is_told_everywhere_and_exits_with_1(
    haloae: Run, model: Path, category: Path
) -> None:
    write_image(Path("parts/black.png"), np.zeros((40, 40, 3), np.uint8))
    for number in range(3):
        shutil.copy(category / f"test/good/00{number}.png", Path("parts"))
    result = haloae("predict", model, "parts", "--out", "p", "--maps", "none")
    assert result.code == 1
    assert "p/predictions.jsonl: 1 unusable, " in result.out
    assert "  highest 4 of 4 scores, the unusable first:" in result.out
    assert "\n  black.png: darker" in result.out
    lines = {Path(str(line["path"])).stem: line for line in predictions(Path("p"))}
    black = lines.pop("black")
    assert (black["verdict"], black["overlay"]) == ("unusable", "overlays/black.jpg")
    assert str(black["unusable"]).startswith("darker")
    assert float(str(black["score"])) >= 0
    assert [line["unusable"] for line in lines.values()] == [None] * 3
    assert Path("p/overlays/black.jpg").exists()
    assert haloae("predict", model, "parts/000.png", "--out", "q").code == 0


def test_images_unlike_the_training_images_are_counted_by_kind(haloae: Run, model: Path) -> None:
    rng = np.random.default_rng(5)
    for number in range(3):
        write_image(Path(f"parts/{number}.png"), good_pixels(rng)[..., 0])
    write_image(Path("parts/wide.png"), good_pixels(rng)[:, :20])
    result = haloae("predict", model, "parts", "--out", "p", "--overlays", "none")
    assert result.err == (
        "haloae: WARNING: of 4 images, 3 in colour (the first is grey), 1 in width (the first is "
        "20 pixels wide) are unlike any of the training images, so their scores may mean little.\n"
    )
    assert [line["unlike"] for line in predictions(Path("p"))] == [
        *3 * [["is grey"]],
        ["is 20 pixels wide"],
    ]


def test_half_the_range_of_a_png_map_is_the_threshold(
    haloae: Run, model: Path, category: Path
) -> None:
    from haloae import Detector

    path = category / "test/hole/001.png"
    assert haloae("predict", model, path, "--out", "p").code == 0
    values = np.asarray(PILImage.open("p/maps/001.png"))
    assert values.dtype == np.uint16
    detector = Detector.load(model)
    prediction = detector.predict(path)
    threshold = detector.calibration.pixel_threshold.value
    expected = np.clip(prediction.anomaly_map / (2 * threshold), 0, 1) * 65535
    assert np.abs(values - expected).max() <= 0.51
    far = np.abs(prediction.anomaly_map / threshold - 1) > 1e-4
    np.testing.assert_array_equal((values > 32767)[far], prediction.defects[far])


def test_no_maps_where_none_are_wanted(haloae: Run, model: Path, category: Path) -> None:
    none = ("--maps", "none", "--overlays", "none")
    assert haloae("predict", model, category / "test", "--out", "p", *none).code == 0
    assert [path.name for path in Path("p").iterdir()] == ["predictions.jsonl"]
    found = predictions(Path("p"))
    assert {line["map"] for line in found} == {line["overlay"] for line in found} == {None}


def test_maps_of_several_inputs_keep_apart(haloae: Run, model: Path, category: Path) -> None:
    test = category / "test"
    inputs = (test / "good", test / "hole", test / "hole/000.png")
    assert haloae("predict", model, *inputs, "--out", "p").code == 0
    maps = [line["map"] for line in predictions(Path("p"))]
    names = [f"maps/{kind}/{i:03}.png" for kind in ("good", "hole") for i in range(3)]
    assert maps == [*names, "maps/000.png"]


def test_predict_overwrites_its_own_and_nothing_else(
    haloae: Run, model: Path, category: Path
) -> None:
    predict = ("predict", model, category / "test", "--out", "p")
    assert haloae(*predict).code == 0
    mine = Path("p/maps/mine.txt")
    mine.write_text("mine")
    before = Path("p/predictions.jsonl").read_bytes()
    refused(haloae(*predict), "p", "not empty", "--overwrite")
    assert Path("p/predictions.jsonl").read_bytes() == before
    only = ("predict", model, category / "test/good/000.png", "--out", "p", "--overwrite")
    assert haloae(*only, "--maps", "tiff").code == 0
    assert len(predictions(Path("p"))) == 1
    left = {path.name for path in Path("p/maps").rglob("*") if path.is_file()}
    assert left == {"mine.txt", "000.tiff"}


def test_an_output_folder_inside_the_input(haloae: Run, model: Path, category: Path) -> None:
    shutil.copytree(category / "test/good", "parts")
    predict = ("predict", model, "parts", "--out", "parts/found")
    assert haloae(*predict).code == 0
    assert haloae(*predict, "--overwrite").code == 0
    assert len(predictions(Path("parts/found"))) == 3


def test_an_image_is_never_overwritten(haloae: Run, model: Path, category: Path) -> None:
    shutil.copytree(category / "test/good", "maps")
    before = Path("maps/000.png").read_bytes()
    haloae("predict", model, "maps", "--out", ".", "--overwrite")
    assert Path("maps/000.png").read_bytes() == before


def test_a_folder_named_like_a_map(haloae: Run, model: Path, category: Path) -> None:
    shutil.copytree(category / "test/good", "parts/x.png")
    shutil.copy(category / "test/good/000.png", "parts/x.bmp")
    assert haloae("predict", model, "parts", "--out", "p").code == 0


def test_an_image_with_the_longest_name(haloae: Run, model: Path, category: Path) -> None:
    Path("parts").mkdir()
    shutil.copy(category / "test/good/000.png", Path("parts", "n" * 251 + ".png"))
    assert haloae("predict", model, "parts", "--out", "p", "--maps", "tiff").code == 0


# evaluate


def test_metrics_are_those_of_the_scores(haloae: Run, model: Path, category: Path) -> None:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    result = haloae("evaluate", model, category, "--out", "e")
    assert result.code == 0
    files = {"metrics.json", "scores.csv", "report.html"}
    assert {path.name for path in Path("e").iterdir()} == files
    metrics = metrics_of(Path("e"))
    assert {*IMAGE_METRICS, *PIXEL_METRICS, *OTHER_METRICS} <= set(metrics)
    assert metrics["reasons"] == {}
    assert all(0 <= float(str(metrics[name])) <= 1 for name in IMAGE_METRICS + PIXEL_METRICS)
    with Path("e/scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ["path", "label", "score", "p_value", "is_anomalous", "extrapolated", "unusable"]
    assert list(rows[0]) == columns
    assert [row["path"] for row in rows] == [
        f"test/{kind}/{i:03}.png" for kind in ("good", "hole") for i in range(3)
    ]
    is_defect = [row["label"] != "good" for row in rows]
    scores = [float(row["score"]) for row in rows]
    precision, recall, _ = precision_recall_curve(is_defect, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert metrics["image_auroc"] == pytest.approx(roc_auc_score(is_defect, scores))
    assert metrics["image_ap"] == pytest.approx(average_precision_score(is_defect, scores))
    assert metrics["image_f1max"] == pytest.approx(f1.max())
    called = np.array([row["is_anomalous"] == "True" for row in rows])
    assert metrics["detection_rate"] == called[is_defect].mean()
    assert metrics["false_alarm_rate"] == called[~np.array(is_defect)].mean()


@pytest.mark.parametrize("missing", ["good", "hole"])
def test_one_class_alone_has_no_ranking(
    haloae: Run, model: Path, own_category: Path, missing: str
) -> None:
    shutil.rmtree(own_category / "test" / missing)
    assert haloae("evaluate", model, own_category, "--out", "e").code == 0
    metrics = metrics_of(Path("e"))
    reasons = metrics["reasons"]
    assert isinstance(reasons, dict)
    assert [metrics[name] for name in IMAGE_METRICS] == [None] * 3
    assert "ranking" in reasons["image"]
    rate = "false_alarm_rate" if missing == "good" else "detection_rate"
    assert metrics[rate] is None
    assert rate in reasons


def test_without_masks_there_are_no_pixel_metrics(
    haloae: Run, model: Path, own_category: Path
) -> None:
    shutil.rmtree(own_category / "ground_truth")
    result = haloae("evaluate", model, own_category, "--out", "e")
    assert result.code == 0
    assert "no mask" in result.out
    metrics = metrics_of(Path("e"))
    assert [metrics[name] for name in PIXEL_METRICS] == [None] * 5
    assert metrics["reasons"] == {"pixel": "3 defective test images have no mask"}
    assert metrics["image_auroc"] is not None


def test_masks_that_are_all_black(haloae: Run, model: Path, own_category: Path) -> None:
    for path in (own_category / "ground_truth/hole").iterdir():
        write_image(path, np.zeros((40, 40), np.uint8))
    assert haloae("evaluate", model, own_category, "--out", "e").code == 0
    metrics = metrics_of(Path("e"))
    assert [metrics[name] for name in PIXEL_METRICS] == [None] * 5
    assert set(metrics["reasons"]) == {"pixel"}  # type: ignore[call-overload]


def test_masks_that_do_not_fit(haloae: Run, model: Path, own_category: Path) -> None:
    mask = own_category / "ground_truth/hole/001_mask.png"
    write_image(mask, np.zeros((30, 20), np.uint8))
    refused(haloae("evaluate", model, own_category, "--out", "e"), "001_mask.png", "20×30", "40×40")
    mask.write_bytes(b"x")
    refused(haloae("evaluate", model, own_category, "--out", "f"), "001_mask.png", "1 bytes")


def test_evaluate_skips_what_cannot_be_read(haloae: Run, model: Path, own_category: Path) -> None:
    (own_category / "test/hole/001.png").write_bytes(b"")
    refused(haloae("evaluate", model, own_category, "--out", "s", "--strict"), "001.png")
    result = haloae("evaluate", model, own_category, "--out", "e")
    assert result.code == 1
    assert "skipped" in result.err
    assert metrics_of(Path("e"))["skipped"] == 1


def test_evaluate_refuses_what_it_cannot_measure(
    haloae: Run, model: Path, own_category: Path
) -> None:
    good = own_category / "train/good"
    refused(haloae("evaluate", model, good, "--out", "e"), "no test images", "test/<defect>")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    refused(haloae("evaluate", model, own_category, "--out", "full"), "full", "--overwrite")
    assert haloae("evaluate", model, own_category, "--out", "full", "--overwrite").code == 0
    assert Path("full/mine.txt").read_text() == "mine"
    for path in own_category.glob("test/*/*.png"):
        path.write_bytes(b"")
    refused(haloae("evaluate", model, own_category, "--out", "none"), "no test image")


# calibrate


def test_calibrate_by_rate(haloae: Run, model: Path) -> None:
    before = json.loads(haloae("info", model, "--json").out)
    result = haloae("calibrate", model, "--false-alarm-rate", "0.3", "--out", "m.safetensors")
    assert result.code == 0
    assert "0.3" in result.out
    after = json.loads(haloae("info", "m.safetensors", "--json").out)
    assert after["calibration"]["scores"] == before["calibration"]["scores"]
    assert after["calibration"]["false_alarm_rate"] == 0.3
    assert after["config"]["detection"]["false_alarm_rate"] == 0.3
    assert after["threshold"] < before["threshold"]
    assert before["extrapolated"]
    assert not after["extrapolated"]


def test_calibrate_by_images(haloae: Run, model: Path, category: Path) -> None:
    shutil.copytree(category / "test/good", "good")
    out = ("--out", "m.safetensors")
    refused(haloae("calibrate", model, "good", *out), "3 good images", "at least 4")
    shutil.copytree(category / "train/good", "good/more")
    Path("good/empty.png").write_bytes(b"")
    refused(haloae("calibrate", model, "good", *out, "--strict"), "empty.png")
    assert not Path("m.safetensors").exists()
    result = haloae("calibrate", model, "good", *out)
    assert result.code == 1
    assert "empty.png" in result.err
    after = json.loads(haloae("info", "m.safetensors", "--json").out)
    assert len(after["calibration"]["scores"]) == 15
    assert after["calibration"]["false_alarm_rate"] == 0.1


def test_calibrate_never_overwrites_another_file(haloae: Run, model: Path) -> None:
    Path("m.safetensors").write_text("mine")
    calibrate = ("calibrate", model, "--false-alarm-rate", "0.2", "--out", "m.safetensors")
    refused(haloae(*calibrate), "m.safetensors", "--overwrite")
    assert Path("m.safetensors").read_text() == "mine"
    assert haloae(*calibrate, "--overwrite").code == 0
    assert haloae("calibrate", "m.safetensors", "--false-alarm-rate", "0.3").code == 0
    refused(haloae("calibrate", model), "nothing to do", "--false-alarm-rate")


def test_calibrate_takes_no_defects_for_good(haloae: Run, model: Path, category: Path) -> None:
    haloae("calibrate", model, category, "--out", "m.safetensors")
    if Path("m.safetensors").exists():
        after = json.loads(haloae("info", "m.safetensors", "--json").out)
        assert len(after["calibration"]["scores"]) <= 12


# Output that cannot be written


def test_a_full_disk_leaves_nothing_half_written(
    haloae: Run, category: Path, model: Path, fit: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copy(model, "m.safetensors")
    with largest_file(100_000):
        trained = haloae("train", category, "--out", "run", *fit)
        calibrated = haloae("calibrate", "m.safetensors", "--false-alarm-rate", "0.2")
    refused(trained, "run/checkpoint.pt", "File too large", "--out")
    refused(calibrated, "m.safetensors", "cannot be written")
    assert list(Path("run").iterdir()) == []
    assert Path("m.safetensors").read_bytes() == model.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "m.safetensors"}
    with largest_file(300):
        refused(haloae("predict", model, category / "test", "--out", "p"), "p/", "free some space")
        refused(haloae("evaluate", model, category, "--out", "e"), "e/scores.csv")
    assert not Path("p/predictions.jsonl").exists()
    assert list(Path("e").iterdir()) == []


def test_a_file_where_a_folder_should_be(
    haloae: Run, category: Path, model: Path, fit: tuple[str, ...]
) -> None:
    Path("file").write_text("mine")
    for out in ("file", "file/below"):
        refused(haloae("train", category, "--out", out, *fit), out, "cannot be written")
        refused(haloae("predict", model, category / "test", "--out", out), out)
        refused(haloae("evaluate", model, category, "--out", out), out)
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    "redirection",
    [">/dev/full", ">&-"],
)
def test_a_stdout_that_takes_nothing(model: Path, redirection: str) -> None:
    command = f'"$0" -m haloae.cli info "$1" {redirection}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, model], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_a_reader_that_left_is_no_error(model: Path) -> None:
    command = '"$0" -m haloae.cli info "$1" | true'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, model], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


# Ctrl-C


def interrupt(arguments: list[str | Path], when: Callable[[], bool]) -> Result:
    """Run a command of its own and press Ctrl-C once `when` is true."""
    process = subprocess.Popen(
        [sys.executable, "-m", "haloae.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell's background jobs inherit a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


def lines_in(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_ctrl_c_in_training_keeps_a_checkpoint(haloae: Run, category: Path) -> None:
    Path("long.toml").write_text(TINY.replace("steps = 4", "steps = 1000"))
    train: list[str | Path] = ["train", category, "--out", "run", "--config", "long.toml"]
    train += ["--backbone", "random", "--device", "cpu"]
    result = interrupt(train, lambda: lines_in(Path("run/losses.csv")) > 2)
    assert result == Result(130, "", "haloae: interrupted\n")
    assert {path.name for path in Path("run").iterdir()} == {"checkpoint.pt", "losses.csv"}
    done = steps_in(Path("run/losses.csv"))
    assert done == list(range(1, len(done) + 1))
    assert 2 <= len(done) < 1000
    resume = ("--resume", "--device", "cpu", "--max-steps", str(len(done) + 2))
    resumed = haloae("train", category, "--out", "run", *resume)
    assert resumed.code == 0
    assert steps_in(Path("run/losses.csv")) == [*done, len(done) + 1, len(done) + 2]


@pytest.mark.slow
def test_ctrl_c_in_predicting_keeps_whole_lines(haloae: Run, category: Path, model: Path) -> None:
    Path("parts").mkdir()
    for i in range(3000):
        Path("parts", f"{i:04}.png").symlink_to(category / "test/good/000.png")
    predict: list[str | Path] = ["predict", model, "parts", "--out", "p", "--maps", "none"]
    predict += ["--overlays", "none"]
    partial = Path("p/predictions.partial.jsonl")
    result = interrupt(predict, lambda: lines_in(partial) > 2)
    assert result == Result(130, "", "haloae: interrupted\n")
    assert [path.name for path in Path("p").iterdir()] == [partial.name]
    text = partial.read_text()
    assert text.endswith("\n")
    assert all(list(json.loads(line)) == PREDICTION_KEYS for line in text.splitlines())
    shutil.rmtree("parts")
    shutil.copytree(category / "test/good", "parts")
    assert haloae(*predict, "--overwrite").code == 0
    assert [path.name for path in Path("p").iterdir()] == ["predictions.jsonl"]


# slide


def test_a_model_that_sees_whole_images_scores_no_slide(
    haloae: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(Path("a.png"), np.zeros((300, 400, 3), np.uint8))
    slide = ("slide", model, "a.png", "--out", "s")
    refused(haloae(*slide), "view.kind squash", "train it on slides, or with --view tiles")
    refused(haloae(*slide, "--resume", "--overwrite"), "--resume", "--overwrite")
    refused(haloae("slide", model, "none.svs", "--out", "s"), "none.svs: no such file")
    monkeypatch.setitem(sys.modules, "openslide", None)
    refused(haloae(*slide), "pip install 'haloae[slides]'")


def test_good_slides_calibrate_what_scored_them(haloae: Run, model: Path) -> None:
    from haloae.detector import Detector
    from haloae.slides.folder import model_of

    for number in range(9):
        place = Path(f"good/{number}")
        place.mkdir(parents=True)
        values = {"score": 3.0 + number, "model": model_of(Detector.load(model, device="cpu"))}
        (place / "slide.json").write_text(json.dumps(values))
    result = haloae("calibrate", model, "good", "--out", "m.safetensors")
    assert "slides are judged by 9 good slides, for a false-alarm rate of 0.1" in result.out
    stored = json.loads(haloae("info", "m.safetensors", "--json").out)["calibration"]
    assert stored["slides"] == [3.0 + number for number in range(9)]
    (place / "slide.json").write_text(json.dumps(values | {"model": "another"}))
    refused(haloae("calibrate", model, "good", "--out", "n.safetensors"), "by another model")
    (place / "slide.json").write_text("{")
    refused(haloae("calibrate", model, "good", "--out", "n.safetensors"), "missing or damaged")
