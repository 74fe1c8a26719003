"""The heads that look at features: against loops, without an image, kept in a file, exported."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import PLAIN, texture
from haloae.config import Config
from haloae.data.images import read_image
from haloae.data.views import resize
from haloae.deploy.export import export_model
from haloae.detection import good as good_module
from haloae.detection.good import measure_good, measure_seen
from haloae.detection.heads import Head, Seen, head_named
from haloae.detection.heads import gaussian as gaussian_module
from haloae.detection.heads import halo as halo_module
from haloae.detection.heads import nearest as nearest_module
from haloae.detection.heads import nearest_halo as nearest_halo_module
from haloae.detection.heads.autoencoder import AutoencoderHead
from haloae.detection.heads.base import MANY, features_of
from haloae.detection.heads.halo import HaloHead
from haloae.detection.heads.moments import NEAR
from haloae.detection.heads.nearest import NearestHead
from haloae.detection.heads.nearest_halo import BLOCK, Memory, NearestHaloHead, blocks_of
from haloae.detection.model_file import read_model, write_model
from haloae.detection.scorer import judge
from haloae.detector import Detector, check_names
from haloae.errors import ConfigError, DataError, ModelFileError
from haloae.network.haloae import HaloAEOutput
from oracles import (
    attended_by_loops,
    gaussian_map_by_loops,
    nearest_halo_map_by_loops,
    nearest_map_by_loops,
    rebuilding_map_by_loops,
)

HEADS = ("gaussian", "nearest", "nearest_halo", "halo")
CHANNELS = 8
HALF = 2e-3
"""Relative: what is kept has 11 bits, 5e-4 each, of which a distance adds up a few."""


def config_of(head: str, *, side: int = 6) -> Config:
    return PLAIN.replace(
        image_size=8 * side,
        network={"stride": 8, "reduced_channels": CHANNELS, "autoencoder": False},
        detection={"head": head},
    )


def drawn(count: int, *, side: int = 6, seed: int = 0) -> Tensor:
    """Features whose places have means of their own and whose channels go together."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(99))
    means = torch.randn(CHANNELS, side, side, generator=torch.Generator().manual_seed(98))
    noise = torch.randn(count, CHANNELS, side, side, generator=generator)
    return means + 0.7 * torch.einsum("cd,ndhw->nchw", mixing, noise)


def output_of(features: Tensor) -> HaloAEOutput:
    return HaloAEOutput(features, features, None, None)


def seeing(features: Tensor) -> Callable[[], Iterator[Seen]]:
    return lambda: (Seen(output_of(each[None]), torch.zeros(1, 3, 8, 8)) for each in features)


def fitted(name: str, good: Tensor) -> Head:
    return head_named(name).fit(config_of(name, side=good.shape[-1]), seeing(good))


def map_of(head: Head, features: Tensor) -> Tensor:
    return head(output_of(features), torch.zeros(len(features), 3, 8, 8)).double()


def assert_near(found: Tensor, wanted: Tensor, *, rel: float = HALF) -> None:
    torch.testing.assert_close(found, wanted, rtol=rel, atol=rel * wanted.max().item())


def shared_covariance(good: Tensor) -> Tensor:
    """Of all places, each about its own mean."""
    centred = (good - good.mean(0)).double().movedim(1, -1).flatten(0, 2)
    places = good.shape[2] * good.shape[3]
    covariance = centred.T @ centred / (places * (len(good) - 1))
    return covariance + nearest_halo_module.RIDGE * torch.eye(good.shape[1])


def halo_by_loops(features: Tensor, memory: Tensor, covariance: Tensor) -> Tensor:
    return nearest_halo_map_by_loops(features, memory, covariance, block=BLOCK, halo=BLOCK)


# Maps, against loops


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("side", [4, 6, 5])
def test_gaussian_equals_a_loop(batch: int, side: int) -> None:
    good, features = drawn(20, side=side), drawn(batch, side=side, seed=1)
    wanted = gaussian_map_by_loops(
        features, good, ridge=gaussian_module.RIDGE, denominator=len(good) - 1
    )
    assert_near(map_of(fitted("gaussian", good), features), wanted)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("side", [4, 5])
