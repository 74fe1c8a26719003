"""What cells are rebuilt from, and how much of a pasted patch is rebuilt."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.attention_kinds import KINDS, Anywhere, table
from benchmarks.copying import copy_index, rebuilding
from torch import Tensor

from benchmarks import ingredients
from conftest import PLAIN, texture
from haloae.config import Config
from haloae.detection.heads import Seen, head_named
from haloae.detection.heads.gaussian import GaussianHead
from haloae.detection.heads.halo import RIDGE, SHRINKAGE, HaloHead
from haloae.detection.heads.moments import Cells, moments, softened
from haloae.detector import Detector
from haloae.network.haloae import HaloAEOutput
from haloae.network.trunks import trunk_named

SIDE, CHANNELS = 8, 6
CONFIG = PLAIN.replace(
    image_size=8 * SIDE,
    network={"stride": 8, "reduced_channels": CHANNELS, "autoencoder": False},
    detection={"head": "halo"},
)


def drawn(count: int, *, seed: int = 0) -> Tensor:
    """Features whose places have means of their own, and come in two forms an image."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(98))
    forms = torch.randint(2, (count,), generator=generator)
    noise = torch.randn(count, CHANNELS, SIDE, SIDE, generator=generator)
    return 2 * means[forms] + 0.5 * noise


def seeing(features: Tensor) -> Callable[[], Iterator[Seen]]:
    def seen() -> Iterator[Seen]:
        for each in features:
            yield Seen(
                HaloAEOutput(each[None], each[None], None, None),
                torch.zeros(1, 3, 8 * SIDE, 8 * SIDE),
            )

    return seen


def fitted(name: str, good: Tensor) -> HaloHead:
    head = head_named(name).fit(CONFIG, seeing(good))
    assert isinstance(head, HaloHead)
    return head


def map_of(head: HaloHead, features: Tensor) -> Tensor:
    image = torch.zeros(len(features), 3, 8 * SIDE, 8 * SIDE)
    return head(HaloAEOutput(features, features, None, None), image)


@pytest.mark.parametrize("name", ["place_mean", "window_mean"])
def test_rebuilt_from_a_mean_is_a_gaussian_a_place(name: str) -> None:
    good, features = drawn(14), drawn(2, seed=1)
    found = moments(Cells(softened(each[None])) for each in good)
    plain = GaussianHead.of(found, (SIDE, SIDE), ridge=RIDGE, shrinkage=SHRINKAGE)
    wanted = plain.distance(softened(features))
    torch.testing.assert_close(map_of(fitted(name, good), features), wanted, rtol=2e-3, atol=1e-3)


def test_anywhere_has_as_many_keys_as_a_window_and_leaves_out_its_own() -> None:
    good = drawn(14)
    head = fitted("anywhere", good)
    assert isinstance(head.memory, Anywhere)
    real = head.memory.lengths_drawn < 1e20
    assert real.sum() == 14 * 36
    assert len(real) == 90, "candidates, as of the halo"
    seen = next(seeing(good)())
    whitened = torch.einsum("cd,ndhw->nchw", head.memory.whitening, good[:1])
    own = whitened.half().float().flatten(2)[0].T
    kept_in, left_out = (
        memory.attend(good[:1], nearest=1).flatten(2)[0].T
        for memory in (head.memory, head.memory.without(seen, 0))
    )
    same = [(given[:, None] == own).all(2).any().item() for given in (kept_in, left_out)]
    assert same == [True, False]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_a_head_that_is_fitted_and_restored(name: str) -> None:
    good, features = drawn(14), drawn(2, seed=1)
    head = fitted(name, good)
    anew = head_named(name).restore(CONFIG, head.state_dict(), head.images)
    assert isinstance(anew, HaloHead)
    assert torch.equal(map_of(anew, features), map_of(head, features))
    assert torch.isfinite(map_of(head.without(next(seeing(good)()), 0), features)).all()


