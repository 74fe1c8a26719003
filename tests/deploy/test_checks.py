"""What is no longer as it was exported is refused, and so is what computes something else."""

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import PLAIN
from faults.models import flipped, small_export
from haloae.deploy.checks import Known, known_image, seal
from haloae.deploy.runtime import open_runtime
from haloae.errors import ModelFileError

CONFIG = PLAIN.replace(image_size=32)
SUFFIXES = (".onnx", ".xml")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        suffix: small_export(tmp_path_factory.mktemp("sound") / f"m{suffix}", CONFIG)
        for suffix in SUFFIXES
    }


@pytest.fixture(params=SUFFIXES)
def export(request: pytest.FixtureRequest, sound: dict[str, Path], tmp_path: Path) -> Path:
    """One that a test may change."""
    for file in sound[request.param].parent.glob("m.*"):
        shutil.copy(file, tmp_path)
    return tmp_path / f"m{request.param}"


def test_any_flipped_bit_is_noticed(export: Path) -> None:
    rng = np.random.default_rng(0)
    open_runtime(export)
    files = [export] + ([export.with_suffix(".bin")] if export.suffix == ".xml" else [])
    for file in files:
        whole = file.read_bytes()
        for _ in range(25):
            file.write_bytes(flipped(whole, rng))
            with pytest.raises(ModelFileError, match=rf"m\{export.suffix}: .*\.$"):
                open_runtime(export)
        file.write_bytes(whole)
    seal_at = export.read_bytes().index(b"haloae-seal")
    for place in range(seal_at, seal_at + 105, 3):
        damaged = bytearray(export.read_bytes())
        damaged[place] ^= 1
        export.with_stem("n").write_bytes(damaged)
        if export.suffix == ".xml":
            shutil.copy(export.with_suffix(".bin"), export.with_name("n.bin"))
        with pytest.raises(ModelFileError):
            open_runtime(export.with_stem("n"))


def test_weights_of_another_export_are_noticed(export: Path, tmp_path: Path) -> None:
    if export.suffix == ".xml":
        weights = export.with_suffix(".bin")
        values = np.frombuffer(weights.read_bytes(), np.float32)
        weights.write_bytes((values * np.float32(1.5)).tobytes())
        with pytest.raises(ModelFileError, match="its seal does not match"):
            open_runtime(export)


def test_what_was_changed_on_purpose_is_sealed_anew(export: Path) -> None:
    text = export.read_bytes()
    quote = b"&quot;" if export.suffix == ".xml" else b'"'
    name = b"pixel_threshold" + quote
    export.write_bytes(text.replace(name + b":0.5", name + b":0.7", 1))
    assert export.read_bytes() != text
    with pytest.raises(ModelFileError, match=r"its seal does not match: .*docs/export\.md"):
        open_runtime(export)
    seal(export)
    assert open_runtime(export).metadata.pixel_threshold == 0.7


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_before_seals_loads_with_a_word(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small_export(tmp_path / f"old{suffix}", CONFIG, seal=None)
    with caplog.at_level(logging.WARNING):
        found = open_runtime(path).measure(known_image((32, 32))[None])
    assert found.scores.shape == (1,)
    assert "has no seal" in caplog.text
    with pytest.raises(ModelFileError, match="no place for a seal"):
        seal(path)


@pytest.mark.parametrize(
    ("off", "precision", "is_right"),
    [
        (1 + 1e-4, "float32", True),
        (1 + 1e-2, "float32", False),
        (1 + 1e-2, "int8", True),
        (2, "int8", False),
    ],
)
def test_a_processor_that_computes_something_else_is_noticed(
    sound: dict[str, Path], tmp_path: Path, off: float, precision: str, is_right: bool
) -> None:
    said = open_runtime(sound[".onnx"]).measure(known_image((32, 32))[None])
    right = Known(float(said.scores[0]), float(said.maps.max()))
    for known in (right._replace(score=right.score * off), right._replace(peak=right.peak * off)):
        path = small_export(tmp_path / "m.onnx", CONFIG, known=known, precision=precision)
        if is_right:
            open_runtime(path)
            continue
        with pytest.raises(ModelFileError, match=r"computes 0\.\d+ where \d\.\d+ is right"):
            open_runtime(path)


CONSTANT = re.compile(r'<data element_type="f32" shape="([^"]*)" offset="(\d+)" size="(\d+)"')


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("shape", v) for v in ("-9223372036854775808", "1, -1, 1", "1", "9, 9, 9, 9", "x", "²")),
        *(("shape", f"{10**9}, {10**9}, {10**9}"), ("offset", 10**9), ("offset", -4)),
        *(("size", 10**6), ("size", 4), ("size", 10**30)),
    ],
)
def test_constants_that_do_not_fit_never_reach_openvino(
    sound: dict[str, Path], tmp_path: Path, field: str, value: object
) -> None:
    """It would read memory that is not its own, and some shapes end the whole process."""
    path = tmp_path / "m.xml"
    shutil.copy(sound[".xml"].with_suffix(".bin"), tmp_path)
    text = sound[".xml"].read_text(encoding="utf-8")
    constant = CONSTANT.search(text)
    assert constant
    changed = re.sub(f'{field}="[^"]*"', f'{field}="{value}"', constant[0])
    path.write_text(text.replace(constant[0], changed), encoding="utf-8")
    seal(path)
    with pytest.raises(ModelFileError, match=r"a constant in it does not fit its \.bin"):
        open_runtime(path)


def test_the_known_image_is_the_same_forever() -> None:
    image = known_image((32, 32))
    assert (image.shape, image.dtype) == ((3, 32, 32), np.float32)
    whole = np.rint(image * 255).astype(int)
    assert [int(plane.sum()) for plane in whole] == [86016, 113280, 127040]
    assert whole[:, 3, 5].tolist() == [0, 11, 54]
