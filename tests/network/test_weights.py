"""Where the trunk's weights come from, what is refused, and that nothing is fetched unasked."""

import logging
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import VGG19_Weights

from haloae.errors import WeightsError
from haloae.network.features import FeatureExtractor
from haloae.network.trunks import TRUNKS
from haloae.network.weights import BUNDLED, digest, load_weights, random_weights

CACHED_NAME = "vgg19-dcbb9e9d.pth"
UNREACHABLE = f"http://127.0.0.1:9/{CACHED_NAME}"
FIRST, LAST = "0.weight", "16.bias"

BUNDLED_SHA256 = {
    "resnet18": "4dff94374f076a4cb9c23bbb4686b8658f074ce42ad93cdb31c273e9527cd318",
    "vgg19": "758d37e3bfaab6f0f971afdba6593efd0132ffe3b372ad4392d10305b72f28b5",
}
"""The shipped weights, as docs/backbone.md gives them."""

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torchvision's, and an address where nobody answers."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HALOAE_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(VGG19_Weights.IMAGENET1K_V1.value, "url", UNREACHABLE)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / CACHED_NAME


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def expected() -> State:
    """Names and shapes of the trunk's tensors, without values."""
    return TRUNKS["vgg19"].build().state_dict()


@pytest.fixture(scope="module")
def state(expected: State) -> State:
    """Weights as a file holds them that torchvision did not publish."""
    generator = torch.Generator().manual_seed(8)
    return {n: torch.randn(t.shape, generator=generator) for n, t in expected.items()}


