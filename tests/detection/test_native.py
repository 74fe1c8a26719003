"""The backend that computes with torch: whole on its device, and of files that fit their config."""

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import texture
from faults.models import (
    Change,
    Tensors,
    Values,
    changed,
    closed,
    filled,
    hostile_headers,
    opened,
    put,
    renamed,
    reshaped,
    retyped,
)
from haloae import Config, Detector, HaloaeError
from haloae.detection.heads import Seen, head_named
from haloae.detection.native import Native
from haloae.errors import ModelFileError
from haloae.network.haloae import HaloAE


def test_all_that_scores_is_on_the_network_s_device(tiny: Config) -> None:
    network = HaloAE(tiny.network, image_size=tiny.image_size, weights="random").eval()
    images = torch.rand(2, 1, 3, tiny.image_size, tiny.image_size)
    with torch.no_grad():
        seen = [Seen(network(image), image) for image in images]
    native = Native(tiny, network, head_named(tiny.detection.head).fit(tiny, lambda: seen))
    assert devices(native) == {"cpu"}
    native.to(torch.device("meta"))
    assert devices(native) == {"meta"}


def devices(native: Native) -> set[str]:
    scorer = native.scorer_for(torch.float32, [0.1, 0.2])
    return {tensor.device.type for tensor in scorer.state_dict().values()}


