"""Exported models, each run by its own runtime, say what the detector says."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from torch import Tensor, nn

from conftest import texture
from haloae.cli import main
from haloae.config import Config
from haloae.data.images import read_image
from haloae.data.views import resize
from haloae.deploy import export
from haloae.deploy.checks import seal
from haloae.deploy.engines import INPUT, METADATA_KEY
from haloae.deploy.export import check_target, export_model
from haloae.deploy.quantise import quantised, spoiled
from haloae.deploy.runtime import open_runtime
from haloae.detection.backend import Measured
from haloae.detector import Detector, fit_detector
from haloae.errors import ConfigError, ExportError, MissingExtraError, ModelFileError, OutputError
from haloae.network.weights import digest
from haloae.presets import preset

RELATIVE = 1e-4
"""Parity asked of scores and maps; the exporter itself allows 1e-3."""
KINDS = ("onnx", "openvino")
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}


@pytest.fixture(scope="module", autouse=True)
def _each_network_is_traced_once() -> Iterator[None]:
    """Tracing takes torch seconds, and gives formats and tests the same graph of one network."""
    trace = torch.onnx.export
    graphs: dict[tuple[str, torch.dtype], bytes] = {}

    def once(
        module: nn.Module, arguments: tuple[Tensor, ...], **options: object
    ) -> SimpleNamespace:
        key = digest(module.state_dict()), arguments[0].dtype
        if key not in graphs:
            graphs[key] = trace(module, arguments, **options).model_proto.SerializeToString()
        return SimpleNamespace(model_proto=onnx.ModelProto.FromString(graphs[key]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", once)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def native(good_paths: list[Path], tiny: Config, folder: Path) -> Detector:
    config = tiny.replace(
        training={"steps": 2},
        detection={"normalisation": "channel_difference", "top_share": 0.1},
    )
    detector = fit_detector(good_paths, config, name="textures", device="cpu").detector
    detector.save(folder / "model.safetensors")
    return detector


@pytest.fixture(scope="module")
def test_set(good_paths: list[Path], folder: Path) -> Path:
    """Three good images and two that are called bent."""
    for name, paths in (("good", good_paths[:3]), ("bent", good_paths[3:5])):
        (folder / "data" / "test" / name).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, folder / "data" / "test" / name)
    return folder / "data"


@pytest.fixture(scope="module", params=KINDS)
def exported(
    request: pytest.FixtureRequest,
    native: Detector,
    good_folder: Path,
    test_set: Path,
    folder: Path,
) -> Path:
    """Each format, exported once, by the command."""
    out = folder / f"model{SUFFIX[request.param]}"
    model = folder / "model.safetensors"
    command = ["export", str(model), "--format", request.param, "--out", str(out)]
    command += ["--good", str(good_folder), "--test", str(test_set), "--threads", "1"]
    with out.with_suffix(".txt").open("w") as shown, redirect_stdout(shown):
        assert main(command) == 0
    return out


def own(exported: Path, folder: Path) -> Path:
    """A copy that a test may change."""
    for file in exported.parent.glob("model.*"):
        if file.suffix in (exported.suffix, ".bin"):
            shutil.copy(file, folder)
    return folder / exported.name


def with_metadata(path: Path, text: str | None) -> Path:
    """Replace a file's metadata and seal it anew, as its user would."""
    if path.suffix == ".onnx":
        model = onnx.load(path)
        del model.metadata_props[:]
        if text is not None:
            onnx.helper.set_model_props(model, {METADATA_KEY: text})
        onnx.save(model, path)
        if text is not None:
            seal(path)
        return path
    fresh = path.with_name("changed.xml")
    if text is None:
        fresh.write_text(path.read_text().replace(f"<{METADATA_KEY} ", "<someone "))
        shutil.copy(path.with_suffix(".bin"), fresh.with_suffix(".bin"))
    else:
        model = openvino.Core().read_model(path)
        model.set_rt_info(text, [METADATA_KEY])
        openvino.save_model(model, fresh, compress_to_fp16=False)
    seal(fresh)
    return fresh