def test_nearest_equals_a_loop(batch: int, side: int) -> None:
    good, features = drawn(9, side=side), drawn(batch, side=side, seed=1)
    assert_near(map_of(fitted("nearest", good), features), nearest_map_by_loops(features, good))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("side", [4, 6, 10])
def test_nearest_in_the_halo_equals_a_loop(batch: int, side: int) -> None:
    """Places of edges and corners among them."""
    good, features = drawn(9, side=side), drawn(batch, side=side, seed=1)
    found = map_of(fitted("nearest_halo", good), features)
    wanted = halo_by_loops(features, good, shared_covariance(good))
    assert found.shape == (batch, side, side)
    assert_near(found, wanted)
    if side > 6:
        anywhere = nearest_halo_map_by_loops(
            features, good, shared_covariance(good), block=BLOCK, halo=side
        )
        assert (wanted - anywhere).max() > 0.1 * wanted.max(), "the window makes a difference"


@pytest.mark.parametrize("left_out", [None, 5])
@pytest.mark.parametrize("side", [4, 6])
def test_attention_equals_a_loop(side: int, left_out: int | None) -> None:
    """14 images fill no whole number of groups."""
    good = drawn(14, side=side)
    features = drawn(2, side=side, seed=1) if left_out is None else good[left_out : left_out + 1]
    head = fitted("nearest_halo", good)
    assert isinstance(head, NearestHaloHead)
    if left_out is not None:
        head = head.without(Seen(output_of(features), features), left_out)
    wanted = attended_by_loops(
        features,
        good,
        shared_covariance(good),
        block=BLOCK,
        groups=nearest_halo_module.GROUPS,
        nearest=3,
        left_out=left_out,
    )
    whitened = torch.einsum("cd,ndhw->nchw", head.whitening.double(), wanted)
    assert_near(head.attend(features, nearest=3).double(), whitened)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("side", [4, 6])
def test_the_rebuilding_head_equals_a_loop(batch: int, side: int) -> None:
    """Good images are rebuilt without themselves."""
    good, features = drawn(14, side=side), drawn(batch, side=side, seed=1)
    head = fitted("halo", good)
    assert isinstance(head, HaloHead)
    known = [
        head.memory.without(seen, index).attend(seen.output.features, nearest=halo_module.NEAREST)
        for index, seen in enumerate(seeing(good)())
    ]
    wanted = rebuilding_map_by_loops(
        features,
        head.memory.attend(features, nearest=halo_module.NEAREST),
        good,
        torch.cat(known),
        penalty=halo_module.PENALTY,
        shrinkage=halo_module.SHRINKAGE,
        ridge=halo_module.RIDGE,
    )
    assert_near(map_of(head, features), wanted)


def test_cells_that_come_in_two_forms_are_unusual_between_them() -> None:
    """Where one Gaussian sees the middle of all, attention sees that no cell is like this one."""
    generator = torch.Generator().manual_seed(5)
    form = torch.randint(2, (24, 1, 1, 1), generator=generator) * 2.0 - 1
    good = 4 * form * torch.ones(CHANNELS, 1, 1) + 0.3 * drawn(24)
    between = 1.5 + 0.3 * drawn(24, seed=3)
    unusual = {}
    for name in ("gaussian", "halo"):
        head = fitted(name, good)
        known = torch.cat([head.without(seen, i)(*seen) for i, seen in enumerate(seeing(good)())])
        unusual[name] = map_of(head, between).mean() / known.mean()
    assert unusual["gaussian"] < 1
    assert unusual["halo"] > 1.5


def test_what_attention_gives_is_of_good_images_whatever_the_cell_holds() -> None:
    """Nothing of a defect is rebuilt: a cell chooses among good cells, and that is all it does."""
    head, features = fitted("nearest_halo", drawn(9)), 50 * drawn(1, seed=1)
    assert isinstance(head, NearestHaloHead)
    features.requires_grad_()
    values = head.attend(features, nearest=1)
    assert not values.requires_grad
    keys = head.keys.flatten(0, 1)
    for cell in values[0].flatten(1).T:
        assert (keys == cell).all(1).any()