def test_the_attended_cell_itself_is_of_the_features_scale() -> None:
    good = drawn(14)
    head = fitted("halo_no_map", good)
    keys = head.memory.attend(good[:1], nearest=1)
    as_it_was = torch.einsum("cd,ndhw->nchw", head.rebuilding, keys)
    torch.testing.assert_close(as_it_was, good[:1], rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", [name for name in ingredients.ROWS if name.startswith("halo_")])
def test_ingredients_are_heads_that_score_what_they_add(name: str) -> None:
    good, features = drawn(14), drawn(2, seed=1)
    head = fitted(name, good)
    plain = map_of(head, features)
    assert torch.isfinite(plain).all()
    assert (plain >= 0).all()
    first = next(seeing(good)())
    assert (head.without(first, 0)(*first) != head(*first)).any()
    spoilt = torch.zeros(2, 3, SIDE * 8, SIDE * 8)
    spoilt[..., :8, :8] = 3
    with_colours = head(HaloAEOutput(features, features, None, None), spoilt)
    changed = with_colours[:, 0, 0] > plain[:, 0, 0] + 1
    assert changed.all() if name == "halo_image" else not changed.any()


def test_the_distance_to_pasted_cells_is_taken_from_that_to_good_ones() -> None:
    good, features = drawn(14), drawn(2, seed=1)
    head, plain = fitted("halo_pasted", good), map_of(fitted("halo", good), features)
    assert isinstance(head, ingredients.WithPasted)
    assert head.pasted_mean.any()
    told = map_of(head, features)
    head.pasted_root.zero_()
    alone = map_of(head, features)
    torch.testing.assert_close(alone, torch.nn.functional.softplus(plain.square()).sqrt())
    assert (told < alone).all()


def test_nothing_inside_the_hole_has_a_part_in_what_is_rebuilt() -> None:
    head, features = fitted("halo_hole", drawn(14)), drawn(1, seed=1).requires_grad_()
    for row, column in ((4, 4), (0, 3)):
        rebuilt = head.rebuilt(features)[0, :, row, column]
        (gradient,) = torch.autograd.grad(rebuilt.square().sum(), features)
        touched = gradient[0].abs().sum(0).nonzero()
        away = (touched - torch.tensor([row, column])).abs().amax(1)
        assert len(touched) == 3, "the nearest three"
        assert away.min() > ingredients.HOLE
        assert away.max() <= ingredients.REACH


def test_one_tap_of_a_trunk_is_that_of_the_whole() -> None:
    whole = trunk_named("efficientnet_lite0")
    layers = whole.build()
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for place, name in enumerate(("finest", "middle", "coarsest")):
        one = trunk_named(f"efficientnet_lite0_{name}")
        alone = one.build()
        alone.load_state_dict(layers.state_dict())
        (tap,) = alone(image)
        torch.testing.assert_close(tap, list(layers(image))[place])
        assert tap.shape[1] == one.channels == whole.taps[place].channels


def test_papers_count_as_one_set() -> None:
    values = {"cloth": 0.9, "paper_a": 0.5, "paper_b": 0.7}
    runs = [
        {
            "variant": variant, "category": name, "seed": 0,
            "metrics": {"image_auroc": value, "pixel_aupro": value if name == "cloth" else None},
        }
        for variant in ("default", "default, anywhere")
        for name, value in values.items()
    ]  # fmt: skip
    found = table(runs)
    assert list(found.columns[2:]) == ["cloth", "paper", "mean", "AUPRO"]
    assert [row[1] for row in found.rows] == [KINDS["halo"], KINDS["anywhere"]]
    assert found.rows[0][2:] == pytest.approx([0.9, 0.6, 0.75, 0.9])


# The copy index


def test_the_index_tells_copying_from_predicting() -> None:
    features, pasted = drawn(2), drawn(2, seed=1)
    assert copy_index(lambda x: x + 3, features, pasted, 2) == pytest.approx(1, abs=1e-6)
    assert copy_index(torch.zeros_like, features, pasted, 2) == 0
    assert copy_index(lambda x: 0.25 * x, features, pasted, 4) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("side", [2, 6])
def test_halo_attention_gives_back_no_more_of_a_patch_than_of_good_cells(side: int) -> None:
    """As large as a block, and as a window. What comes back is bounded, however loud the patch."""
    head, features = fitted("halo", drawn(40)), drawn(4, seed=1)
    good = copy_index(head.rebuilt, features, drawn(4, seed=2), side)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(features.shape, generator=generator)
    foreign = copy_index(head.rebuilt, features, features + 3 * noise, side)
    assert 0.3 < good < 1
    assert foreign < 0.5 * good
    loud, louder = (
        copy_index(head.rebuilt, features, features + times * noise, side) for times in (30, 300)
    )
    assert louder == pytest.approx(loud / 10, rel=0.1)


def test_what_a_detector_rebuilds(two_models: list[Path]) -> None:
    detector = Detector.load(two_models[0], device="cpu")
    pixels = np.stack([texture(seed, 32, 32) for seed in (50, 51)]).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        image = detector.network.normalise(torch.from_numpy(pixels / np.float32(255)))
        output = detector.network(image)
        rebuilt = rebuilding(detector)(output.features)
    torch.testing.assert_close(rebuilt, output.rebuilt)
    index = copy_index(rebuilding(detector), output.features, output.features.flip(0), 2)
    assert np.isfinite(index)


def test_what_rebuilds_nothing_is_refused(good_folder: Path, tiny: Config) -> None:
    config = tiny.replace(
        network={"autoencoder": False, "classifier": False}, detection={"head": "gaussian"}
    )
    with pytest.raises(ValueError, match="gaussian rebuilds nothing"):
        rebuilding(Detector.fit(good_folder, config=config, device="cpu"))
