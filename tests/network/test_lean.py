import copy

import pytest
import torch
from torch import Tensor, nn

from haloae.config import Config
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean
from haloae.network.reducer import FeatureReducer
from haloae.presets import preset

SIZE = 64
HALO = preset("autoencoder").replace(
    network={
        "trunk": "vgg19",
        "attention": {"mode": "halo"},
        "image_decoder": [24, 8],
        "classifier": True,
    }
)
CONFIGS = {
    "paper": preset("paper"),
    "autoencoder": preset("autoencoder"),
    "halo, vgg19, all branches": HALO,
}


def settled(config: Config) -> HaloAE:
    """An untrained network whose batch norms know its activations, as a trained one's do."""
    generator = torch.Generator().manual_seed(0)
    network = HaloAE(config.network, image_size=SIZE, weights="random", generator=generator)
    if isinstance(network.reducer, FeatureReducer):
        network.reducer.fit([network.extractor(images())])
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(layer.bias, std=0.2, generator=generator)
    network.train()
    with torch.no_grad():
        network(images())
    return network.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def network(request: pytest.FixtureRequest) -> HaloAE:
    return settled(CONFIGS[request.param])


def images() -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def difference(found: Tensor, wanted: Tensor) -> float:
    return ((found.to(wanted) - wanted).abs().max() / wanted.abs().max()).item()


@torch.inference_mode()
def test_it_computes_the_same(network: HaloAE) -> None:
    # In double precision, where rounding cannot hide a mistake.
    exact = copy.deepcopy(network).double()
    wanted, found = exact(images().double()), lean(exact, image=True)(images().double())
    assert difference(found.features, wanted.features) < 1e-10
    assert difference(found.rebuilt, wanted.rebuilt) < 1e-7
    assert (found.image is None) == (wanted.image is None)
    if wanted.image is not None:
        assert difference(found.image, wanted.image) < 1e-7
    assert found.logits is None


@torch.inference_mode()
def test_in_float32_it_is_as_near_to_the_exact_as_the_network_itself(network: HaloAE) -> None:
    exact = copy.deepcopy(network).double()(images().double())
    wanted, *found = (
        (output.features - output.rebuilt).square().mean(1)
        for output in (exact, network(images()), lean(network, image=False)(images()))
    )
    plain, in_use = (difference(residual, wanted) for residual in found)
    assert in_use < 3 * plain + 1e-6
    assert in_use < 1e-3


@torch.inference_mode()
def test_only_what_is_needed_is_left(network: HaloAE) -> None:
    in_use = lean(network, image=False)
    assert in_use.image_decoder is None
    assert in_use.classifier is None
    kinds = {type(layer) for layer in in_use.modules()}
    assert not kinds & {nn.BatchNorm2d, nn.ConvTranspose2d}
    assert not any(layer.training for layer in in_use.modules())


@torch.inference_mode()
def test_the_network_is_left_as_it_was(network: HaloAE) -> None:
    before, state = network(images()), copy.deepcopy(network.state_dict())
    in_use = lean(network, image=False, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in in_use.state_dict().values()} == {torch.bfloat16}
    after = network(images())
    assert torch.equal(before.rebuilt, after.rebuilt)
    assert state.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
        assert tensor.dtype == state[name].dtype


def test_the_trunk_is_shared(network: HaloAE) -> None:
    weights = {p.data_ptr() for p in network.extractor.parameters()}
    assert weights <= {p.data_ptr() for p in lean(network, image=False).parameters()}


@torch.inference_mode()
def test_bfloat16_is_near() -> None:
    network = settled(CONFIGS["autoencoder"])
    wanted = network(images())
    found = lean(network, image=False, dtype=torch.bfloat16)(images().bfloat16())
    assert found.rebuilt.dtype == torch.bfloat16
    assert 1e-4 < difference(found.rebuilt, wanted.rebuilt) < 0.1