@pytest.mark.parametrize("name", HEADS)
def test_images_of_a_batch_do_not_see_each_other(name: str) -> None:
    head, features = fitted(name, drawn(12)), drawn(3, seed=1)
    one_by_one = torch.cat([map_of(head, features[i : i + 1]) for i in range(3)])
    assert_near(map_of(head, features), one_by_one, rel=1e-5)


# What a map depends on


def test_a_place_of_the_halo_s_map_depends_on_no_other_place_of_the_image() -> None:
    head, features = fitted("nearest_halo", drawn(9)), drawn(1, seed=1)
    before = map_of(head, features)
    for row, column in np.ndindex(6, 6):
        changed = features.clone()
        changed[..., row, column] += 5
        differs = map_of(head, changed) != before
        assert differs.nonzero().tolist() == [[0, row, column]]


def test_a_place_of_the_halo_s_map_depends_on_its_window_of_the_memory_alone() -> None:
    side, blocks = 10, 5
    head, features = fitted("nearest_halo", drawn(9, side=side)), drawn(1, side=side, seed=1)
    assert isinstance(head, NearestHaloHead)
    before = map_of(head, features)[0]
    for block in range(blocks**2):
        memory = head.memory.clone()
        memory[block] = 100
        without = map_of(NearestHaloHead(head.whitening, memory, head.images), features)[0]
        rows, columns = (without != before).nonzero().T // BLOCK
        assert len(rows), "some cell was the nearest"
        assert (rows - block // blocks).abs().max() <= 1
        assert (columns - block % blocks).abs().max() <= 1
        assert (without >= before - 1e-9).all()


# Without one of the good images


def test_gaussian_without_an_image_is_the_formula_for_the_others() -> None:
    """Exact but for the denominator, which stays that of all: n - 1, where the others have n - 2.

    So a distance is at most √((n - 1) / (n - 2)) times that of a head fitted anew, and never less.
    """
    good = drawn(30)
    head = fitted("gaussian", good)
    most = (29 / 28) ** 0.5
    for index, seen in enumerate(seeing(good)()):
        others = torch.cat([good[:index], good[index + 1 :]])
        found = head.without(seen, index)(*seen).double()
        exact = gaussian_map_by_loops(
            good[index : index + 1], others, ridge=gaussian_module.RIDGE, denominator=29
        )
        assert_near(found, exact, rel=5e-3)
        anew = map_of(fitted("gaussian", others), good[index : index + 1])
        assert (found >= anew * (1 - 5e-3)).all()
        assert (found <= anew * most * (1 + 5e-3)).all()
        assert found.mean() > 1.1 * map_of(head, good[index : index + 1]).mean(), "it matters"


def test_nearest_without_an_image_sees_the_others_alone() -> None:
    good = drawn(9)
    head = fitted("nearest", good)
    for index, seen in enumerate(seeing(good)()):
        others = torch.cat([good[:index], good[index + 1 :]])
        assert head(*seen).max() == pytest.approx(NEAR**0.5), "its own cells are as near as can be"
        found = head.without(seen, index)
        assert found.images == 8
        assert_near(found(*seen).double(), nearest_map_by_loops(good[index : index + 1], others))


def test_nearest_in_the_halo_without_an_image_sees_the_others_alone() -> None:
    """The covariance of all places stays: of that, an image is a small part."""
    good = drawn(9)
    head, covariance = fitted("nearest_halo", good), shared_covariance(good)
    for index, seen in enumerate(seeing(good)()):
        others = torch.cat([good[:index], good[index + 1 :]])
        assert head(*seen).max() == pytest.approx(NEAR**0.5), "its own cells are as near as can be"
        found = head.without(seen, index)
        assert found.images == 8
        wanted = halo_by_loops(good[index : index + 1], others, covariance)
        assert_near(found(*seen).double(), wanted)


def test_an_image_that_was_not_drawn_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_halo_module, "MEMORY", 5)
    good = drawn(12)
    head = fitted("nearest_halo", good)
    assert isinstance(head, NearestHaloHead)
    assert head.kept is not None
    kept = good[head.kept]
    for index, seen in enumerate(seeing(good)()):
        others = kept[[i for i, each in enumerate(head.kept) if each != index]]
        wanted = halo_by_loops(good[index : index + 1], others, shared_covariance(good))
        assert_near(head.without(seen, index)(*seen).double(), wanted)


