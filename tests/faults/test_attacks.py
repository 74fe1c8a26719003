"""Whatever is attacked refuses with a sentence or says what it said before."""

from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from faults.attacks import ATTACKS, prepare
from faults.campaign import Record, attack_apart, attack_here, spread
from haloae.config import Config


@pytest.fixture(scope="module")
def ground(tiny: Config, good_paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ground")
    prepare(folder, tiny, good_paths)
    return folder


@pytest.mark.faults
@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.sample])
def test_some_of_each(name: str, ground: Path) -> None:
    attack = ATTACKS[name]
    found = attack_here(attack, ground, spread(attack.count, attack.sample))
    assert found.failed == []


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_all(
    name: str, ground: Path, most: int, processes: ForkServerContext, record: Record
) -> None:
    attack = ATTACKS[name]
    found = attack_apart(attack, ground, spread(attack.count, min(attack.count, most)), processes)
    record(attack.row, found)
    assert found.failed == []