def metadata(path: Path) -> dict[str, Any]:
    return dict(json.loads(open_runtime(path).metadata.model_dump_json()))


@pytest.mark.parametrize("count", [1, 3])
def test_scores_and_maps_are_the_detector_s(
    native: Detector, exported: Path, good_paths: list[Path], count: int
) -> None:
    size = native.config.image_size
    images = np.stack([resize(read_image(path), size) for path in good_paths[:count]])
    images[0, :, 8:16, 8:16] = 1.0
    found = open_runtime(exported, threads=1).measure(images)
    wanted = native.measure(images)
    assert found.scores.shape == (count,)
    assert found.maps.shape == (count, size // 4, size // 4)
    assert found.scores == pytest.approx(wanted.scores, rel=RELATIVE)
    assert np.abs(found.maps - wanted.maps).max() <= RELATIVE * wanted.maps.max()


def test_p_values_are_inside_the_graph(
    native: Detector, exported: Path, good_paths: list[Path]
) -> None:
    size = native.config.image_size
    images = np.stack([resize(read_image(path), size) for path in good_paths])
    scores, p_values, _ = open_runtime(exported).run(images)
    wanted = [native.calibration.p_value(score) for score in scores.tolist()]
    assert len(set(wanted)) > 1
    assert p_values.tolist() == pytest.approx(wanted, abs=1e-7)


def test_predictions_are_the_detector_s(
    native: Detector, exported: Path, good_paths: list[Path]
) -> None:
    images: list[Path | np.ndarray] = [*good_paths, np.zeros((40, 40, 3), np.uint8)]
    loaded = Detector.load(exported)
    assert loaded.guard == native.guard
    for one, other in zip(loaded.predict(images), native.predict(images), strict=True):
        assert one.unusable == other.unusable
        assert one.score == pytest.approx(other.score, rel=RELATIVE)
        assert one.is_anomalous == other.is_anomalous
        assert one.anomaly_map.shape == other.anomaly_map.shape == (40, 40)
        assert np.allclose(one.anomaly_map, other.anomaly_map, rtol=1e-3, atol=1e-4)


def test_the_command_writes_the_same_predictions_without_torch(
    native: Detector, exported: Path, good_folder: Path, folder: Path, tmp_path: Path
) -> None:
    code = """
import sys
from haloae.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""
    out = tmp_path / "exported"
    arguments = ["predict", exported, good_folder, "--out", out, "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    model = folder / "model.safetensors"
    assert main(["predict", str(model), str(good_folder), "--out", str(tmp_path / "native")]) == 0
    one, other = (
        [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]
        for path in (out, tmp_path / "native")
    )
    assert [line.pop("score") for line in one] == pytest.approx(
        [line.pop("score") for line in other], rel=RELATIVE
    )
    # A good image that was held out has its own score among those counted: it may fall either way.
    assert [line.pop("p_value") for line in one] == pytest.approx(
        [line.pop("p_value") for line in other], abs=1 / 5 + 1e-9
    )
    assert one == other


def test_metadata_says_all_that_is_not_in_the_graph(native: Detector, exported: Path) -> None:
    values = metadata(exported)
    assert values["image_size"] == 32
    assert values["labels"] == ["normal", "anomalous"]
    assert (values["precision"], values["input_type"]) == ("float32", "float32")
    assert values["threshold"] == native.calibration.threshold.value
    assert values["pixel_threshold"] == native.calibration.pixel_threshold.value
    found = Detector.load(exported)
    assert found.config == native.config
    assert found.provenance == native.provenance
    assert found.calibration.scores == native.calibration.scores
    assert found.calibration.extrapolated == native.calibration.extrapolated


def test_a_threshold_is_changed_in_the_metadata_alone(
    exported: Path, good_paths: list[Path], tmp_path: Path
) -> None:
    values = metadata(exported)
    before = Detector.load(exported).predict(good_paths[0])
    values["threshold"], values["pixel_threshold"] = before.score / 2, 0.0
    changed = with_metadata(own(exported, tmp_path), json.dumps(values))
    after = Detector.load(changed).predict(good_paths[0])
    assert after.score == before.score
    assert (before.is_anomalous, after.is_anomalous) == (False, True)
    assert not after.extrapolated
    assert after.defects.sum() > before.defects.sum()


def test_onnx_is_one_file_that_names_its_values(native: Detector, exported: Path) -> None:
    files = {path.name for path in exported.parent.glob(f"{exported.stem}*")}
    if exported.suffix == ".xml":
        assert {"model.xml", "model.bin"} <= files
        return
    model = onnx.load(exported, load_external_data=False)
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.input] == [INPUT]
    assert [value.name for value in model.graph.output] == ["score", "p_value", "anomaly_map"]
    assert not any(node.metadata_props for node in model.graph.node)
    assert str(Path(export.__file__).parent).encode() not in exported.read_bytes()


def test_what_is_no_model_is_refused(exported: Path, tmp_path: Path) -> None:
    path = own(exported, tmp_path)
    whole = path.read_bytes()
    for damaged in (b"", b"not a model", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=rf"model\{path.suffix}: .*\.$"):
            open_runtime(path)
    path.unlink()
    with pytest.raises(ModelFileError, match="no such exported model"):
        open_runtime(path)
    path.mkdir()
    with pytest.raises(ModelFileError, match="no such exported model"):
        open_runtime(path)


def test_a_model_of_someone_else_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="not a model of haloae"):
        open_runtime(with_metadata(own(exported, tmp_path), None))


def test_metadata_that_does_not_fit_is_refused(exported: Path, tmp_path: Path) -> None:
    values = metadata(exported)
    for change, part in (
        ({"threshold": -1.0}, "not valid at threshold"),
        ({"format_version": 2}, "not valid at format_version"),
        ({"image_size": 64}, "two image sizes"),
        ({"input_type": "uint8"}, "inputs and outputs are not those of .* in uint8"),
        (
            {"image_size": 64, "config": {**values["config"], "image_size": 64}},
            "inputs and outputs are not those",
        ),
    ):
        path = with_metadata(own(exported, tmp_path), json.dumps({**values, **change}))
        with pytest.raises(ModelFileError, match=part):
            open_runtime(path)


def test_openvino_needs_both_files(exported: Path, tmp_path: Path) -> None:
    if exported.suffix == ".xml":
        path = own(exported, tmp_path)
        path.with_suffix(".bin").write_bytes(b"short")
        with pytest.raises(ModelFileError, match="seal does not match"):
            open_runtime(path)
        path.with_suffix(".bin").unlink()
        with pytest.raises(ModelFileError, match=r"model\.bin is not beside it"):
            open_runtime(path)


def test_a_runtime_that_is_not_installed(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, extra = {
        ".onnx": ("onnxruntime", "onnx"),
        ".xml": ("openvino", "openvino"),
    }[exported.suffix]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not.*haloae\[{extra}\]"):
        open_runtime(exported)


def test_only_the_cpu_is_offered(exported: Path) -> None:
    with pytest.raises(ConfigError, match="CPU"):
        open_runtime(exported, device="cuda")
    assert open_runtime(exported, device="cpu").metadata.image_size == 32


def test_what_stands_there_is_kept(
    exported: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = "onnx" if exported.suffix == ".onnx" else "openvino"
    target = tmp_path / exported.name
    last = target if kind == "onnx" else target.with_suffix(".bin")
    last.write_text("mine")
    command = ["export", str(folder / "model.safetensors"), "--format", kind, "--out", str(target)]
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert last.read_text() == "mine"
    check_target(target, format=kind, overwrite=True)
    with pytest.raises(ConfigError, match="must end in"):
        check_target(tmp_path / "model.pt", format=kind, overwrite=True)
    last.unlink()
    last.mkdir()
    with pytest.raises(OutputError):
        check_target(target, format=kind, overwrite=True)


def test_an_export_that_differs_is_not_written(
    native: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Detector.measure

    def off(self: Detector, images: np.ndarray) -> Measured:
        found = measure(self, images)
        return Measured(found.scores * 1.002, found.maps)

    monkeypatch.setattr(Detector, "measure", off)
    with pytest.raises(ExportError, match="not written"):
        export_model(native, tmp_path / "m.onnx", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_next_to_nothing_is_compared_in_units_of_good_images(
    native: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head may know the very images: of a score that is nearly 0 everything is a multiple."""
    measure = Detector.measure

    def nearly_nothing(self: Detector, images: np.ndarray) -> Measured:
        found = measure(self, images)
        return Measured(found.scores * 1e-9, found.maps * 1e-9)

    monkeypatch.setattr(Detector, "measure", nearly_nothing)
    with pytest.raises(ExportError) as refused:
        export_model(native, tmp_path / "m.onnx", format="onnx")
    score, grid = map(float, re.findall(r"\d\.\de[+-]\d+", str(refused.value)))
    # Textures unlike the good images score higher than these, but not a thousand times.
    assert 0.1 < score < 1000
    assert 0.1 < grid < 1000


@pytest.fixture(scope="module")
def fast(good_paths: list[Path]) -> Detector:
    """A preset, small: random weights are not what int8 is for."""
    config = preset("autoencoder").replace(image_size=96, training={"steps": 20, "batch_size": 2})
    return fit_detector(good_paths, config, name="textures", device="cpu").detector


@pytest.fixture(scope="module")
def int8(fast: Detector, good_paths: list[Path], folder: Path) -> Path:
    """Quantised, and taking whole pixels."""
    out = folder / "int8.xml"
    export_model(fast, out, format="openvino-int8", good=good_paths, input_type="uint8", threads=1)
    return out


def test_int8_computes_nearly_the_same(fast: Detector, int8: Path, good_paths: list[Path]) -> None:
    metadata = open_runtime(int8).metadata
    assert (metadata.precision, metadata.input_type) == ("int8", "uint8")
    found = Detector.load(int8, threads=1)
    assert found.engine.endswith("int8, float32")
    (pixels,) = openvino.Core().read_model(int8).inputs
    assert pixels.get_element_type() == openvino.Type.u8
    one, other = (np.array([p.score for p in d.predict(good_paths)]) for d in (found, fast))
    off = np.abs(one - other) / other
    assert 1e-4 < np.median(off) < 0.1


def is_quantised(operation: Any) -> bool:  # noqa: ANN401 - an operation of OpenVINO
    # Weights in integers are scaled before use.
    return bool(operation.input_value(1).get_node().get_type_name() == "Multiply")


def operations_of(model: openvino.Model, kind: str) -> list[Any]:
    return [o for o in model.get_ordered_ops() if o.get_type_name() == kind]


def test_int8_is_of_the_network_and_of_nothing_that_is_compared(int8: Path) -> None:
    model = openvino.Core().read_model(int8)
    convolutions = operations_of(model, "Convolution")
    exact = [convolution for convolution in convolutions if not is_quantised(convolution)]
    # The first sees the pixels, two smooth the map, and those in between make what is compared:
    # three taps of the features, and the decoder's last with its skip.
    assert len(exact) == 1 + 3 + 2 + 2
    assert convolutions[0] in exact
    assert len(convolutions) > 3 * len(exact)


def test_int8_leaves_attention_alone(exported: Path, good_paths: list[Path]) -> None:
    if exported.suffix == ".onnx":
        return
    images = np.stack([resize(read_image(path), 32) for path in good_paths])
    model = quantised(openvino.Core().read_model(exported), images)
    assert any(is_quantised(o) for o in operations_of(model, "Convolution"))
    products = operations_of(model, "MatMul")
    assert len(products) >= 10
    inputs = [value.get_node() for o in products for value in o.input_values()]
    assert "FakeQuantize" not in {node.get_type_name() for node in inputs}


@pytest.mark.slow
def test_int8_leaves_what_was_learned_of_good_images_in_float32(
    good_paths: list[Path], tmp_path: Path
) -> None:
    """The memory, the map and the Gaussians of the head `halo` are as they were fitted."""
    config = preset("default").replace(image_size=64)
    assert config.detection.head == "halo"
    detector = Detector.fit(good_paths, config=config, device="cpu")
    out = tmp_path / "int8.xml"
    export_model(detector, out, format="openvino-int8", good=good_paths, threads=1)
    model = openvino.Core().read_model(out)
    convolutions = [is_quantised(o) for o in operations_of(model, "Convolution")]
    assert convolutions.count(True) > 2 * convolutions.count(False) > 0
    products = operations_of(model, "MatMul")
    assert len(products) == 4  # whitening, keys, the map back, the Gaussians
    for product in products:
        assert not is_quantised(product)
        inputs = {value.get_node().get_type_name() for value in product.input_values()}
        assert "FakeQuantize" not in inputs
    found = Detector.load(out, threads=1)
    spotted = texture(60)
    spotted[10:26, 8:24] = (255, 0, 0)
    pictures = [*(texture(seed) for seed in range(50, 58)), spotted]
    one, other = (np.array([p.score for p in d.predict(pictures)]) for d in (found, detector))
    assert 1e-4 < np.median(np.abs(one - other) / other) < 0.1
    assert one.argmax() == other.argmax() == len(pictures) - 1


def test_int8_sees_more_than_good_images() -> None:
    images = np.full((4, 3, 32, 32), 100, np.uint8)
    copies = spoiled(images)
    assert (copies.dtype, copies.shape) == (images.dtype, images.shape)
    assert (images == 100).all()
    for image in copies:
        assert 0.005 < (image != 100).mean() < 1
    assert (copies.min(), copies.max()) == (0, 255)
    assert (copies == spoiled(images)).all()
    as_floats = spoiled(images.astype(np.float32) / 255)
    assert (as_floats.min(), as_floats.max()) == (0, 1)


def test_int8_needs_good_images_and_its_package(
    native: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.xml"
    with pytest.raises(ConfigError, match="--good"):
        export_model(native, out, format="openvino-int8")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingExtraError, match=r"nncf is not.*haloae\[int8\]"):
        quantised(openvino.Model([], []), np.zeros((1, 3, 32, 32), np.float32))
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_is_for_those_who_ask(
    native: Detector, exported: Path, good_paths: list[Path]
) -> None:
    if exported.suffix == ".onnx":
        with pytest.raises(ConfigError, match="float32"):
            open_runtime(exported, precision="bfloat16")
        return
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ConfigError, match="no bfloat16"):
            open_runtime(exported, precision="bfloat16")
        return
    found = Detector.load(exported, precision="bfloat16", threads=1)
    assert found.engine.endswith(", bfloat16")
    wanted = native.predict(good_paths[0]).score
    assert found.predict(good_paths[0]).score == pytest.approx(wanted, rel=0.15)


def test_the_command_measures_before_and_after(exported: Path) -> None:
    shown = exported.with_suffix(".txt").read_text()
    assert "run on 8 good images" in shown
    (line,) = [line for line in shown.splitlines() if "image_auroc" in line]
    _, before, after = line.split()
    assert before == after
    assert 0 <= float(before) <= 1


def test_an_export_is_evaluated_like_its_detector(
    exported: Path, test_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "measured"
    (exported.parent / "losses.csv").write_text("step,of somebody else\n1,7.5\n2,6.5\n")
    command = ["evaluate", str(exported), str(test_set), "--out", str(out), "--threads", "1"]
    assert main(command) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["engine"].startswith("onnx" if exported.suffix == ".onnx" else "openvino")
    report = (out / "report.html").read_text()
    assert metrics["engine"] in report
    assert "of somebody else" not in report