# What is drawn


def test_the_memory_draws_every_image_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_halo_module, "MEMORY", 5)
    good, times, draws = torch.zeros(12, 1, 2, 2), np.zeros(12), 600
    for seed in range(draws):
        memory = Memory(seed)
        assert len(list(memory.watch(seeing(good)()))) == 12, "all go by"
        assert len(memory.images) == len(memory.features) == len(set(memory.images)) == 5
        times[memory.images] += 1
    share = 5 / 12
    deviation = (draws * share * (1 - share)) ** 0.5
    assert np.abs(times - draws * share).max() < 4 * deviation


def test_the_memory_keeps_what_it_says_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_halo_module, "MEMORY", 5)
    good = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 1, 2, 2)
    kept = []
    for seed in (0, 0, 1):
        memory = Memory(seed)
        list(memory.watch(seeing(good)()))
        assert [int(each[0, 0, 0, 0]) for each in memory.features] == memory.images
        kept.append(memory.images)
    assert kept[0] == kept[1] != kept[2]


def test_few_images_are_all_kept() -> None:
    memory = Memory(0)
    list(memory.watch(seeing(drawn(8))()))
    assert memory.images == list(range(8))


def test_blocks_hold_their_cells_row_by_row() -> None:
    cells = torch.arange(16.0).view(1, 1, 4, 4)
    assert blocks_of(cells)[0, :, :, 0].tolist() == [
        [0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]
    ]  # fmt: skip


def test_the_bank_holds_as_many_cells_of_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_module, "CELLS", 60)
    good = drawn(12)
    head = fitted("nearest", good)
    assert isinstance(head, NearestHead)
    assert head.source is not None
    assert torch.bincount(head.source).tolist() == [5] * 12
    assert torch.equal(head.bank, fitted("nearest", good).get_buffer("bank"))
    config = config_of("nearest").replace(seed=1)
    assert not torch.equal(head.bank, NearestHead.fit(config, seeing(good)).bank)


# What is refused


@pytest.mark.parametrize("name", ["nearest_halo", "halo"])
def test_blocks_need_an_even_grid(name: str) -> None:
    config = config_of(name, side=5)
    with pytest.raises(ConfigError, match=rf"{name}.*image_size 40 must be divisible by 16\.$"):
        check_names(config)
    check_names(config_of(name, side=4))
    check_names(config_of("gaussian", side=5))


@pytest.mark.parametrize("name", ["gaussian", "nearest_halo", "halo"])
def test_covariances_that_memory_does_not_hold(name: str) -> None:
    config = config_of(name, side=100).replace(network={"reduced_channels": None})
    with pytest.raises(ConfigError, match=r"100×100 places and 704 channels is too much"):
        check_names(config)


def test_a_head_that_looks_at_reconstructions_needs_some() -> None:
    with pytest.raises(ConfigError, match=r"network\.autoencoder = true"):
        AutoencoderHead.check(config_of("gaussian"))


@pytest.mark.parametrize("name", HEADS)
def test_no_image_is_no_fit(name: str) -> None:
    with pytest.raises(ValueError, match="one image at least"):
        fitted(name, drawn(0))


# Inside a detector


def detector_config(tiny: Config, head: str) -> Config:
    return tiny.replace(
        network={"autoencoder": False, "classifier": False},
        detection={"head": head, "top_share": 0.1, "false_alarm_rate": 0.2},
    )


@pytest.fixture(scope="module", params=HEADS)
def detector(request: pytest.FixtureRequest, good_folder: Path, tiny: Config) -> Detector:
    config = detector_config(tiny, request.param)
    return Detector.fit(good_folder, config=config, device="cpu")


def defective() -> np.ndarray:
    pixels = texture(100)
    pixels[8:20, 20:32] = (250, 40, 250)
    return pixels


def test_every_good_image_is_fitted_to_and_calibrates(detector: Detector) -> None:
    assert detector.provenance.fitted_on == detector.head.images == 12
    assert len(detector.calibration.scores) == 12
    assert (detector.provenance.held_out, detector.provenance.steps) == (0, 0)
    good, bad = detector.predict([texture(50), defective()])
    assert bad.score > good.score
    assert bad.is_anomalous