@pytest.fixture(scope="module")
def saved(tiny: Config, good_paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A detector with an auto-encoder and images."""
    config = tiny.replace(
        training={"steps": 1}, network={"image_decoder": [4]}, detection={"image_weight": 0.5}
    )
    return written(config, good_paths, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def of_features(
    tiny: Config, good_paths: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """One whose head is Gaussians and a memory."""
    changes = {"network": {"autoencoder": False}, "detection": {"head": "halo"}}
    return written(tiny.replace(**changes), good_paths, tmp_path_factory.mktemp("features"))


def written(config: Config, paths: list[Path], folder: Path) -> bytes:
    path = folder / "m.safetensors"
    Detector.fit(paths, config=config, device="cpu").save(path)
    return path.read_bytes()


def refused(path: Path, data: bytes, match: str) -> None:
    """The file is refused with a sentence, in a second."""
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(ModelFileError, match=match) as caught:
        Detector.load(path, device="cpu")
    assert time.process_time() - start < 1
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith(".")
    assert "\n" not in message


CONV = "network.encoder.blocks.0.conv1.weight"
BIAS = "network.extractor.layers.near.bias"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        *((retyped(CONV, t), f"tensor {CONV} is {t} ") for t in ("uint8", "float16", "float64")),
        *((retyped("usual.features", t), f"features is {t} ") for t in ("uint8", "int64", "bool")),
        (reshaped("usual.features", (8, 1, 1)), "features has shape"),
        (reshaped("usual.features", (8, 8, 1)), "features has shape"),
        (reshaped("usual.features", (1,)), "features has shape"),
        (reshaped(BIAS, (1,)), f"tensor {BIAS} is float32"),
        (reshaped(CONV, (8, 8, 3, 3)), r"is float32 \(8, 8, 3, 3\), and .*\(8, 8, 1, 1\) is exp"),
        (renamed(CONV, None), f"tensor {CONV} is missing"),
        (renamed(BIAS, BIAS + "es"), f"tensor {BIAS} is missing"),
        (renamed("usual.features", None), "'features'"),
        (renamed("usual.image", "usual.images"), "usual.image is missing"),
        (filled("usual.features", -1), "mean squares below 0"),
        *((filled(CONV, value), f"tensor {CONV} holds") for value in (math.nan, -math.inf)),
        (filled("usual.features", math.nan, 1000), r"usual\.features holds numbers that are not"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    change: Change, match: str, saved: bytes, tmp_path: Path
) -> None:
    refused(tmp_path / "m.safetensors", changed(saved, change), match)


@pytest.mark.parametrize(
    "change",
    [
        *(
            retyped(f"head.{name}", "int32")
            for name in ("rebuilding", "memory.memory", "gaussian.mean")
        ),
        *(filled(f"head.{name}", math.inf) for name in ("rebuilding", "gaussian.whitening")),
        reshaped("head.memory.memory", (1, 48, 8)),
        reshaped("head.gaussian.whitening", (64, 1)),
        reshaped("head.rebuilding", ()),
        renamed("head.memory.memory", None),
        renamed("head.rebuilding", "head.rebuilt"),
    ],
)
def test_tensors_of_a_head_that_do_not_fit_are_refused(
    change: Change, of_features: bytes, tmp_path: Path
) -> None:
    refused(tmp_path / "m.safetensors", changed(of_features, change), "tensor|shape|fit")


WIDE = {"channels": 4096, "inner": 4096, "kernel": 7, "heads": 256}


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        ("network.encoder", [{"channels": 1}] * 20_000, "not valid at config"),
        ("network.encoder", [WIDE] * 16, "tensor .* is expected"),
        ("network.decoder", [WIDE] * 15 + [{}], "tensor .* is expected"),
        ("network.image_decoder", [4096] * 16, "tensor .* is expected"),
        ("network.head_channels", 4096, "tensor .* is expected"),
        (
            "network.attention",
            {"mode": "halo", "block": 256, "halo": 256, "head_dim": 256},
            "tensor",
        ),
        ("network.attention", {"mode": "halo", "block": 10**9}, "not valid at config"),
        ("network.encoder.0.channels", 2**63, "not valid at config"),
        ("network.encoder.0.inner", 10**30, "not valid at config"),
        ("image_size", 4096, "tensor .* is expected"),
        ("network.trunk", "vgg19", "tensor .* is expected"),
        ("network.trunk", "nonsense", "network.trunk is 'nonsense'"),
        ("detection.head", "nonsense", "no detector head is called"),
        ("detection.sigma", 5e-324, "not valid at config"),
    ],
)
def test_a_header_sets_no_work_and_no_memory(
    place: str, value: object, match: str, saved: bytes, tmp_path: Path
) -> None:
    def change(values: Values, _: Tensors) -> None:
        path = [int(key) if key.isdigit() else key for key in place.split(".")]
        put(values["config"], tuple(path), value)

    refused(tmp_path / "m.safetensors", changed(saved, change), match)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("usual_images",), 10**30),
        (("provenance", "images", "heights", 1), 10**400),
        (("calibration", "scores", 0), math.nan),
        (("calibration", "fitted_threshold"), math.inf),
        (("calibration", "peaks", 0), 10**400),
    ],
)
def test_numbers_that_nobody_can_count_with_are_refused(
    place: tuple[str | int, ...], value: float, saved: bytes, tmp_path: Path
) -> None:
    data = changed(saved, lambda values, _: put(values, place, value))
    refused(tmp_path / "m.safetensors", data, rf"not valid at {place[0]}")


def test_nesting_and_long_numbers_are_refused(saved: bytes, tmp_path: Path) -> None:
    values, tensors = opened(saved)
    for text in ("[" * 100_000, '{"format_version":' * 50_000, "1" * 5000):
        refused(tmp_path / "m.safetensors", closed(values, tensors, text), "damaged")


def test_whatever_a_header_says_there_is_a_sentence_or_a_score(
    saved: bytes, of_features: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    outcomes = set()
    for data in (saved, of_features):
        for what, hostile in hostile_headers(data, 60):
            path.write_bytes(hostile)
            try:
                found = Detector.load(path, device="cpu").predict(texture(1))
            except HaloaeError as error:
                outcomes.add("lines" if "\n" in str(error) else "sentence")
                continue
            outcomes.add("score" if 0 <= found.score < math.inf else what)
    assert outcomes == {"score", "sentence"}


@pytest.mark.slow
def test_comparing_shapes_imports_no_compiler(saved: bytes, tmp_path: Path) -> None:
    """Building without memory may start up parts of torch that take four seconds."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(saved)
    code = """
import sys
import tiny_trunk
from haloae import Detector
Detector.load(sys.argv[1], device="cpu")
assert "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, path], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("reason", ["shapes cannot be multiplied", "can't allocate memory: 9 TB"])
def test_what_torch_raises_is_named(
    reason: str, saved: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(saved)
    detector = Detector.load(path, device="cpu")

    def forward(output: object, image: Tensor) -> Tensor:
        raise RuntimeError(f"{reason}\nat some line")

    monkeypatch.setattr(detector.head, "forward", forward)
    with pytest.raises((ModelFileError, MemoryError), match=reason) as caught:
        detector.predict(texture(1))
    if isinstance(caught.value, ModelFileError):
        assert str(caught.value) == f"{path}: cannot be run ({reason}): train anew."


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_no_number_is_normal(
    value: float, saved: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(saved)
    detector = Detector.load(path, device="cpu")
    forward = detector.head.forward

    def spoiled(output: object, image: Tensor) -> Tensor:
        unusual = forward(output, image)
        unusual[1] = value
        return unusual

    monkeypatch.setattr(detector.head, "forward", spoiled)
    found = list(detector.stream([texture(1), texture(2), texture(3)]))
    assert [isinstance(each, HaloaeError) for each in found] == [False, True, False]
    assert f"the image: {path} gives it a score of" in str(found[1])
    with pytest.raises(HaloaeError, match="finite"):
        detector.predict([texture(1), texture(2)])
