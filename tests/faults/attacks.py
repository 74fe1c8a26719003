"""The attacks on model files and the camera, and all there are, by the rows that they count in."""

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.guard import WAYS

import tiny_trunk  # noqa: F401 - registers the trunk of the models
from conftest import PLAIN
from faults.campaign import Attack, Run
from faults.damage import damaged, generator
from faults.exports import (
    EXPORTS,
    PICTURE,
    external,
    int8,
    refused_or,
    resealed,
    said_by,
    sealed,
)
from faults.models import (
    Change,
    changed,
    filled,
    hostile_headers,
    opened,
    put,
    renamed,
    reshaped,
    retyped,
    small_export,
)
from faults.pictures import ATTACKS_ON_IMAGES, sentence
from faults.sets import HEADS, SETS, training
from haloae.config import Config
from haloae.demo_set.pictures import make_picture
from haloae.detector import Detector
from haloae.errors import ImageError

MODELS = ("autoencoder.safetensors", "features.safetensors")
FITTED = 30


def prepare(folder: Path, tiny: Config, good: list[Path]) -> None:
    """Write the sound files of attacks into a folder."""
    networks: tuple[dict[str, Any], ...] = (
        {"network": {"image_decoder": [4]}, "detection": {"image_weight": 0.5}},
        {"network": {"autoencoder": False}, "detection": {"head": "halo"}},
    )
    for name, changes in zip(MODELS, networks, strict=True):
        config = tiny.replace(training={"steps": 1}, **changes)
        Detector.fit(good, config=config, device="cpu").save(folder / name)
    for name in EXPORTS:
        small_export(folder / name, PLAIN.replace(image_size=32))


# Native model files


def of_model(
    ground: Path, *, name: str, change: Callable[..., bytes], is_same: bool, device: str = "cpu"
) -> Run:
    """Changes a model file, each number in one way, and asks it."""
    sound = [(ground / model).read_bytes() for model in MODELS]
    right = [said_by(ground / model, device) for model in MODELS] if is_same else [None, None]
    path = ground / f"{name}.safetensors"

    def run(number: int) -> str:
        path.write_bytes(change(sound[number % 2], generator(name, number)))
        return refused_or(lambda: said_by(path, device), right[number % 2])

    return run


