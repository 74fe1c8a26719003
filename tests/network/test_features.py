"""The frozen trunk and the principal components of its features."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from haloae.errors import ConfigError, WeightsError
from haloae.network.features import FeatureExtractor
from haloae.network.reducer import FLOOR, FeatureReducer
from haloae.presets import preset
from oracles import features_from, nearest, vgg_taps


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor("random")


@pytest.fixture(scope="module")
def resnet() -> FeatureExtractor:
    return FeatureExtractor("random", "resnet18")


@pytest.fixture(scope="module")
def published() -> FeatureExtractor:
    return FeatureExtractor("random", published_taps=True)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (65, 70), (8, 11), (32, 33)])
def test_every_tap_on_a_grid_of_a_quarter(
    extractor: FeatureExtractor,
    published: FeatureExtractor,
    resnet: FeatureExtractor,
    size: tuple[int, int],
) -> None:
    image = drawn(2, 3, *size)
    for network, channels in ((extractor, 704), (published, 704), (resnet, 64 + 128 + 256)):
        features = network(image)
        assert features.shape == (2, channels, size[0] // 4, size[1] // 4)
        assert network.channels == channels
        assert features.min() >= 0
        assert features.isfinite().all()


def test_it_is_frozen_whatever_its_parent_does(extractor: FeatureExtractor) -> None:
    parent = nn.Sequential(extractor, nn.Dropout())
    parent.train()
    assert parent[1].training
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    image = drawn(1, 3, 32, 32).requires_grad_()
    features = parent[0](image)
    assert not features.requires_grad
    assert features.grad_fn is None


def test_same_input_same_features_and_no_weight_moves(extractor: FeatureExtractor) -> None:
    before = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}
    image = drawn(2, 3, 40, 32)
    untouched = image.clone()
    assert torch.equal(extractor(image), extractor(image))
    assert torch.equal(image, untouched)
    for name, tensor in extractor.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_images_of_a_batch_do_not_mix(extractor: FeatureExtractor) -> None:
    images = drawn(3, 3, 32, 40)
    alone = torch.cat([extractor(image[None]) for image in images])
    torch.testing.assert_close(extractor(images), alone)


def test_random_weights_are_the_same_every_time(extractor: FeatureExtractor) -> None:
    torch.manual_seed(99)
    again = FeatureExtractor("random")
    assert again.source.name == extractor.source.name == "random"
    assert again.source.sha256 == extractor.source.sha256
    assert len(again.source.sha256) == 64
    for name, tensor in extractor.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_random_weights_keep_the_images_mean_square(extractor: FeatureExtractor) -> None:
    image = drawn(1, 3, 64, 64)
    for tap in vgg_taps(image, extractor.layers.state_dict()).values():
        assert 0.3 < tap.square().mean() < 3


def test_without_weights_there_is_no_source_and_the_layers_wait(
    extractor: FeatureExtractor,
) -> None:
    waiting = FeatureExtractor(None)
    assert waiting.source is None
    waiting.load_state_dict(extractor.state_dict())
    image = drawn(1, 3, 32, 32)
    assert torch.equal(waiting(image), extractor(image))


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_taps_are_those_of_torchvision(extractor: FeatureExtractor, size: tuple[int, int]) -> None:
    """Its layers by number, its convolutions switched to reflect padding."""
    from torchvision.models import vgg19

    with torch.device("meta"):  # its classifier alone would take 500 MB
        layers = vgg19(weights=None).features[:18]
    layers.load_state_dict(extractor.layers.state_dict(), assign=True)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "reflect"
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    image = drawn(2, 3, *size)
    outputs, x = [], image
    with torch.no_grad():
        for layer in layers:
            x = layer(x)
            outputs.append(x)
    assert extractor.layers.tapped == (1, 6, 11, 17)
    expected = torch.cat(
        [F.avg_pool2d(outputs[1], 4), F.avg_pool2d(outputs[6], 2), outputs[11], outputs[17]], dim=1
    )
    torch.testing.assert_close(extractor(image), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (48, 80)])
def test_resnet_taps_are_those_of_torchvision(size: tuple[int, int], tmp_path: Path) -> None:
    """Read from a published file, with batch norm: folding it in changes nothing."""
    torch.manual_seed(0)
    published = resnet18().eval()
    for name, buffer in published.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    torch.save(published.state_dict(), tmp_path / "published.pth")
    extractor = FeatureExtractor(tmp_path / "published.pth", "resnet18")
    image = drawn(2, 3, *size)
    with torch.no_grad():
        x = published.maxpool(published.relu(published.bn1(published.conv1(image))))
        taps = [x := layer(x) for layer in (published.layer1, published.layer2, published.layer3)]
        for tap, wanted in zip(extractor.layers(image), taps, strict=True):
            torch.testing.assert_close(tap, wanted, atol=1e-5 * wanted.max().item(), rtol=1e-5)
    grid = (size[0] // 4, size[1] // 4)
    on_grid = [taps[0]] + [F.interpolate(tap, size=grid, mode="bilinear") for tap in taps[1:]]
    torch.testing.assert_close(extractor(image), torch.cat(on_grid, 1), atol=1e-3, rtol=1e-4)


def test_only_resnet_sees_far(extractor: FeatureExtractor, resnet: FeatureExtractor) -> None:
    """One pixel's reach: 48 pixels in VGG19 up to relu3_4, over 200 in ResNet-18 up to layer3."""
    image = drawn(1, 3, 320, 320)
    changed = image.clone()
    changed[..., 160, 160] += 10
    for network, reach in ((extractor, (40, 48)), (resnet, (140, 320))):
        moved = (network(image) != network(changed)).any(1)[0].any(0).nonzero()
        width = 4 * (moved.max() - moved.min() + 1).item()
        assert reach[0] <= width <= reach[1]


