"""On a CUDA device a detector refuses, and answers, as it does on the CPU."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import texture
from faults.attacks import MODELS, of_model, prepare, raw, tensor
from faults.campaign import Attack, Record, attack_here, spread
from faults.sets import HEADS, SETS, training
from haloae.config import Config
from haloae.detector import Detector

pytestmark = [
    pytest.mark.faults,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CUDA = "cuda"
ATTACKS = {
    "damaged model files": Attack(
        "on CUDA: model files, raw damage",
        *(100, 0),
        partial(of_model, name="raw", change=raw, is_same=True, device=CUDA),
    ),
    "hostile tensors": Attack(
        "on CUDA: tensors, checksum made anew",
        *(100, 0),
        partial(of_model, name="tensor", change=tensor, is_same=False, device=CUDA),
    ),
    "training sets": Attack(
        "on CUDA: good images that are hardly any",
        *(len(SETS) * len(HEADS), 0),
        partial(training, device=CUDA),
    ),
}


@pytest.fixture(scope="module")
def ground(tiny: Config, good_paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ground")
    prepare(folder, tiny, good_paths)
    return folder


@pytest.fixture
def _little_memory() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_all(name: str, ground: Path, most: int, record: Record) -> None:
    """In this process: CUDA takes more addresses than one of the others may have."""
    attack = ATTACKS[name]
    found = attack_here(attack, ground, spread(attack.count, min(attack.count, most)))
    record(attack.row, found)
    assert found.failed == []


@pytest.mark.parametrize("name", MODELS)
def test_eight_threads_say_what_one_says(name: str, ground: Path) -> None:
    detector = Detector.load(ground / name, device=CUDA)
    pictures = [texture(number % 10) for number in range(200)]
    alone = [detector.predict(picture).score for picture in pictures[:10]]
    with ThreadPoolExecutor(8) as pool:
        found = [said.score for said in pool.map(detector.predict, pictures)]
    assert found == pytest.approx(alone * 20, rel=1e-4)


@pytest.mark.usefixtures("_little_memory")
def test_a_device_without_memory_is_an_error_and_no_verdict(ground: Path) -> None:
    detector = Detector.load(ground / MODELS[0], device=CUDA)
    before = detector.predict(texture(1)).score
    images = np.zeros((4096, 3, 32, 32), np.float32)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    with pytest.raises(MemoryError):
        detector.measure(images)
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert detector.predict(texture(1)).score == pytest.approx(before, rel=1e-4)