def raw(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage of any kind: to all bytes, to the header's, to what it says of a tensor."""
    (length,) = struct.unpack("<Q", data[:8])
    text, body = data[8 : 8 + length], data[8 + length :]
    way = rng.integers(4)
    if way == 0:
        return damaged(data, rng)
    if way == 1:
        text = damaged(text, rng)
    else:
        values = json.loads(text)
        names = [name for name in values if name != "__metadata__"]
        chosen = names[rng.integers(len(names))]
        entry = dict(values[chosen])
        place = ("dtype", "shape", "data_offsets")[rng.integers(3)]
        others = ("F16", "I8", "BOOL", [1], [0, 2**40], [2**63, 2**63], [], "", None, -1)
        entry[place] = others[rng.integers(len(others))]
        text = json.dumps({**values, chosen: entry}).encode()
        if way == 3:  # a key given twice
            text = json.dumps({chosen: entry}).encode()[:-1] + b"," + data[9 : 8 + length]
    return struct.pack("<Q", len(text)) + text + body


def header(data: bytes, rng: np.random.Generator) -> bytes:
    """A value of the header is another; the checksum is right."""
    return next(hostile_headers(data, 1, int(rng.integers(2**31))))[1]


def tensor(data: bytes, rng: np.random.Generator) -> bytes:
    """A tensor is another; the checksum is right."""
    names = sorted(opened(data)[1])
    name, other = (names[place] for place in rng.integers(len(names), size=2))
    dtypes = ("float16", "float64", "uint8", "int8", "uint16", "int64", "bool", "complex64")
    shapes = ((), (0,), (1,), (8, 1, 1), (3, 3, 3, 3), (1, 100_000))
    is_float = opened(data)[1][name].dtype.kind == "f"
    fills = (
        (-1.0, 0.0, 255.0)
        if not is_float
        else (np.nan, np.inf, -np.inf, -1.0, 0.0, 1e-45, 1e30, -3e38)
    )
    changes: tuple[Change, ...] = (
        retyped(name, dtypes[rng.integers(len(dtypes))]),
        reshaped(name, shapes[rng.integers(len(shapes))]),
        filled(name, fills[rng.integers(len(fills))], int(10 ** rng.uniform(0, 4))),
        renamed(name, None),
        renamed(name, f"{name}.more"),
        renamed(name, other),
        lambda _, tensors: tensors.update(extra=np.zeros(3)),
        lambda _, tensors: tensors.update({name: tensors[other].copy()}),
    )
    with np.errstate(all="ignore"):
        return changed(data, changes[rng.integers(len(changes))])


WIDE = {"channels": 4096, "inner": 4096, "kernel": 7, "heads": 256}
WORK: tuple[tuple[tuple[Any, ...], object], ...] = (
    (("network", "encoder"), [{"channels": 1}] * 20_000),
    (("network", "encoder"), [WIDE] * 16),
    (("network", "decoder"), [*[WIDE] * 15, {}]),
    (("network", "image_decoder"), [4096] * 16),
    (("network", "image_decoder"), [5000] * 4),
    (("network", "head_channels"), 4096),
    (("network", "reduced_channels"), 2**20),
    (("network", "attention"), {"mode": "halo", "block": 256, "halo": 256, "head_dim": 256}),
    (("network", "attention"), {"mode": "halo", "block": 10**9}),
    (("network", "attention"), {"mode": "halo", "halo": 10**9}),
    (("network", "attention"), {"mode": "halo", "heads": 10**6}),
    (("network", "attention"), {"mode": "halo", "head_dim": 10**7}),
    (("image_size",), 4096),
    (("network", "trunk"), "vgg19"),
)


def work(ground: Path) -> Run:
    """Settings that would take much time or memory to build are refused before that."""
    path = ground / "work.safetensors"
    sound = (ground / MODELS[0]).read_bytes()

    def run(number: int) -> str:
        place, value = WORK[number]
        path.write_bytes(changed(sound, lambda values, _: put(values["config"], place, value)))
        word = refused_or(lambda: said_by(path))
        assert word == "refused", "it was built"
        return word

    return run


# What the camera sees


def camera(_: Path) -> Run:
    """A camera that is covered, defocused, moved or lit otherwise: never *normal*."""
    pictures = [make_picture("board", None, (number,)).pixels for number in range(FITTED + 10)]
    config = PLAIN.replace(
        image_size=192,
        backbone="random",
        network={
            "trunk": "tiny",
            "autoencoder": False,
            "classifier": False,
            "reduced_channels": 8,
        },
        detection={"head": "gaussian"},
    )
    detector = Detector.fit(pictures[:FITTED], config=config, device="cpu")
    ways = [way for name, way in WAYS.items() if name != "as it is"]

    def run(number: int) -> str:
        spoilt = ways[number % len(ways)](pictures[FITTED + number // len(ways)])
        verdict = detector.predict(np.ascontiguousarray(spoilt)).verdict
        assert verdict != "normal", f"way {number % len(ways)} is normal"
        return verdict

    return run


def arrays(ground: Path) -> Run:
    """Arrays that are no images, or hold what is no value."""
    detector = Detector.load(ground / MODELS[1], device="cpu")
    sound = PICTURE.astype(np.float32) / 255
    wrong: tuple[object, ...] = (
        *(np.where(PICTURE > 0, value, sound) for value in (np.nan, np.inf, -np.inf, 2.0, -1.0)),
        *(PICTURE.astype(kind) for kind in ("int8", "int64", "uint32", "complex64", "S1", "O")),
        *(np.zeros(shape, np.uint8) for shape in ((3, 40, 40), (0, 4, 3), (4,), (4, 4, 2), ())),
        *(None, 1, b"", "", [1, 2], np.ma.masked_array(PICTURE, PICTURE > 0)),
    )

    def run(number: int) -> str:
        try:
            detector.predict(wrong[number % len(wrong)])
        except ImageError as error:
            return sentence(error)
        raise AssertionError(f"{wrong[number % len(wrong)]!r:.40} was judged")

    return run


NATIVE = "model files: "
ATTACKS: dict[str, Attack] = {
    "damaged model files": Attack(
        NATIVE + "raw damage", 1900, 24, partial(of_model, name="raw", change=raw, is_same=True)
    ),
    "hostile headers": Attack(
        NATIVE + "header values, checksum made anew",
        2328,
        12,
        partial(of_model, name="header", change=header, is_same=False),
    ),
    "hostile tensors": Attack(
        NATIVE + "tensors, checksum made anew",
        410,
        12,
        partial(of_model, name="tensor", change=tensor, is_same=False),
    ),
    "work in headers": Attack(NATIVE + "work and memory in a header", len(WORK), 2, work),
    "damaged .onnx": Attack(".onnx, damaged", 200, 20, partial(sealed, name=EXPORTS[0])),
    "damaged .xml and .bin": Attack(
        "OpenVINO .xml and .bin, damaged", 200, 10, partial(sealed, name=EXPORTS[1])
    ),
    "resealed .onnx": Attack(
        "exports, damaged and sealed anew", 150, 0, partial(resealed, name=EXPORTS[0])
    ),
    "resealed .xml and .bin": Attack(
        "exports, damaged and sealed anew", 150, 0, partial(resealed, name=EXPORTS[1])
    ),
    "weights in other files": Attack(".onnx, weights in another file", 4, 2, external),
    "damaged int8": Attack("OpenVINO in int8, damaged", 100, 0, int8),
    "resealed int8": Attack(
        "exports, damaged and sealed anew", 50, 0, partial(int8, attack=resealed)
    ),
    **ATTACKS_ON_IMAGES,
    "camera": Attack("a camera covered, moved, out of focus, lit otherwise", 100, 0, camera),
    "arrays": Attack("arrays that are no images", 22, 22, arrays),
    "training sets": Attack("good images that are hardly any", len(SETS) * len(HEADS), 7, training),
}