def test_published_taps_are_vgg19s_only() -> None:
    with pytest.raises(ConfigError, match="published_taps are those of vgg19"):
        preset("paper").replace(network={"trunk": "resnet18"})
    preset("paper").replace(network={"trunk": "resnet18", "published_taps": False})


def test_a_file_of_another_trunk_is_refused(tmp_path: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "resnet.pth")
    torch.save(FeatureExtractor("random").layers.state_dict(), tmp_path / "vgg.pth")
    for name, trunk in (("resnet.pth", "vgg19"), ("vgg.pth", "resnet18")):
        with pytest.raises(WeightsError, match=f"{name}: .* it is not a {trunk}"):
            FeatureExtractor(tmp_path / name, trunk)


@pytest.mark.parametrize("size", [(64, 64), (32, 128), (40, 56)])
def test_plain_taps_are_the_papers_without_their_padding(
    extractor: FeatureExtractor, size: tuple[int, int]
) -> None:
    """Nearest to the image's size and then the mean of 4×4 is average pooling."""
    image = drawn(2, 3, *size)
    expected = features_from(image, extractor.layers.state_dict(), padded=False)
    torch.testing.assert_close(extractor(image), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (32, 128), (256, 256)])
def test_published_taps_are_the_padded_ones(
    published: FeatureExtractor, size: tuple[int, int]
) -> None:
    image = drawn(1, 3, *size)
    expected = features_from(image, published.layers.state_dict(), padded=True)
    torch.testing.assert_close(published(image), expected, atol=1e-5, rtol=1e-5)


def test_published_taps_are_off_by_up_to_four_pixels() -> None:
    """Which cell of a padded map of relu3_1 a pixel of a 256×256 image gets, less its own."""
    cells = nearest(torch.arange(66.0)[None, None, None], 1, 256).flatten()
    shift = 4 * (cells - 1) - torch.arange(256) // 4 * 4
    assert (shift.min(), shift.max()) == (-4, 4)


@pytest.mark.parametrize("trunk_taps", [False, True])
def test_last_tap_is_the_same_either_way(
    extractor: FeatureExtractor, published: FeatureExtractor, trunk_taps: bool
) -> None:
    image = drawn(1, 3, 64, 64)
    plain, wide = extractor(image), published(image)
    if trunk_taps:
        assert not torch.allclose(plain[:, :-256], wide[:, :-256], atol=1e-3)
    else:
        torch.testing.assert_close(plain[:, -256:], wide[:, -256:], atol=1e-5, rtol=1e-5)


def correlated(rows: int, channels: int) -> Tensor:
    """Features with scales, means and correlations of all sorts: (3, channels, rows, 4)."""
    generator = torch.Generator().manual_seed(4)
    mixing = torch.randn(channels, channels, generator=generator)
    # Distinct spreads, so that no two principal components can be swapped.
    sources = torch.randn(3, channels, rows, 4, generator=generator)
    sources *= torch.linspace(3, 0.2, channels)[:, None, None]
    scales = torch.logspace(-2, 2, channels)[:, None, None]
    return torch.einsum("dc,bchw->bdhw", mixing, sources) * scales + 3 * scales


