"""What the tests share; its place puts `tests/` on the import path, so that each can import it."""

import os

# Before anything reads it: the workers that run tests side by side have a core each.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests start many interpreters: without compiled modules, each would compile torch anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import importlib
import json
import logging
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from haloae.config import (
    Config,
    DetectionConfig,
    LossConfig,
    NetworkConfig,
    TrainingConfig,
)

PLAIN = Config(
    preset="custom",
    image_size=256,
    network=NetworkConfig(),
    loss=LossConfig(),
    training=TrainingConfig(),
    detection=DetectionConfig(),
)
"""No preset: what every setting is where nothing is said of it."""

collect_ignore = ["faults/fuzz.py"]  # it needs atheris


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much of the campaign of `tests/faults` runs with ``-m faults``."""
    group = parser.getgroup("faults")
    group.addoption(
        "--faults", type=int, default=10_000, metavar="N", help="most cases of each attack"
    )
    parser.addoption(
        "--load-minutes", type=float, default=10, metavar="M", help="of the service's load test"
    )
    parser.addoption(
        "--fuzz", type=int, default=100_000, metavar="N", help="requests of the service's slow test"
    )
    group.addoption("--faults-out", metavar="DIR", help="leave there what came of each attack")


def pytest_configure() -> None:
    """For this interpreter, which had read the environment before."""
    sys.dont_write_bytecode = False


@pytest.fixture(autouse=True)
def _as_a_new_process() -> Iterator[None]:
    """A command sets threads, limits and logging for its process; each test starts without."""
    _reset()
    yield
    _reset()


def _reset() -> None:
    # Not imported here: the process that hands tests to the workers needs no torch.
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    if limits := sys.modules.get("haloae.data.limits"):
        limits.limit_images(**limits.Limits().model_dump())
    logger = logging.getLogger("haloae")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def tiny() -> Config:
    """A network so small that a fit takes a fraction of a second."""
    import tiny_trunk  # noqa: F401 - registers it; not above, as it imports torch

    return PLAIN.replace(
        image_size=32,
        backbone="random",
        network={
            "trunk": "tiny",
            "reduced_channels": 8,
            "head_channels": 8,
            "encoder": [{"channels": 8}],
            "decoder": [{}],
        },
        training={"steps": 6, "batch_size": 2},
    )


@pytest.fixture(scope="session")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seeded textures, 40×40: eight to fit on, four to hold out."""
    folder = tmp_path_factory.mktemp("textures")
    for number in range(12):
        pixels = texture(number)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def good_paths(good_folder: Path) -> list[Path]:
    """The images of `good_folder`, in order."""
    return sorted(good_folder.iterdir())


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category in the MVTec layout: twelve good images, two to test, two with a red square."""
    root = tmp_path_factory.mktemp("sets") / "cloth"
    for part, count, first in (("train/good", 12, 0), ("test/good", 2, 20), ("test/hole", 2, 30)):
        (root / part).mkdir(parents=True)
        for number in range(count):
            pixels = texture(first + number)
            if part == "test/hole":
                pixels[10:26, 8:24] = (255, 0, 0)
            Image.fromarray(pixels).save(root / part / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def two_models(
    good_paths: list[Path], tiny: Config, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Model files of two detectors that say different things of the same image."""
    from haloae.detector import fit_detector

    paths = []
    for seed in range(2):
        config = tiny.replace(seed=seed, training={"steps": 2})
        paths.append(tmp_path_factory.mktemp("models") / "m.safetensors")
        fit_detector(good_paths, config, name="cloth", device="cpu").detector.save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model of a moment, which needs no torch."""
    models = importlib.import_module("faults.models")  # which mypy knows by another name
    folder = tmp_path_factory.mktemp("small")
    return Path(models.small_export(folder / "cloth.onnx", PLAIN.replace(image_size=32)))


@pytest.fixture
def start(small_model: Path) -> Iterator[Callable[..., Any]]:
    """Starts a service in this process and gives a client of it: `create_app`'s arguments."""
    from fastapi.testclient import TestClient

    from haloae.server.app import create_app

    with ExitStack() as stack:

        def started(models: Path = small_model, **options: Any) -> TestClient:  # noqa: ANN401
            app = create_app(models, **options)
            return stack.enter_context(TestClient(app, base_url="http://localhost"))

        yield started


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Real processes that have the package imported already, so that each starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["haloae.training.fit", "torchvision.models", "pytest"])
    return context


def texture(seed: int, height: int = 40, width: int = 40) -> NDArray[np.uint8]:
    """Slanted stripes and noise in colour, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    stripes = np.sin((rows + 2 * columns) / 4 + rng.uniform(0, 6))
    noise = rng.normal(size=(height, width, 3))
    pixels = 128 + 40 * stripes[..., None] * [1.0, 0.8, 0.6] + 10 * noise
    image: NDArray[np.uint8] = pixels.clip(0, 255).astype(np.uint8)
    return image


@pytest.fixture
def most(request: pytest.FixtureRequest) -> int:
    """Most cases of each attack of the campaign, as ``--faults`` says."""
    return int(request.config.getoption("--faults"))


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Keeps what came of an attack, for `benchmarks.faults`, under the row that it counts in."""
    from benchmarks.machine import machine

    def keep(row: str, tally: Any) -> None:  # noqa: ANN401 - a `Tally`
        if (folder := request.config.getoption("--faults-out")) is None:
            return
        found = {"row": row, **asdict(tally), "machine": machine(1)}
        path = Path(folder, re.sub(r"\W+", "-", request.node.nodeid).strip("-") + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")

    return keep
