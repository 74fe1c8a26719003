"""The attacks on model files, exports and the camera, by the rows that they count in."""

import json
import os
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from benchmarks.guard import WAYS

import tiny_trunk  # noqa: F401 - registers the trunk of the models
from conftest import PLAIN, texture
from faults.campaign import Attack, Run
from faults.damage import damaged, generator
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
    small_graph,
)
from faults.pictures import ATTACKS_ON_IMAGES, sentence
from haloae.config import Config
from haloae.demo_set.pictures import make_picture
from haloae.deploy.checks import seal
from haloae.detector import Detector
from haloae.errors import HaloaeError, ImageError

MODELS = ("autoencoder.safetensors", "features.safetensors")
EXPORTS = ("one.onnx", "pair.xml")
LATE = 2.0
"""Most seconds of processor time to load a small model and ask it once."""
PICTURE = texture(1)
FITTED = 30
Said = tuple[float, bytes]


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


def said_by(path: Path) -> Said:
    """What a model file makes of a picture: one answer, in time, whatever is in it."""
    start = time.process_time()
    found = Detector.load(path, device="cpu", threads=1).predict(PICTURE)
    taken = time.process_time() - start
    assert taken < LATE, f"took {taken:.1f} s"
    assert 0 <= found.score < np.inf, f"a score of {found.score}"
    assert np.isfinite(found.anomaly_map).all(), "a map that is not finite"
    return found.score, found.anomaly_map.tobytes()


def refused_or(find: Callable[[], object], right: object = None) -> str:
    """How a question ends: a sentence, the right answer, or, if none is given, any other."""
    try:
        found = find()
    except HaloaeError as error:
        return sentence(error)
    if right is None:
        return "another answer"
    assert found == right, "a wrong answer"
    return "the same answer"


# Native model files


def of_model(ground: Path, *, name: str, change: Callable[..., bytes], is_same: bool) -> Run:
    """Changes a model file, each number in one way, and asks it."""
    sound = [(ground / model).read_bytes() for model in MODELS]
    right = [said_by(ground / model) for model in MODELS] if is_same else [None, None]
    path = ground / f"{name}.safetensors"

    def run(number: int) -> str:
        path.write_bytes(change(sound[number % 2], generator(name, number)))
        return refused_or(lambda: said_by(path), right[number % 2])

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


# Exports


def sealed(ground: Path, *, name: str) -> Run:
    """Damage to a sealed export, or to the file beside it."""
    sound = ground / name
    files = [path for path in (sound, sound.with_suffix(".bin")) if path.exists()]
    right = said_by(sound)
    path = ground / f"damaged{sound.suffix}"

    def run(number: int) -> str:
        hit = files[number % len(files)]
        for file in files:
            data = file.read_bytes()
            changed = damaged(data, generator(name, number)) if file == hit else data
            path.with_suffix(file.suffix).write_bytes(changed)
        return refused_or(lambda: said_by(path), right)

    return run


def resealed(ground: Path, *, name: str) -> Run:
    """Damage that is sealed again, as by somebody who means it."""
    sound = ground / name
    path = ground / f"resealed{sound.suffix}"

    def run(number: int) -> str:
        rng = generator(f"resealed {name}", number)
        if sound.suffix == ".xml":
            path.with_suffix(".bin").write_bytes(sound.with_suffix(".bin").read_bytes())
        hit = path.with_suffix(".bin") if sound.suffix == ".xml" and rng.random() < 0.3 else path
        path.write_bytes(sound.read_bytes())
        hit.write_bytes(damaged(hit.read_bytes(), rng))
        try:
            seal(path)
        except HaloaeError:
            return "cannot be sealed"
        return refused_or(lambda: said_by(path))

    return run


PLACES = ("/etc/passwd", "../outside.bin", "pipe", "/dev/zero")


def external(ground: Path) -> Run:
    """Weights that an .onnx looks for in another file."""
    folder = ground / "external"
    folder.mkdir(exist_ok=True)
    (ground / "outside.bin").write_bytes(bytes(2**16))
    if not (folder / "pipe").exists():
        os.mkfifo(folder / "pipe")

    def run(number: int) -> str:
        model = small_graph(PLAIN.replace(image_size=32))
        weights = model.graph.initializer[0]
        size = len(weights.raw_data)
        weights.ClearField("raw_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", PLACES[number]), ("offset", "0"), ("length", str(size))):
            weights.external_data.add(key=key, value=value)
        path = folder / "m.onnx"
        sound = onnx.load(ground / EXPORTS[0])
        model.metadata_props.extend(sound.metadata_props)
        path.write_bytes(model.SerializeToString())
        seal(path)
        word = refused_or(lambda: said_by(path))
        assert word == "refused", "weights of another file were read"
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
    **ATTACKS_ON_IMAGES,
    "camera": Attack("a camera covered, moved, out of focus, lit otherwise", 100, 0, camera),
    "arrays": Attack("arrays that are no images", 22, 22, arrays),
}