def fitted(
    features: Tensor, reduced: int, *, taps: Sequence[int] = (), floor: float = 0
) -> FeatureReducer:
    """With a floor of 0 all channels that vary get variance 1."""
    reducer = FeatureReducer(taps or [features.shape[1]], reduced)

    def batches() -> Iterator[Tensor]:
        yield features[:1]
        yield features[1:]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("haloae.network.reducer.FLOOR", floor)
        reducer.fit(batches())
    return reducer


def test_reduced_features_are_centred_uncorrelated_and_in_order() -> None:
    features = correlated(50, 12)
    reducer = fitted(features, 7)
    reduced = reducer(features)
    assert reduced.shape == (3, 7, 50, 4)
    flat = reduced.movedim(1, 0).flatten(1)
    covariance = torch.cov(flat)
    variances = covariance.diagonal()
    assert flat.mean(1).abs().max() < 1e-3
    assert (covariance - variances.diag()).abs().max() < 1e-3
    assert (variances.diff() < 0).all()


def test_reduction_is_pca_of_standardised_features() -> None:
    features = correlated(50, 12)
    reduced = fitted(features, 12)(features).movedim(1, -1).flatten(0, 2).numpy()
    rows = features.movedim(1, -1).flatten(0, 2).double().numpy()
    standard = (rows - rows.mean(0)) / rows.std(0)
    left, singular, _ = np.linalg.svd(standard, full_matrices=False)
    expected = left * singular
    signs = np.sign((reduced * expected).sum(0))
    np.testing.assert_allclose(reduced, expected * signs, atol=2e-3)
    assert (reduced**2).sum() == pytest.approx(rows.size, rel=1e-3)


def test_quiet_channels_are_not_made_as_loud_as_the_others() -> None:
    """Each is divided by the root of its variance plus a share of the mean one of its own tap."""
    features = correlated(50, 12)
    rows = features.movedim(1, -1).flatten(0, 2).double().numpy()
    variance = rows.var(0)
    mean = np.repeat([variance[:5].mean(), variance[5:].mean()], [5, 7])
    scaled = (rows - rows.mean(0)) / np.sqrt(variance + 0.3 * mean)
    left, singular, _ = np.linalg.svd(scaled, full_matrices=False)
    expected = left * singular
    reducer = fitted(features, 12, taps=[5, 7], floor=0.3)
    reduced = reducer(features).movedim(1, -1).flatten(0, 2).numpy()
    signs = np.sign((reduced * expected).sum(0))
    np.testing.assert_allclose(reduced, expected * signs, atol=2e-3)


def test_noise_of_a_quiet_channel_stays_quiet_by_default() -> None:
    features = drawn(2, 6, 40, 40)
    features[:, 2] *= 1e-3
    reducer = FeatureReducer([6], 6)
    reducer.fit([features])
    moved = features.clone()
    moved[:, 2] += 1e-2
    quiet = (reducer(moved) - reducer(features)).square().sum(1)
    # Ten of its own standard deviations, but a hundredth of any other channel's.
    assert quiet.max() < 0.1**2
    loud = fitted(features, 6)
    assert (loud(moved) - loud(features)).square().sum(1).min() > 9**2


def test_reduction_does_not_depend_on_how_the_images_are_batched() -> None:
    features = correlated(50, 12)
    whole = FeatureReducer([12], 7)
    whole.fit([features])
    again, twice = (fitted(features, 7, floor=FLOOR) for _ in range(2))
    assert torch.equal(again.weight, twice.weight)
    assert torch.equal(again.bias, twice.bias)
    torch.testing.assert_close(whole.weight, again.weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(whole.bias, again.bias, rtol=1e-3, atol=1e-4)


def test_signs_of_components_are_fixed() -> None:
    features = correlated(50, 12)
    std = features.movedim(1, 0).flatten(1).std(1, correction=0)
    components = fitted(features, 7).weight * std
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_a_channel_that_never_fires_weighs_nothing() -> None:
    features = correlated(50, 12)
    features[:, 5] = 0
    reducer = fitted(features, 7)
    assert reducer.weight.isfinite().all()
    others = [channel for channel in range(12) if channel != 5]
    expected = fitted(features[:, others], 7)(features[:, others])
    torch.testing.assert_close(reducer(features), expected, atol=1e-3, rtol=1e-3)


def test_reducer_has_no_parameters_and_is_saved_whole() -> None:
    reducer = fitted(correlated(50, 12), 7)
    assert not list(reducer.parameters())
    copy = FeatureReducer([12], 7)
    copy.load_state_dict(reducer.state_dict())
    image = drawn(1, 12, 5, 6)
    assert torch.equal(copy(image), reducer(image))
