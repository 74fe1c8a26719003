"""A trunk, a kind of attention, a head and an export from outside, as CONTRIBUTING.md says."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import texture
from haloae import Config, ConfigError, Detector
from haloae.deploy.engines import METADATA_KEY
from haloae.deploy.export import EXPORTS, Export, export_model, register_export
from haloae.deploy.runtime import Metadata
from haloae.detection.heads import HEADS, Head, Seen, register_head
from haloae.network.attention import ATTENTION, Attention, register_attention
from haloae.network.haloae import HaloAEOutput
from haloae.network.trunks import TRUNKS, Tap, Trunk, register_trunk


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.Conv2d(3, 6, 4, stride=4)

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        yield self.edges(x).relu()


class RowMean(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1, keepdim=True).expand_as(x)


class FromMean(Head):
    """Squared distance of the features to their mean on good images."""

    mean: Tensor

    def __init__(self, mean: Tensor, images: int) -> None:
        super().__init__()
        self.images = images
        self.register_buffer("mean", mean)

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        features = [output.features for output, _ in seen()]
        return cls(torch.cat(features).mean(0).clone(), len(features))

    @classmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        return cls(tensors["mean"], images)

    def without(self, seen: Seen, index: int) -> "FromMean":
        others = self.mean * self.images - seen.output.features[0]
        return FromMean(others / (self.images - 1), self.images - 1)

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        return (output.features - self.mean).square().mean(1)


def write(model: Any, metadata: Metadata, images: np.ndarray, path: Path) -> None:  # noqa: ANN401
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata.model_dump_json()
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def _registered() -> Iterator[None]:
    tables: list[dict[str, Any]] = [TRUNKS, ATTENTION, HEADS, EXPORTS]
    before = [dict(table) for table in tables]
    register_trunk("mine", Trunk(build=Layers, taps=(Tap("edges", 6, 4),)))
    register_attention("row_mean")(RowMean)
    register_head("from_mean")(FromMean)
    register_export("mine", Export((".onnx",), tolerance=1e-3, write=write))
    yield
    for table, names in zip(tables, before, strict=True):
        table.clear()
        table.update(names)


@pytest.fixture(scope="module")
def detector(_registered: None, good_folder: Path, tiny: Config) -> Detector:
    config = tiny.replace(
        network={"trunk": "mine", "reduced_channels": 4, "attention": {"mode": "row_mean"}},
        detection={"head": "from_mean", "top_share": 0.05},
    )
    return Detector.fit(good_folder, config=config, device="cpu")


def test_one_of_each_from_outside_is_fitted_saved_loaded_and_exported(
    detector: Detector, tmp_path: Path
) -> None:
    assert isinstance(detector.network.encoder.blocks[0].get_submodule("attention"), RowMean)
    bad = texture(100)
    bad[8:20, 20:32] = (250, 40, 250)
    good_score, bad_score = (found.score for found in detector.predict([texture(50), bad]))
    assert bad_score > good_score

    detector.save(tmp_path / "mine.safetensors")
    loaded = Detector.load(tmp_path / "mine.safetensors", device="cpu")
    assert isinstance(loaded.head, FromMean)
    assert loaded.predict(bad).score == bad_score

    parity = export_model(loaded, tmp_path / "mine.onnx", format="mine", threads=1)
    assert parity.score < 1e-4
    exported = Detector.load(tmp_path / "mine.onnx", threads=1)
    assert exported.predict(bad).score == pytest.approx(bad_score, rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"trunk": "yours"}},
        {"network": {"attention": {"mode": "yours"}}},
        {"detection": {"head": "yours"}},
    ],
)
def test_what_is_in_no_table_is_refused_with_what_is(
    changes: dict[str, Any], good_folder: Path, tiny: Config
) -> None:
    with pytest.raises(ConfigError, match=r"'yours'.*(resnet18|halo|autoencoder)"):
        Detector.fit(good_folder, config=tiny.replace(**changes), device="cpu")


def test_an_export_that_is_in_no_table_is_refused(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'yours'.*onnx, openvino"):
        export_model(detector, tmp_path / "m.onnx", format="yours")
