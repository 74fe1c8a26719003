"""How far a cell sees, as it is derived, against what autograd finds."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny_trunk  # noqa: F401 - registers it
from conftest import PLAIN
from haloae.errors import ConfigError
from haloae.network.autoencoder import HaloDecoder, HaloEncoder
from haloae.network.features import FeatureExtractor
from haloae.network.reach import autoencoder_reach, features_reach, step_of, trunk_reach
from haloae.network.trunks import Tap, Trunk, trunk_named

NETWORK = PLAIN.network


def positive(module: nn.Module) -> nn.Module:
    """Weights that let every input through: none of them cancel, and no ReLU is at an end."""
    with torch.no_grad():
        for parameter in module.parameters():
            inputs = parameter[0].numel()
            parameter.uniform_(0.5, 1.5).mul_(1 / inputs if inputs > 1 else 0.01)
    return module.eval()


def footprint(output: Tensor, given: Tensor, row: int, cell: int) -> tuple[int, int]:
    """How many rows of what was given a cell sees above and below its own `cell` of them."""
    seen = output[:, :, row].sum()
    (gradient,) = torch.autograd.grad(seen, given, retain_graph=True)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    return row * cell - int(rows.min()), int(rows.max()) + 1 - (row + 1) * cell


@pytest.mark.parametrize("name", ["tiny", "vgg19", "resnet18", "efficientnet_lite0"])
def test_taps_see_what_autograd_finds(name: str) -> None:
    trunk = trunk_named(name)
    layers = positive(trunk.build())
    side = {"vgg19": 128, "efficientnet_lite0": 384}.get(name, 256)
    # Of a window that is pooled the gradient knows the highest cell alone: several images show all.
    count = 16 if name == "resnet18" else 1
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 3, side, 64, generator=generator).requires_grad_()
    for tap, reach, found in zip(trunk.taps, trunk_reach(trunk), layers(image), strict=True):
        assert footprint(found, image, found.shape[-2] // 2, tap.stride) == reach


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 8), ("efficientnet_lite0", 4)])
def test_features_see_no_farther_than_derived_and_almost_as_far(name: str, stride: int) -> None:
    config = NETWORK.model_copy(update={"trunk": name, "stride": stride})
    extractor = FeatureExtractor(None, name, stride=stride)
    positive(extractor)
    image = torch.rand(1, 3, 512, 64, requires_grad=True)
    # Not by its own forward, which has no gradient.
    taps = zip(extractor.taps, extractor.layers(image), strict=True)
    features = torch.cat([extractor.to_grid(x, tap, image.shape[-2:]) for tap, x in taps], 1)
    middle = features.shape[-2] // 2
    far = max(max(footprint(features, image, row, stride)) for row in range(middle, middle + 4))
    assert far <= features_reach(config) <= far + 2 * step_of(config)


@pytest.mark.parametrize(("mode", "block"), [("halo", 4), ("none", 4)])
def test_what_is_rebuilt_sees_no_farther_than_derived(mode: str, block: int) -> None:
    config = NETWORK.model_copy(
        update={"attention": NETWORK.attention.model_copy(update={"mode": mode, "block": block})}
    )
    encoder, decoder = HaloEncoder(config, 8), HaloDecoder(config, 32, 8)
    features = torch.rand(1, 8, 96, 24, requires_grad=True)
    with torch.no_grad():
        positive(nn.ModuleList([encoder, decoder]))
    rebuilt = decoder(encoder(features), grid=(96, 24))
    far = max(max(footprint(rebuilt, features, row, 1)) for row in range(40, 40 + block))
    assert far <= autoencoder_reach(config)
    assert mode == "halo" or far == autoencoder_reach(config)


class Squeezed(nn.Module):
    """A trunk that looks at all of the image."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """One tap at stride 4, in units of its mean."""
        x = F.avg_pool2d(x, 4)
        return [x * F.adaptive_avg_pool2d(x, 1)]


def test_what_sees_the_whole_image_has_no_tiles() -> None:
    with pytest.raises(ConfigError, match=r"choose another network\.trunk"):
        trunk_reach(Trunk(build=Squeezed, taps=(Tap("all", 3, 4),)))
    sizes = NETWORK.attention.model_copy(update={"mode": "global"})
    with pytest.raises(ConfigError, match="choose halo"):
        autoencoder_reach(NETWORK.model_copy(update={"attention": sizes}))
    with pytest.raises(ConfigError, match="head_padding"):
        autoencoder_reach(NETWORK.model_copy(update={"head_padding": False}))
    with pytest.raises(ConfigError, match="published_taps"):
        features_reach(NETWORK.model_copy(update={"published_taps": True}))


def test_the_step_is_that_of_the_coarsest_tap_and_of_the_blocks() -> None:
    network = NETWORK.model_copy(update={"trunk": "resnet18", "autoencoder": False})
    assert step_of(network) == 16
    blocks = NETWORK.attention.model_copy(update={"block": 12})
    assert step_of(NETWORK.model_copy(update={"attention": blocks})) == 48