def test_a_loaded_detector_scores_the_same_to_the_bit(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "m.safetensors")
    loaded = Detector.load(tmp_path / "m.safetensors", device="cpu")
    assert type(loaded.head) is type(detector.head)
    assert loaded.calibration == detector.calibration
    images = [texture(50), defective()]
    for found, wanted in zip(loaded.predict(images), detector.predict(images), strict=True):
        assert found.score == wanted.score
        np.testing.assert_array_equal(found.anomaly_map, wanted.anomaly_map)


@pytest.mark.parametrize(
    "detector",
    # The graph of `halo` holds that of `nearest_halo`, which takes as long.
    ["gaussian", "nearest", "halo", pytest.param("nearest_halo", marks=pytest.mark.slow)],
    indirect=True,
)
def test_exports_say_the_same(
    detector: Detector, good_paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, traced = torch.onnx.export, []

    def once(*arguments: object, **options: object) -> object:
        traced.append(traced[0] if traced else trace(*arguments, **options))
        return traced[0]

    # On the images it was fitted to, whose own cells are the hardest: they are 0 but for rounding.
    # Tracing takes torch seconds, and gives both formats the same graph.
    monkeypatch.setattr(torch.onnx, "export", once)
    wanted = detector.predict(defective())
    for format, name in (("openvino", "m.xml"), ("onnx", "m.onnx")):
        parity = export_model(detector, tmp_path / name, format=format, good=good_paths, threads=1)
        assert max(parity.score, parity.map) < 1e-4
        found = Detector.load(tmp_path / name, threads=1).predict(defective())
        assert found.score == pytest.approx(wanted.score, rel=1e-4)
        assert found.p_value == wanted.p_value


def test_new_good_images_only_calibrate(detector: Detector) -> None:
    """They were not in the fit: the head stays, and scores them as it scores any image."""
    images = [texture(seed) for seed in range(200, 206)]
    other = detector.calibrated(images)
    state = detector.head.state_dict()
    for name, tensor in other.head.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    predicted = sorted(found.score for found in detector.predict(images))
    assert other.calibration.scores == pytest.approx(predicted, rel=1e-5)
    peaks = other.calibration.peaks
    assert len(peaks) == 6
    assert list(peaks) == sorted(peaks)
    assert (other.provenance.fitted_on, other.provenance.held_out) == (12, 6)
    assert other.predict(defective()).score == detector.predict(defective()).score
    with pytest.raises(DataError, match="3 good images are too few"):
        detector.calibrated(images[:3])


def test_a_loaded_detector_can_be_calibrated(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "m.safetensors")
    images = [texture(seed) for seed in range(200, 206)]
    loaded = Detector.load(tmp_path / "m.safetensors", device="cpu")
    assert loaded.calibrated(images).calibration == detector.calibrated(images).calibration


def test_measuring_by_a_head_that_is_given_fits_none(
    detector: Detector, good_paths: list[Path]
) -> None:
    arrays = [resize(read_image(path), 32) for path in good_paths]
    head, left_in, *_ = measure_good(
        detector.network, lambda: iter(arrays), detector.config, head=detector.head
    )
    assert head is detector.head
    assert np.mean(left_in) < np.mean(detector.calibration.scores), "its own images look usual"


def test_few_images_are_scored_by_heads_that_were_fitted_without_them() -> None:
    """Else others' attention to an image, and the map, would make it look usual."""
    good, config = drawn(6, side=4), config_of("halo", side=4)
    wanted = []
    for index in range(len(good)):
        others = torch.cat([good[:index], good[index + 1 :]])
        image = Seen(output_of(good[index : index + 1]), torch.zeros(1, 3, 8, 8))
        wanted.append(judge(fitted("halo", others)(*image), config.detection)[0].item())
    found = measure_seen(seeing(good), config)
    assert found.scores == pytest.approx(sorted(wanted), rel=1e-4)
    assert found.head.images == len(good)


def test_each_fold_is_scored_by_a_head_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[int] = []
    fit = HaloHead.fit.__func__

    def counted(cls: type[HaloHead], config: Config, seen: Callable[[], Iterable[Seen]]) -> Head:
        counts.append(sum(1 for _ in seen()))
        return fit(cls, config, seen)

    monkeypatch.setattr(HaloHead, "fit", classmethod(counted))
    monkeypatch.setattr(good_module, "FOLDS", 3)
    monkeypatch.setattr(good_module, "FEW", 8)
    assert len(measure_seen(seeing(drawn(7, side=4)), config_of("halo", side=4)).scores) == 7
    assert counts == [7, 4, 5, 5]
    counts.clear()
    measure_seen(seeing(drawn(8, side=4)), config_of("halo", side=4))
    assert counts == [8], "of many images each is left out of the one head"


@pytest.mark.parametrize("name", HEADS)
def test_what_is_counted_is_as_large_as_what_many_images_leave(name: str) -> None:
    many = torch.zeros(1).expand(MANY, CHANNELS, 4, 4) + drawn(1, side=4)
    found, counted = fitted(name, many), head_named(name).sized(config_of(name, side=4))
    assert counted is not None
    assert {n: (t.shape, t.dtype) for n, t in counted.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in found.state_dict().items()
    }
    assert counted.images == found.images == MANY


def test_errors_of_an_image_branch_are_counted_too(tiny: Config) -> None:
    for parts in ([], [4]):
        config = tiny.replace(network={"image_decoder": parts})
        grid, channels = features_of(config)
        found = AutoencoderHead.sized(config)
        shapes = {name: tuple(tensor.shape) for name, tensor in found.state_dict().items()}
        image = {"image": (3, *grid)} if parts else {}
        assert shapes == {"features": (channels, *grid)} | image


@pytest.mark.parametrize("name", HEADS)
def test_no_image_is_gone_through_more_often_than_another(name: str) -> None:
    """Each pass over them may be one through the network."""
    good, times = drawn(40, side=4), [0] * 40

    def seen() -> Iterator[Seen]:
        for index, each in enumerate(seeing(good)()):
            times[index] += 1
            yield each

    measure_seen(seen, config_of(name, side=4))
    assert times == [times[0]] * 40
    assert times[0] == (4 if name == "halo" else 2)


@pytest.mark.parametrize("name", HEADS)
def test_eight_images_that_are_all_the_same(name: str, tiny: Config) -> None:
    config = detector_config(tiny, name)
    detector = Detector.fit([texture(0)] * 8, config=config, device="cpu")
    for found in detector.predict([texture(0), texture(1), defective()]):
        assert np.isfinite(found.anomaly_map).all()
        assert found.anomaly_map.min() >= 0
        assert 0 <= found.score < np.inf
    assert np.isfinite(detector.calibration.scores).all()
    assert np.isfinite(detector.calibration.threshold.value)


@pytest.mark.parametrize("name", HEADS)
def test_as_few_as_eight_images(name: str, tiny: Config) -> None:
    images = [texture(seed) for seed in range(8)]
    detector = Detector.fit(images, config=detector_config(tiny, name), device="cpu")
    good, bad = detector.predict([texture(50), defective()])
    assert bad.score > good.score


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor[:0],
        lambda tensor: tensor[:-1],
        lambda tensor: tensor[..., :-1],
        lambda tensor: tensor.reshape(-1),
        lambda tensor: tensor.flat[0],
    ],
    ids=["empty", "a row less", "a channel less", "flat", "a number"],
)
def test_tensors_that_do_not_fit_are_refused(
    detector: Detector, change: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    detector.save(path)
    header, tensors = read_model(path)
    names = [name for name in tensors if name.startswith("head.")]
    assert names
    for name in names:
        changed = np.ascontiguousarray(np.asarray(change(tensors[name])))
        if name == "head.bank" and changed.shape == (len(tensors[name]) - 1, CHANNELS):
            continue  # a bank of fewer cells is a bank
        if changed.shape == tensors[name].shape:
            continue
        write_model(path, header, tensors | {name: changed})
        with pytest.raises(ModelFileError, match="do not fit"):
            Detector.load(path, device="cpu")
        without = {key: value for key, value in tensors.items() if key != name}
        write_model(path, header, without)
        with pytest.raises(ModelFileError, match="do not fit"):
            Detector.load(path, device="cpu")
