"""The recipe behind the bundled weights: pictures, batches, training, the file it writes."""

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain.__main__ import RECIPES, main
from pretrain.distance import distance_losses, log_distances
from pretrain.export import finished, folded, mixed, rescale
from pretrain.floor import fit_filters
from pretrain.pictures import (
    SIDE,
    dim_or_flat,
    load_pictures,
    make_batch,
    make_pairs,
    with_defects,
)
from pretrain.textures import FAMILIES, draw
from pretrain.train import ConvNorm, Recipe, Student, train, with_weights
from safetensors.torch import load_file
from torch import Tensor, nn

from haloae.network.features import FeatureExtractor
from haloae.network.trunks import TRUNKS, normalise
from haloae.network.weights import BUNDLED, digest, random_weights

RECIPE = Recipe(
    "resnet18", steps=3, size=32, late_size=48, tuning_steps=2, photo_stride=1, textures=8, batch=8
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs of noise, of different shapes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (180 + 10 * number, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def pictures(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return load_pictures(photos, 1, 8, 0, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("family", range(len(FAMILIES)))
def test_textures_are_pictures_and_each_is_another(family: int) -> None:
    first = draw(family, 0, 64)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.float32
    assert 0 <= first.min() <= first.max() <= 1
    assert np.array_equal(first, draw(family, 0, 64))
    assert not np.array_equal(first, draw(family, 1, 64))
    assert not np.array_equal(first, draw(family + len(FAMILIES), 0, 64))
    assert max(draw(family + n * len(FAMILIES), 0, 64).std() for n in range(4)) > 0.02


def test_photographs_first_then_textures(photos: Path, pictures: Tensor, tmp_path: Path) -> None:
    assert pictures.shape == (12, 3, SIDE, SIDE)
    assert pictures.dtype == torch.uint8
    half = load_pictures(photos, 2, 8, 0, tmp_path)
    assert torch.equal(half, pictures[[0, 2, *range(4, 12)]])
    (cache,) = tmp_path.iterdir()
    written = cache.stat().st_mtime_ns
    assert torch.equal(load_pictures(photos, 2, 8, 0, tmp_path), half)
    assert cache.stat().st_mtime_ns == written
    with pytest.raises(SystemExit, match="holds no"):
        load_pictures(tmp_path, 1, 8, 0, tmp_path)


def test_a_batch_is_a_function_of_its_seed(pictures: Tensor) -> None:
    batch = make_batch(pictures, 48, 64, generator(1))
    assert batch.images.shape == (64, 3, 48, 48)
    assert 0 <= batch.images.min() <= batch.images.max() <= 1
    assert batch.classes.unique().tolist() == list(range(12))
    for one, other in zip(batch, make_batch(pictures, 48, 64, generator(1)), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(batch.images, make_batch(pictures, 48, 64, generator(2)).images)


def test_pairs_are_two_parts_of_one_product(pictures: Tensor) -> None:
    pairs = make_pairs(pictures, 48, 64, generator(1), 0.5)
    assert pairs.images.shape == (64, 3, 48, 48)
    assert 0 <= pairs.images.min() <= pairs.images.max() <= 1
    for one, other in zip(pairs, make_pairs(pictures, 48, 64, generator(1), 0.5), strict=True):
        assert torch.equal(one, other)
    first, second = pairs.classes.chunk(2)
    assert torch.equal(first, second)
    good, measured = pairs.changed.chunk(2)
    assert not good.any()
    assert 0.4 < measured.any((1, 2)).float().mean() < 0.9
    colours, others = pairs.images.mean((2, 3)).chunk(2)
    unlike = torch.cdist(colours, others)
    assert unlike.diagonal().mean() < 0.5 * unlike.mean(), "much the same light"


def test_a_cell_unlike_every_good_one_is_far() -> None:
    features = torch.randn(2, 8, 1, 1, generator=generator()).repeat(2, 1, 8, 8)
    features += 0.1 * torch.randn(features.shape, generator=generator(1))
    features[2, :, 2:5, 2:5] += 5
    distances = log_distances(features, generator(), 0.1)
    assert distances.shape == (2, 8, 8)
    assert torch.equal(distances, log_distances(features, generator(), 0.1))
    assert distances.flatten().argmax() == 3 * 8 + 3
    assert distances[0, 3, 3] > distances[1].max() + 2


def test_the_floor_keeps_a_dull_crop_from_a_scale_of_its_own() -> None:
    features = torch.randn(4, 8, 8, 8, generator=generator())
    features[::2] *= 0.1
    off = torch.zeros(4, 8, 8, 8)
    off[2:, :, 4, 4] = 9 * torch.tensor([0.1, 1.0])[:, None]

    def gap(floor: float) -> float:
        dull, vivid = log_distances(features + off, generator(), floor)[:, 4, 4]
        return (vivid - dull).item()

    assert gap(0) == pytest.approx(0, abs=1), "each by its own scale"
    assert gap(1) > gap(0.1) > gap(0) + 1


def test_dim_and_flat_pairs_keep_what_they_show() -> None:
    images = torch.rand(200, 3, 16, 16, generator=generator())
    changed = dim_or_flat(images, generator(), 0.5)
    assert 0 <= changed.min() <= changed.max() <= 1
    contrast = changed.flatten(1).std(1) / images.flatten(1).std(1)
    light = changed.flatten(1).mean(1) / images.flatten(1).mean(1)
    assert 0.2 < (contrast > 0.999).float().mean() < 0.3, "neither, of half and half"
    assert contrast.min() > 0.2 * 0.24
    assert 0.4 < (light > 0.999).float().mean() < 0.6
    assert 0.24 < light.min() < 0.4
    correlation = torch.nn.functional.cosine_similarity(
        changed.flatten(1) - changed.flatten(1).mean(1, keepdim=True),
        images.flatten(1) - images.flatten(1).mean(1, keepdim=True),
    )
    assert correlation.min() > 0.999
    one, other = contrast.chunk(2)
    assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.5, "two of a pair are alike"


def test_the_objective_wants_defects_far_and_the_rest_near() -> None:
    is_defect = torch.zeros(2, 4, 4)
    is_defect[0, 1, 1] = 1
    counts = torch.ones(2, 4, 4)
    counts[0, 1, 2] = 0
    level = torch.zeros(2, 4, 4)
    cells, ranking = distance_losses(level, is_defect, counts)
    assert ranking.item() == pytest.approx(np.log(15), abs=1e-4), "one of fifteen"
    far = distance_losses(level + 2 * is_defect, is_defect, counts)
    near = distance_losses(level - 2 * is_defect, is_defect, counts)
    assert far[0] < cells < near[0]
    assert far[1] < ranking < near[1]
    left_out = level.clone()
    left_out[0, 1, 2] = 9
    assert distance_losses(left_out, is_defect, counts) == (cells, ranking)
    assert distance_losses(level, 0 * is_defect, counts)[1] == 0, "no defect, nothing to rank"


def test_defects_are_where_they_are_said_to_be() -> None:
    images = torch.rand(256, 3, 48, 48, generator=generator())
    spoiled, changed = with_defects(images, generator())
    difference = (spoiled - images).abs().mean(1)
    assert (difference[~changed] <= 0.03).all()
    assert (difference[changed] > 0.03).all()
    is_defective = changed.any((1, 2)).float().mean()
    assert 0.35 < is_defective < 0.6, "half of them, give or take the draw and faint ones"
    assert changed.float().mean() < 0.1, "local"


@pytest.mark.parametrize("trunk", sorted(RECIPES))
def test_folding_and_rescaling_change_nothing_but_the_scale(trunk: str) -> None:
    torch.manual_seed(0)
    student = Student(TRUNKS[trunk], 5)
    images = torch.randn(4, 3, 32, 32)
    student.train()
    for _ in range(3):
        list(student.trunk(images))
    student.eval()
    with torch.no_grad():
        wanted = list(student.trunk(images))
        layers = TRUNKS[trunk].build()
        layers.load_state_dict(folded(student.trunk), assign=True)
        for tap, same in zip(layers(images), wanted, strict=True):
            torch.testing.assert_close(tap, same, atol=1e-4, rtol=1e-4)
        rescale(layers, [images])
        for tap, same in zip(layers(images), wanted, strict=True):
            assert tap.mean().item() == pytest.approx(1, abs=1e-3)
            torch.testing.assert_close(tap, same / same.mean(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("trunk", sorted(RECIPES))
def test_training_can_start_from_what_was_folded(trunk: str) -> None:
    layers = TRUNKS[trunk].build()
    weights = random_weights(layers.state_dict(), seed=3)
    weights = {n: t + 0.05 if t.ndim == 1 else t for n, t in weights.items()}
    layers.load_state_dict(weights, assign=True)
    images = torch.randn(8, 3, 64, 64, generator=generator())
    student = Student(TRUNKS[trunk], 5)
    lengths = [p.flatten(1).norm(dim=1).mean() for p in student.trunk.parameters() if p.ndim > 1]
    with_weights(student.trunk, weights, [images])
    with torch.no_grad():
        wanted = list(layers(images))
        for mode in (False, True):
            student.train(mode)
            for tap, same in zip(student.trunk(images), wanted, strict=True):
                torch.testing.assert_close(tap, same, atol=1e-3, rtol=1e-3)
    filters = [p for p in student.trunk.parameters() if p.ndim > 1]
    for filter, length in zip(filters, lengths, strict=True):
        assert torch.allclose(filter.flatten(1).norm(dim=1), length), "as long as random ones"


def test_weights_between_two_are_between_them() -> None:
    name = "resnet18"
    like = TRUNKS[name].build().state_dict()
    start, end = (random_weights(like, seed) for seed in (1, 2))
    inputs = [torch.randn(8, 3, 64, 64, generator=generator())]

    def taps(tensors: dict[str, Tensor]) -> Tensor:
        layers = TRUNKS[name].build()
        layers.load_state_dict({n: t.float() for n, t in tensors.items()}, assign=True)
        with torch.no_grad():
            return torch.cat([tap.flatten() / tap.mean() for tap in layers(inputs[0])])

    made = [finished(mixed(name, start, end, share, inputs), name, inputs) for share in (0, 1, 0.3)]
    torch.testing.assert_close(taps(made[0]), taps(end), atol=0.05, rtol=0.05)
    torch.testing.assert_close(taps(made[1]), taps(start), atol=0.05, rtol=0.05)
    weight = made[2]["conv1.weight"].float().flatten()
    near, far = (
        nn.functional.cosine_similarity(weight, other["conv1.weight"].flatten(), dim=0)
        for other in (end, start)
    )
    assert near > far > 0.1
    again = finished(mixed(name, start, end, 0.3, inputs), name, inputs)
    assert digest(again) == digest(made[2])


@pytest.mark.parametrize("trunk", sorted(RECIPES))
def test_the_student_has_the_trunk_that_is_shipped(trunk: str) -> None:
    student = Student(TRUNKS[trunk], 5)
    pictures, defects, taps = student(torch.zeros(2, 3, 48, 48))
    assert pictures.shape == (2, 5)
    assert defects.shape == (2, 12, 12)
    assert student.features(taps, 12).shape == (2, TRUNKS[trunk].channels, 12, 12)
    wanted = {name: t.shape for name, t in TRUNKS[trunk].build().state_dict().items()}
    assert {name: t.shape for name, t in folded(student.trunk).items()} == wanted


@pytest.mark.slow
def test_a_convolution_in_groups_stays_one() -> None:
    conv = nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=6)
    normed = ConvNorm(conv)
    with_weights(normed, {".weight": conv.weight, ".bias": conv.bias}, [torch.rand(4, 6, 9, 9)])
    image = torch.rand(2, 6, 9, 9)
    assert torch.allclose(normed(image), conv(image), atol=1e-5)


@pytest.mark.slow
def test_it_learns(pictures: Tensor, tmp_path: Path) -> None:
    recipe = RECIPE._replace(steps=120, late_size=32, tuning_steps=0, defect_weight=0.3)
    student, _ = train(pictures, recipe, tmp_path, device=torch.device("cpu"), minutes=10)
    student.eval()
    batch = make_batch(pictures, 32, 64, generator(99))
    with torch.no_grad():
        named, _, _ = student(normalise(batch.images))
    assert (named.argmax(1) == batch.classes).float().mean() > 3 / 12, "chance is 1 / 12"


def test_stopped_and_resumed_is_the_same_to_the_bit(
    pictures: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    straight, _ = train(pictures, RECIPE, whole, device=device, minutes=10)
    state = {"step": 0}
    calls = 0
    seconds = itertools.count()
    monkeypatch.setattr("pretrain.train.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    while state["step"] < RECIPE.all_steps:
        calls += 1
        resumed, state = train(pictures, RECIPE, part, device=device, minutes=2 / 60)
    assert calls == RECIPE.all_steps, "one step a call, so both phases are stopped within"
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    with pytest.raises(SystemExit, match="another recipe"):
        train(pictures, RECIPE._replace(seed=1), part, device=device, minutes=1)
    with pytest.raises(SystemExit, match="another recipe"):
        train(pictures, RECIPE._replace(start="f00"), part, device=device, minutes=1)


@pytest.mark.parametrize("trunk", sorted(RECIPES))
def test_the_command_writes_weights_that_load(
    trunk: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "runs" / trunk
    command = ["pretrain", trunk, "--photos", str(photos), "--out", str(out), "--steps", "2"]
    command += ["--tuning-steps", "1", "--size", "16", "--late-size", "16", "--batch", "4"]
    command += ["--textures", "4"]
    monkeypatch.setattr("pretrain.pictures.SETTLING", 2)
    monkeypatch.setattr("pretrain.pictures.SETTLING_SIZE", 32)
    monkeypatch.setattr(sys, "argv", [*command, "--minutes", "0"])
    main()
    assert "the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", command)
    main()
    record = json.loads((out / "record.json").read_text())
    weights = load_file(out / f"{trunk}.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    extractor = FeatureExtractor(out / f"{trunk}.safetensors", trunk)
    assert extractor.source is not None
    assert extractor.source.sha256 == record["sha256"] == digest(weights)
    assert record["recipe"]["steps"] == 2
    assert record["recipe"]["start"] == ""
    assert record["pictures"] == (4 - 1) // RECIPES[trunk].photo_stride + 1 + 4


def test_the_command_refines_weights(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["pretrain", "resnet18", "--photos", str(photos), "--out", str(tmp_path / "runs")]
    command += ["--size", "32", "--batch", "8", "--textures", "4", "--tuning-steps", "1", "--start"]
    monkeypatch.setattr("pretrain.pictures.SETTLING", 2)
    monkeypatch.setattr("pretrain.pictures.SETTLING_SIZE", 32)
    bundled = BUNDLED / "resnet18.safetensors"
    monkeypatch.setattr(sys, "argv", [*command, str(bundled)])
    main()
    record = json.loads((tmp_path / "runs" / "record.json").read_text())
    assert record["recipe"]["start"] == digest(load_file(bundled))
    assert record["sha256"] != digest(load_file(bundled))
    assert record["recipe"]["steps"] == 0
    made = load_file(tmp_path / "runs" / "resnet18.safetensors")
    for name, tensor in load_file(bundled).items():
        if tensor.ndim > 1:
            pair = torch.stack([tensor.float().flatten(), made[name].float().flatten()])
            assert torch.corrcoef(pair)[0, 1] > 0.8, f"{name}: hardly changed by a step"
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "no.safetensors")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "no.safetensors" in capsys.readouterr().err


def test_the_floor_decorrelates_what_each_layer_sees() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 40, 3))
    images = torch.rand(8, 3, 32, 32, generator=generator())
    fit_filters(layers, images, generator())
    with torch.no_grad():
        first = layers[0](images)
    assert first.mean((0, 2, 3)).abs().max() < 0.1
    torch.testing.assert_close(first[:, :8], -first[:, 8:])
    covariance = torch.cov(first[:, :8].movedim(1, 0).flatten(1))
    torch.testing.assert_close(covariance, torch.eye(8), atol=0.1, rtol=0)