@pytest.fixture(scope="module")
def published_file(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision publishes it: a prefix, and layers past the trunk's."""
    path = tmp_path_factory.mktemp("weights") / "published.pth"
    torch.save(
        {f"features.{name}": tensor for name, tensor in state.items()}
        | {"features.19.bias": torch.zeros(512), "classifier.6.bias": torch.zeros(1000)},
        path,
    )
    return path


def refusal(source: str | Path, expected: State) -> str:
    """The message `load_weights` refuses a source with, checked to be one line naming it."""
    with pytest.raises(WeightsError) as caught:
        load_weights(source, "vgg19", expected)
    message = str(caught.value)
    if isinstance(source, Path):
        assert message.startswith(f"{source}: ")
    assert message.endswith(".")
    assert "\n" not in message
    return message


def assert_same(tensors: State, wanted: State) -> None:
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, wanted[name]), name
        assert tensor.dtype == torch.float32


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize("trunk", sorted(BUNDLED_SHA256))
def test_auto_without_a_cache_is_bundled_and_says_so(
    trunk: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = TRUNKS[trunk].build().state_dict()
    with caplog.at_level(logging.DEBUG):
        weights = load_weights("auto", trunk, expected)
    assert weights.name == "bundled"
    assert weights.sha256 == BUNDLED_SHA256[trunk]
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.name.startswith("haloae.")
    assert f"{trunk} with bundled weights" in record.getMessage()
    assert_same(load_weights("bundled", trunk, expected).tensors, weights.tensors)


@pytest.mark.parametrize("trunk", sorted(BUNDLED_SHA256))
def test_bundled_taps_have_mean_one(trunk: str) -> None:
    """On noise they were not made for, so nearly: no tap dominates a squared error."""
    extractor = FeatureExtractor("bundled", trunk)
    image = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(image, size=(128, 128), mode="bicubic")
    means = [tap.mean().item() for tap in extractor.layers(image)]
    assert min(means) > 0.2
    assert max(means) < 5
    for name, tensor in extractor.layers.state_dict().items():
        assert torch.equal(tensor, tensor.half().float()), name


def test_the_package_holds_these_weights_and_nothing_else() -> None:
    assert {path.name for path in BUNDLED.iterdir()} == {f"{t}.safetensors" for t in BUNDLED_SHA256}


@pytest.mark.usefixtures("no_sockets")
def test_random_was_asked_for_so_it_warns_of_nothing(
    expected: State, caplog: pytest.LogCaptureFixture
) -> None:
    state = torch.random.get_rng_state()
    weights = load_weights("random", "vgg19", expected)
    assert not caplog.records
    assert torch.equal(torch.random.get_rng_state(), state)
    assert weights.sha256 == load_weights("random", "vgg19", expected).sha256
    assert weights.sha256 == digest(random_weights(expected))
    assert weights.sha256 != digest(random_weights(expected, seed=1))
    for name, tensor in weights.tensors.items():
        if tensor.ndim == 1:
            assert not tensor.any(), name
        else:
            fan_in = tensor[0].numel()
            assert tensor.std() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05), name


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize("offline", ["0", "1"])
@pytest.mark.parametrize("source", ["auto", "imagenet"])
def test_cached_imagenet_weights_are_used(
    source: str,
    offline: str,
    cache: Path,
    expected: State,
    state: State,
    published_file: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By their file's name: torchvision checks the hash in it after a download only.

    So a file put there by hand passes for ImageNet's if its tensors fit. What tells the two apart
    is the digest that is kept with every detector.
    """
    shutil.copy(published_file, cache)
    monkeypatch.setenv("HALOAE_OFFLINE", offline)
    weights = load_weights(source, "vgg19", expected)
    assert weights.name == "imagenet"
    assert weights.sha256 == digest(state)
    assert_same(weights.tensors, state)
    assert not caplog.records  # the line that `auto` writes is not a warning


def test_the_cache_is_where_torchvision_itself_looks(cache: Path) -> None:
    """Pins the name under which people are told to put the file."""
    assert Path(VGG19_Weights.IMAGENET1K_V1.url).name == CACHED_NAME
    assert Path(torch.hub.get_dir()) / "checkpoints" / CACHED_NAME == cache


@pytest.mark.usefixtures("no_sockets")
def test_offline_forbids_the_download(
    cache: Path, expected: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALOAE_OFFLINE", "1")
    message = refusal("imagenet", expected)
    assert "HALOAE_OFFLINE=1" in message
    assert str(cache) in message
    assert load_weights("auto", "vgg19", expected).name == "bundled"


def test_no_network_is_a_weights_error(cache: Path, expected: State) -> None:
    message = refusal("imagenet", expected)
    assert "could not be downloaded" in message
    assert str(cache) in message
    assert "--backbone bundled" in message
    assert not cache.exists()


def truncated(path: Path, published_file: Path) -> None:
    path.write_bytes(published_file.read_bytes()[:1_000_000])


DAMAGE: dict[str, Callable[[Path, Path], None]] = {
    "truncated": truncated,
    "empty": lambda path, _: path.write_bytes(b""),
    "text": lambda path, _: path.write_bytes(b"<html>404 not found</html>\n"),
    "zeros": lambda path, _: path.write_bytes(bytes(5000)),
    "a list": lambda path, _: torch.save([torch.zeros(3)], path),
    "a tensor": lambda path, _: torch.save(torch.zeros(3), path),
    "an empty state": lambda path, _: torch.save({}, path),
    "a number": lambda path, _: torch.save({"features.0.weight": 1.0}, path),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("source", ["auto", "imagenet"])
def test_a_damaged_cache_is_refused(
    source: str, damage: str, cache: Path, expected: State, published_file: Path
) -> None:
    DAMAGE[damage](cache, published_file)
    message = refusal(source, expected)
    assert str(cache) in message


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".bin"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(
    damage: str, suffix: str, tmp_path: Path, expected: State, published_file: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    DAMAGE[damage](path, published_file)
    refusal(path, expected)


def test_refusals_are_one_sentence_and_advise_nothing_unsafe(
    tmp_path: Path, expected: State, published_file: Path
) -> None:
    path = tmp_path / "weights.pth"
    for damage in DAMAGE.values():
        damage(path, published_file)
        message = refusal(path, expected)
        assert "weights_only" not in message
        assert ". " not in message.removeprefix(str(path))


@pytest.mark.parametrize("is_legacy", [True, False])
@pytest.mark.parametrize(
    "is_cached",
    [
        False,
        pytest.param(
            True,
        ),
    ],
)
def test_mutated_bytes_raise_nothing_else(
    is_cached: bool, is_legacy: bool, tmp_path: Path, cache: Path, expected: State
) -> None:
    path = cache if is_cached else tmp_path / "mutated.pth"
    torch.save(
        {"features.0.weight": torch.zeros(2, 2)},
        path,
        _use_new_zipfile_serialization=not is_legacy,
    )
    data = path.read_bytes()
    rng = np.random.default_rng(9)
    for trial in range(150):
        mutated = bytearray(data)
        for position in rng.integers(0, len(data), 1 + trial % 4):
            mutated[position] = rng.integers(256)
        path.write_bytes(mutated)
        refusal("imagenet" if is_cached else path, expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "features."])
def test_weights_from_a_file(
    suffix: str, prefix: str, tmp_path: Path, expected: State, state: State
) -> None:
    path = tmp_path / f"mine{suffix}"
    prefixed = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    (torch.save if suffix == ".pth" else save_file)(prefixed, path)
    for source in (path, str(path)):
        weights = load_weights(source, "vgg19", expected)
        assert weights.name == path.name
        assert weights.sha256 == digest(state)
        assert_same(weights.tensors, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(
    dtype: torch.dtype, tmp_path: Path, expected: State, state: State
) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in state.items()}
    save_file(stored, tmp_path / "half.safetensors")
    tensors = load_weights(tmp_path / "half.safetensors", "vgg19", expected).tensors
    assert_same(tensors, {name: tensor.float() for name, tensor in stored.items()})


def test_the_extractor_runs_on_the_files_weights(
    tmp_path: Path, published_file: Path, state: State
) -> None:
    extractor = FeatureExtractor(published_file)
    assert extractor.source.name == "published.pth"
    assert_same(dict(extractor.layers.state_dict()), state)
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    with pytest.raises(WeightsError, match="no such weights file"):
        FeatureExtractor(tmp_path / "none.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (FIRST, None, "holds no tensor '0.weight'"),
        (LAST, None, "holds no tensor '16.bias'"),
        (FIRST, torch.zeros(64, 3, 5, 5), "'0.weight' of shape (64, 3, 3, 3), got (64, 3, 5, 5)"),
        (LAST, torch.zeros(()), "'16.bias' of shape (256,), got ()"),
        (LAST, torch.full((256,), torch.nan), "'16.bias' holds values that are not finite"),
        (FIRST, torch.full((64, 3, 3, 3), torch.inf), "'0.weight' holds values that are not"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    name: str,
    change: Tensor | None,
    reason: str,
    suffix: str,
    tmp_path: Path,
    expected: State,
    state: State,
) -> None:
    changed = {n: t for n, t in state.items() if n != name}
    if change is not None:
        changed[name] = change
    path = tmp_path / f"changed{suffix}"
    (torch.save if suffix == ".pth" else save_file)(changed, path)
    assert reason in refusal(path, expected)


def test_what_is_no_file(tmp_path: Path, expected: State) -> None:
    for name in ("none.pth", "none.safetensors", "none"):
        message = refusal(tmp_path / name, expected)
        assert "no such weights file" in message
        assert "auto, bundled, imagenet, random or a file" in message
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "folder.safetensors").mkdir()
    refusal(tmp_path / "folder.pth", expected)
    refusal(tmp_path / "folder.safetensors", expected)
    assert "no such weights file" in refusal("imagnet", expected)


class Intruder:
    """What a pickle may hold: a call that is made when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("is_cached", [True, False])
def test_nothing_in_a_file_is_run(
    is_cached: bool, tmp_path: Path, cache: Path, expected: State
) -> None:
    trace = tmp_path / "trace"
    path = cache if is_cached else tmp_path / "hostile.pth"
    torch.save({"features.0.weight": Intruder(trace)}, path)
    pickle.loads(pickle.dumps(Intruder(trace)))  # noqa: S301 - shows that it would
    assert trace.exists()
    trace.unlink()
    refusal("imagenet" if is_cached else path, expected)
    assert not trace.exists()


def test_digest_tells_names_shapes_and_values_apart() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
    same = digest(tensors)
    assert digest(dict(reversed(tensors.items()))) == same
    assert digest(tensors | {"a": tensors["a"].double()}) == same
    assert digest(tensors | {"a": tensors["a"].T.contiguous().T}) == same
    others = [
        {"a": tensors["a"]},
        {"a": tensors["a"], "c": tensors["b"]},
        tensors | {"a": tensors["a"].reshape(3, 2)},
        tensors | {"b": torch.tensor([1, 1 + 1e-6])},
    ]
    assert len({same, *map(digest, others)}) == 5
