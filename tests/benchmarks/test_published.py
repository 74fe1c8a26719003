"""The benchmark's plain published network computes what `HaloAE` computes."""

import pytest
import torch
from benchmarks.published import Published, multiply_adds
from torch import Tensor, nn

from haloae.config import PAPER
from haloae.detection.held_out import normalise
from haloae.detection.maps import Usual, anomaly_map, image_score, residuals
from haloae.network.haloae import HaloAE


def sound_network(size: int) -> HaloAE:
    """Untrained, with batch norms that have seen images: activations keep their size."""
    network = HaloAE(
        PAPER.network,
        image_size=size,
        weights="random",
        generator=torch.Generator().manual_seed(0),
    )
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(normalise(images(4, size)))
    return network.eval()


def images(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, size, size, generator=generator)


@pytest.mark.parametrize("size", [64, 112])
def test_map_and_score_are_those_of_the_paper_preset(size: int) -> None:
    """In float64: an untrained softmax turns the last bits of a float32 into more than 1e-4."""
    network, shown = sound_network(size).double(), images(2, size).double()
    batch = normalise(shown)
    with torch.inference_mode():
        residual = residuals(network(batch), batch)
        usual = Usual(residual.features.mean(0), residual.image.mean(0), 2)
        wanted = anomaly_map(residual, usual, PAPER.detection)
        plain = Published(network.state_dict(), usual.features.mean(0))
        scores, maps = plain.double()(shown)
    assert wanted.std() > 0.01 * wanted.max()
    assert (maps - wanted).abs().max() < 1e-5 * wanted.max()
    torch.testing.assert_close(scores.float(), image_score(wanted, 1.0), rtol=1e-5, atol=0)


def test_it_multiplies_more() -> None:
    network = sound_network(64)
    plain = Published(network.state_dict(), torch.zeros(16, 16))
    ours = multiply_adds(network, images(1, 64))
    assert multiply_adds(plain, images(1, 64)) > 1.1 * ours


def test_weights_of_another_network_are_refused() -> None:
    state = sound_network(64).state_dict()
    del state["encoder.head.0.weight"]
    with pytest.raises(ValueError, match=r"encoder\.head\.0\.weight"):
        Published(state, torch.zeros(16, 16))
