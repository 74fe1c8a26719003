"""Whatever a runtime does, in whichever thread, is a right answer or a sentence."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from conftest import PLAIN
from faults.models import small_export, small_graph, with_text
from haloae import Config, Detector
from haloae.cli import main
from haloae.deploy.checks import seal
from haloae.deploy.runtime import open_runtime
from haloae.detection.backend import Backend
from haloae.detection.heads import Seen, head_named
from haloae.detection.native import Native
from haloae.errors import HaloaeError, ImageError, MissingExtraError, ModelFileError
from haloae.network.haloae import HaloAE

CONFIG = PLAIN.replace(image_size=32)
THREADS, EACH = 8, 50
Node = onnx.NodeProto


def backend(kind: str, tiny: Config, folder: Path) -> Backend:
    if kind != "torch":
        return open_runtime(small_export(folder / f"m{kind}", CONFIG), threads=1)
    network = HaloAE(tiny.network, image_size=32, weights="random").eval()
    images = torch.rand(2, 1, 3, 32, 32)
    with torch.no_grad():
        seen = [Seen(network(image), image) for image in images]
    return Native(tiny, network, head_named(tiny.detection.head).fit(tiny, lambda: seen))


@pytest.mark.parametrize("kind", [".onnx", ".xml", "torch"])
def test_eight_threads_say_what_one_says(kind: str, tiny: Config, tmp_path: Path) -> None:
    measuring = backend(kind, tiny, tmp_path)
    images = np.random.default_rng(0).random((THREADS, EACH, 1, 3, 32, 32), np.float32)

    def measured(some: np.ndarray) -> list[tuple[float, bytes]]:
        found = [measuring.measure(image) for image in some]
        return [(float(scores[0]), maps.tobytes()) for scores, maps in found]

    one = [measured(some) for some in images]
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(measured, images)) == one
    assert len({score for some in one for score, _ in some}) == THREADS * EACH


def node(kind: str, inputs: Sequence[str], output: str, **attributes: object) -> Node:
    return helper.make_node(kind, inputs, [output], **attributes)


SOUND = {
    "score": node("Identity", ["means"], "score"),
    "p_value": node("Identity", ["ones"], "p_value"),
    "anomaly_map": node("Identity", ["cells"], "anomaly_map"),
}
WRONG: dict[str, Node] = {
    "twice as many": node("Concat", ["means", "means"], "score", axis=0),
    "of one more axis": node("Unsqueeze", ["means", "axis"], "score"),
    "of type string": node("Cast", ["means"], "score", to=TensorProto.STRING),
    "of type double": node("Cast", ["means"], "score", to=TensorProto.DOUBLE),
    "cannot be computed": node("Reshape", ["means", "axes"], "score"),
    "a map of another size": node("Concat", ["cells", "cells"], "anomaly_map", axis=2),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_outputs_that_are_none_are_refused(name: str, suffix: str, tmp_path: Path) -> None:
    wrong = WRONG[name]
    graph = small_graph(CONFIG, *(SOUND | {wrong.output[0]: wrong}).values())
    path = small_export(tmp_path / f"m{suffix}", CONFIG, graph)
    with pytest.raises(ModelFileError, match=rf"m\{suffix}: .*\.$") as refused:
        Detector.load(path, threads=1).predict(np.zeros((40, 40, 3), np.uint8))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("output", "wrong"),
    [
        ("score", node("Neg", ["means"], "score")),
        ("score", node("Log", ["zeros"], "score")),
        ("score", node("Sqrt", ["below"], "score")),
        ("anomaly_map", node("Log", ["empty"], "anomaly_map")),
    ],
)
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_no_number_is_normal(output: str, wrong: Node, suffix: str, tmp_path: Path) -> None:
    made = {
        "zeros": node("Sub", ["means", "means"], "zeros"),
        "below": node("Neg", ["ones"], "below"),
        "empty": node("Sub", ["cells", "cells"], "empty"),
    }
    graph = small_graph(CONFIG, *made.values(), *(SOUND | {output: wrong}).values())
    path = small_export(tmp_path / f"m{suffix}", CONFIG, graph)
    found = next(Detector.load(path, threads=1).stream([np.full((40, 40, 3), 90, np.uint8)]))
    assert isinstance(found, ImageError)
    assert f"the image: {path} gives it" in str(found)


def test_no_line_of_predictions_holds_what_is_no_number(good_folder: Path, tmp_path: Path) -> None:
    wrong = node("Log", ["zeros"], "score")
    zeros = node("Sub", ["means", "means"], "zeros")
    graph = small_graph(CONFIG, zeros, *(SOUND | {"score": wrong}).values())
    model, out = small_export(tmp_path / "m.onnx", CONFIG, graph), tmp_path / "out"
    command = ["predict", str(model), str(good_folder), "--out", str(out), "--threads", "1"]
    assert main([*command, "--overlays", "none"]) == 1
    text = (out / "predictions.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 12
    assert all(line["score"] is None and line["is_anomalous"] is None for line in lines)
    assert all(
        f"{line['path']}: {model} gives it a score of -inf" in line["error"] for line in lines
    )
    assert main([*command, "--overwrite", "--strict"]) == 2


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    for suffix in (".onnx", ".xml"):
        made = small_export(tmp_path / f"m{suffix}", CONFIG)
        path = Path(os.fsdecode(b"%s/\xff%s" % (os.fsencode(tmp_path), suffix.encode())))
        made.rename(path)
        if suffix == ".xml":
            made.with_suffix(".bin").rename(path.with_suffix(".bin"))
        image = np.full((40, 40, 3), 90, np.uint8)
        assert 0 < Detector.load(path, threads=1).predict(image).score < 1


@pytest.mark.parametrize("old", [b"image", b"anomaly_map", b"batch"])
def test_names_in_a_graph_that_are_not_utf_8(
    old: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = small_export(tmp_path / "m.onnx", CONFIG)
    path.write_bytes(path.read_bytes().replace(old, b"\xff" + old[1:]))
    seal(path)
    with pytest.raises(ModelFileError):
        open_runtime(path)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("value", ["[" * 100_000, "1" * 5000, "1e999", "NaN"])
def test_metadata_that_no_reader_likes(value: str, tmp_path: Path) -> None:
    sound = small_export(tmp_path / "m.onnx", CONFIG)
    path = with_text(sound, '"threshold":0.5', f'"threshold":{value}')
    with pytest.raises(ModelFileError, match="its metadata is not valid"):
        open_runtime(path)


def test_a_runtime_that_is_broken_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_export(tmp_path / "m.onnx", CONFIG)

    def broken(name: str) -> None:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(MissingExtraError, match=r"onnxruntime cannot be imported \(libgomp"):
        open_runtime(path)
    assert issubclass(MissingExtraError, HaloaeError)
