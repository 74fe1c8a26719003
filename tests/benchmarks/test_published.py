"""The benchmark's plain published network computes what `HaloAE` computes."""

import pytest
import torch
from benchmarks.published import Published, multiply_adds
from benchmarks.untrained import settle
from torch import Tensor

from haloae.detection.maps import Usual, image_score, residual_map, residuals, smoothed
from haloae.network.haloae import HaloAE
from haloae.presets import PAPER

SIZE = 112
"""A grid of 28 cells, of which the head leaves 24: two blocks a side."""


@pytest.fixture(scope="module")
def paper() -> HaloAE:
    """Untrained, so in float64: it turns the last bits of a float32 into more than 1e-4."""
    generator = torch.Generator().manual_seed(0)
    network = HaloAE(PAPER.network, image_size=SIZE, weights="random", generator=generator)
    with torch.no_grad():
        settle(network, network.normalise(images(2)))
    return network.double()


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, SIZE, SIZE, generator=generator)


def test_map_and_score_are_those_of_the_paper_preset(paper: HaloAE) -> None:
    shown = images(1).double()
    batch = paper.normalise(shown)
    with torch.inference_mode():
        residual = residuals(paper(batch), batch)
        usual = Usual(*(part.mean(0).flip(-1) for part in residual), 1)
        wanted = smoothed(residual_map(residual, usual, PAPER.detection), PAPER.detection)
        scores, maps = Published(paper.state_dict(), usual.features.mean(0)).double()(shown)
    assert wanted.std() > 0.01 * wanted.max()
    assert (maps - wanted).abs().max() < 1e-5 * wanted.max()
    torch.testing.assert_close(scores.float(), image_score(wanted, 1.0), rtol=1e-5, atol=0)


def test_it_multiplies_more(paper: HaloAE) -> None:
    plain = Published(paper.state_dict(), torch.zeros(SIZE // 4, SIZE // 4)).double()
    ours = multiply_adds(paper, images(1).double())
    assert multiply_adds(plain, images(1).double()) > 1.1 * ours


def test_weights_of_another_network_are_refused(paper: HaloAE) -> None:
    state = paper.state_dict()
    del state["encoder.head.0.weight"]
    with pytest.raises(ValueError, match=r"encoder\.head\.0\.weight"):
        Published(state, torch.zeros(SIZE // 4, SIZE // 4))
