"""A model file is whole, or refused in one sentence that names it."""

import json
import os
import pickle
import resource
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from haloae._version import __version__
from haloae.config import Config
from haloae.data.images import read_image
from haloae.data.source import ImageKinds
from haloae.data.views import resize
from haloae.detection.calibration import Calibration
from haloae.detection.good import measure_good
from haloae.detection.model_file import (
    FORMAT_VERSION,
    HEADER_KEY,
    Provenance,
    read_model,
)
from haloae.detection.native import Native
from haloae.detector import Detector, fit_detector
from haloae.errors import ModelFileError, OutputError
from haloae.network.haloae import HaloAE
from haloae.presets import PAPER

HEADER = 8
"""Bytes that say how long the header is."""


@pytest.fixture(scope="module")
def detector(good_paths: list[Path], tiny: Config) -> Detector:
    return fit_detector(
        good_paths, tiny.replace(training={"steps": 2}), name="textures", device="cpu"
    ).detector


@pytest.fixture(scope="module")
def saved(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    detector.save(path)
    return path.read_bytes()


@pytest.fixture
def model(saved: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    return path


def header_length(data: bytes) -> int:
    return int(struct.unpack("<Q", data[:HEADER])[0])


def with_metadata(data: bytes, **changes: str) -> bytes:
    """The file with entries of its metadata replaced, and nothing else."""
    length = header_length(data)
    header = json.loads(data[HEADER : HEADER + length])
    header["__metadata__"].update(changes)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[HEADER + length :]


def our_header(data: bytes) -> dict[str, Any]:
    length = header_length(data)
    values = json.loads(json.loads(data[HEADER : HEADER + length])["__metadata__"][HEADER_KEY])
    assert isinstance(values, dict)
    return values


def meaning(data: bytes) -> tuple[Any, Any]:
    """All that a file's header says, of the tensors too."""
    header = json.loads(data[HEADER : HEADER + header_length(data)])
    return json.loads(header["__metadata__"].pop(HEADER_KEY)), header


def refused(path: Path, match: str = ".") -> str:
    """The sentence the file is refused with."""
    with pytest.raises(ModelFileError, match=match) as caught:
        Detector.load(path, device="cpu")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def untrained(config: Config, paths: list[Path]) -> Detector:
    """A detector whose network was never trained."""
    network = HaloAE(
        config.network,
        image_size=config.image_size,
        weights="random",
        generator=torch.Generator().manual_seed(3),
    )
    head, scores, peaks, _ = measure_good(
        network, lambda: (resize(read_image(path), config.image_size) for path in paths[:4]), config
    )
    return Detector(
        config,
        Calibration(scores=scores, peaks=peaks, false_alarm_rate=0.1).fitted(),
        backend=Native(config, network, head),
        provenance=Provenance(
            data="textures",
            fitted_on=0,
            held_out=4,
            skipped=0,
            steps=0,
            backbone="random",
            backbone_sha256="",
            images=ImageKinds(grey=(False,), depths=(8,), heights=(40, 40), widths=(40, 40)),
        ),
    )


def assert_same_detector(found: Detector, expected: Detector, paths: list[Path]) -> None:
    assert found.config == expected.config
    assert found.calibration == expected.calibration
    assert found.calibration.threshold == expected.calibration.threshold
    assert found.provenance == expected.provenance
    states = found.network.state_dict(), expected.network.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    for one, other in zip(found.predict(paths), expected.predict(paths), strict=True):
        assert (one.score, one.p_value) == (other.score, other.p_value)
        assert (one.is_anomalous, one.extrapolated) == (other.is_anomalous, other.extrapolated)
        assert np.array_equal(one.anomaly_map, other.anomaly_map)
        assert np.array_equal(one.defects, other.defects)


def test_a_loaded_detector_is_the_saved_one(
    detector: Detector, model: Path, good_paths: list[Path]
) -> None:
    assert_same_detector(Detector.load(model, device="cpu"), detector, good_paths[:3])


def test_saving_again_gives_the_same_file(model: Path, saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "again.safetensors"
    Detector.load(model, device="cpu").save(path)
    assert path.read_bytes() == saved


@pytest.mark.parametrize("preset", ["tiny", "tiny with an image", "paper"])
def test_a_network_never_trained_is_saved_and_loaded(
    preset: str, tiny: Config, good_paths: list[Path], tmp_path: Path
) -> None:
    config = {
        "tiny": tiny,
        "tiny with an image": tiny.replace(
            network={"image_decoder": (4,)}, detection={"image_weight": 0.5}
        ),
        "paper": PAPER.replace(image_size=64, backbone="random"),
    }[preset]
    detector = untrained(config, good_paths)
    path = tmp_path / "new folder" / "model.safetensors"
    detector.save(path)
    assert_same_detector(Detector.load(path, device="cpu"), detector, good_paths[:2])


def test_a_loaded_detector_knows_its_thresholds_without_scipy(
    detector: Detector, model: Path, good_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = detector.calibration.threshold, detector.calibration.pixel_threshold
    assert expected[0].extrapolated
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    loaded = Detector.load(model, device="cpu")
    assert (loaded.calibration.threshold, loaded.calibration.pixel_threshold) == expected
    assert loaded.predict(good_paths[0]).extrapolated


def test_header_alone(model: Path, detector: Detector) -> None:
    header, _ = read_model(model)
    assert header.config == detector.config
    assert header.calibration == detector.calibration
    assert header.package_version == __version__
    assert header.format_version == FORMAT_VERSION


def test_the_file_holds_every_tensor_and_no_pickle(model: Path, detector: Detector) -> None:
    tensors = load_file(model)
    expected = {f"network.{name}" for name in detector.network.state_dict()}
    assert tensors.keys() == expected | {"usual.features"}


def test_truncated_anywhere(saved: bytes, model: Path) -> None:
    length = header_length(saved)
    rng = np.random.default_rng(0)
    cuts = [0, 1, 7, 8, 9, 10, length // 2, HEADER + length - 1, HEADER + length]
    cuts += [HEADER + length + 1, len(saved) - 1, len(saved) - 4]
    cuts += [int(n) for n in rng.integers(HEADER + length, len(saved), 10)]
    cuts += [int(n) for n in rng.integers(9, HEADER + length, 10)]
    for cut in cuts:
        model.write_bytes(saved[:cut])
        assert f"({cut} bytes)" in refused(model)


def test_longer_than_it_should_be(saved: bytes, model: Path) -> None:
    for extra in (b"\0", b"\0" * 1000):
        model.write_bytes(saved + extra)
        refused(model)


def test_any_flipped_bit_is_noticed(saved: bytes, model: Path) -> None:
    rng = np.random.default_rng(1)
    end = HEADER + header_length(saved)
    places = [*range(HEADER), *rng.integers(HEADER, end, 30), *rng.integers(end, len(saved), 20)]
    places += [end - 1, len(saved) - 1]
    for place in places:
        damaged = bytearray(saved)
        damaged[place] ^= 1 << int(rng.integers(8))
        model.write_bytes(damaged)
        refused(model)
    model.write_bytes(saved)
    Detector.load(model, device="cpu")


@pytest.mark.slow
def test_any_flipped_bit_of_the_header_is_noticed(saved: bytes, model: Path) -> None:
    rng = np.random.default_rng(2)
    for place in range(0, HEADER + header_length(saved), 8):
        damaged = bytearray(saved)
        damaged[place] ^= 1 << int(rng.integers(8))
        with suppress(ValueError, KeyError, TypeError):
            if meaning(bytes(damaged)) == meaning(saved):
                continue  # a digit past what a number holds
        model.write_bytes(damaged)
        refused(model)


def test_an_edited_threshold_is_noticed(saved: bytes, model: Path) -> None:
    header = our_header(saved)
    assert header["calibration"]["false_alarm_rate"] == 0.01
    header["calibration"]["false_alarm_rate"] = 0.3
    model.write_bytes(with_metadata(saved, **{HEADER_KEY: json.dumps(header)}))
    refused(model, "its checksum does not match")


def test_unedited_metadata_written_anew_is_accepted(saved: bytes, model: Path) -> None:
    """Else the test above would pass for a wrong reason."""
    model.write_bytes(with_metadata(saved))
    Detector.load(model, device="cpu")


def test_exchanged_tensors_are_noticed(saved: bytes, model: Path) -> None:
    header = json.loads(saved[HEADER : HEADER + header_length(saved)])
    tensors = load_file(model)
    names = [name for name, tensor in tensors.items() if tensor.shape == (8,)]
    one, other = names[0], next(n for n in names if (tensors[n] != tensors[names[0]]).any())
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, model, metadata=header["__metadata__"])
    refused(model, "its checksum does not match")


def test_no_checksum_at_all_is_noticed(saved: bytes, model: Path) -> None:
    model.write_bytes(
        with_metadata(saved, **{HEADER_KEY: json.dumps(our_header(saved) | {"sha256": ""})})
    )
    refused(model, "its checksum does not match")


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99, "2", None, 1.5])
def test_other_format_versions(version: object, saved: bytes, model: Path) -> None:
    header = our_header(saved) | {"format_version": version, "new_key": [1]}
    model.write_bytes(with_metadata(saved, **{HEADER_KEY: json.dumps(header)}))
    message = refused(model, "format version")
    assert str(version) in message
    assert __version__ in message
    assert "upgrade haloae" in message


@pytest.mark.parametrize(
    ("header", "match"),
    [("", "damaged"), ("[]", "damaged"), ("null", "damaged"), ("{}", "damaged"), ("{", "damaged")],
)
def test_headers_that_are_none(header: str, match: str, saved: bytes, model: Path) -> None:
    model.write_bytes(with_metadata(saved, **{HEADER_KEY: header}))
    refused(model, match)


@pytest.mark.parametrize("key", ["config", "calibration", "usual_images", "provenance"])
def test_headers_with_parts_missing_or_wrong(key: str, saved: bytes, model: Path) -> None:
    header = our_header(saved)
    for values in (
        {name: value for name, value in header.items() if name != key},
        header | {key: "nonsense"},
        header | {key: None},
    ):
        model.write_bytes(with_metadata(saved, **{HEADER_KEY: json.dumps(values)}))
        assert key in refused(model, "its header is not valid at")


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path)
    refused(path, "not a model of haloae")
    save_file({"a": np.zeros(3, np.float32)}, path, metadata={"format": "pt"})
    refused(path, "not a model of haloae")
    contents = {
        "empty": b"",
        "text": b"hello, this is not a model\n" * 100,
        "json": b'{"haloae": "1"}',
        "zeros": bytes(1000),
        "pickle": pickle.dumps({"network": [1, 2, 3]}),
        "huge header": struct.pack("<Q", 2**63) + b"{" + b" " * 100,
        "binary": np.random.default_rng(0).bytes(5000),
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert f"({len(content)} bytes)" in refused(path)
    torch.save({"a": torch.zeros(3)}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "not a model file")


def test_folders_and_missing_files(tmp_path: Path, saved: bytes) -> None:
    refused(tmp_path, "is a folder")
    (tmp_path / "model.safetensors").write_bytes(saved)
    refused(tmp_path, r"did you mean .*model\.safetensors\?")
    refused(tmp_path / "missing.safetensors", "no such model file")
    refused(tmp_path / "model.safetensors" / "x")


def test_a_failed_save_leaves_the_old_file(detector: Detector, model: Path, saved: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, hard))
    try:
        with pytest.raises(OutputError, match=r"model\.safetensors: cannot be written") as caught:
            detector.calibrated(false_alarm_rate=0.2).save(model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert model.read_bytes() == saved
    assert list(model.parent.iterdir()) == [model]


def test_saving_below_a_file_is_refused(detector: Detector, model: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        detector.save(model / "model.safetensors")


def test_saving_replaces_and_leaves_nothing_else(detector: Detector, model: Path) -> None:
    link = model.with_name("link to the old file")
    os.link(model, link)
    old = link.read_bytes()
    detector.calibrated(false_alarm_rate=0.2).save(model)
    assert read_model(model)[0].calibration.false_alarm_rate == 0.2
    assert set(model.parent.iterdir()) == {model, link}
    assert link.read_bytes() == old  # renamed over, not written into
