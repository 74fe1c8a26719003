"""The attacks on exports, and how any model file is asked."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from conftest import PLAIN, texture
from faults.campaign import Run
from faults.damage import damaged, generator
from faults.models import small_graph
from faults.pictures import sentence
from haloae.deploy.checks import seal
from haloae.deploy.export import export_model
from haloae.detector import Detector
from haloae.errors import HaloaeError

EXPORTS = ("one.onnx", "pair.xml")
INT8 = "int8.xml"
LATE = 2.0
"""Most seconds of processor time to load a small model and ask it once."""
PICTURE = texture(1)
Said = tuple[float, bytes]


def said_by(path: Path, device: str = "cpu") -> Said:
    """What a model file makes of a picture: one answer, in time, whatever is in it."""
    start = time.process_time()
    found = Detector.load(path, device=device, threads=1).predict(PICTURE)
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


def int8(ground: Path, *, attack: Callable[..., Run] = sealed) -> Run:
    """The same of an export in int8, whose integers are not those of other exports."""
    if not (ground / INT8).exists():
        good = [ground / f"good-{number}.png" for number in range(8)]
        for number, path in enumerate(good):
            Image.fromarray(texture(number)).save(path)
        model = Detector.load(ground / "features.safetensors", device="cpu")
        export_model(model, ground / INT8, format="openvino-int8", good=good, threads=1)
    return attack(ground, name=INT8)
