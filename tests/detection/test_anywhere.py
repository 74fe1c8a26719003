"""The heads that learn once for all places: on any grid, from several sizes, with one left out."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from conftest import PLAIN
from haloae.config import Config
from haloae.detection.good import measure_seen
from haloae.detection.heads import ANYWHERE, Head, Seen, head_named, head_of, register_head
from haloae.detection.heads.moments import averaged
from haloae.detection.heads.shared_memory import lowest
from haloae.errors import ConfigError
from haloae.network.haloae import HaloAEOutput

NAMES = ("gaussian", "nearest", "nearest_halo", "halo", "autoencoder")
CHANNELS = 6
SIZES = ((6, 9), (4, 4), (7, 5), (6, 9), (5, 12))


def config_of(name: str) -> Config:
    return PLAIN.replace(
        view={"kind": "tiles", "place": "anywhere"},
        network={"reduced_channels": CHANNELS, "autoencoder": name == "autoencoder"},
        detection={"head": name},
    )


def drawn(seed: int, size: tuple[int, int] = (6, 9), batch: int = 1) -> Tensor:
    """Features that are alike at all places."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(batch, CHANNELS, *size, generator=generator)
    return 1 + torch.einsum("cd,ndhw->nchw", mixing, noise)


def seen_of(features: Tensor) -> Seen:
    return Seen(HaloAEOutput(features, features * 0.9, None, None), features)


GOOD = [drawn(seed, size) for seed, size in enumerate(SIZES)]


def seeing(good: list[Tensor]) -> Callable[[], Iterator[Seen]]:
    return lambda: map(seen_of, good)


def fitted(name: str, good: list[Tensor] = GOOD) -> Head:
    return head_of(config_of(name)).fit(config_of(name), seeing(good))


def map_of(head: Head, features: Tensor) -> Tensor:
    found: Tensor = head(*seen_of(features))
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(3, 4), (20, 7)])
def test_a_grid_of_any_size_is_judged_the_same_wherever_it_lies(
    name: str, size: tuple[int, int]
) -> None:
    head, features = fitted(name), drawn(7, size)
    found = map_of(head, features)
    assert found.shape == (1, *size)
    assert torch.isfinite(found).all()
    assert found.min() >= 0
    turned = map_of(head, features.flip(2, 3)).flip(1, 2)
    assert torch.allclose(found, turned, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_unlike_all_good_cells_is_higher(name: str) -> None:
    features = drawn(7, (9, 9))
    features[:, :, 4, 4] += 25
    found = map_of(fitted(name), features)
    row, column = divmod(int(found.flatten().argmax()), 9)
    assert max(abs(row - 4), abs(column - 4)) <= 1  # some average over 3×3


@pytest.mark.parametrize("name", NAMES)
def test_several_tiles_of_one_image_count_as_one(name: str) -> None:
    tiles = [drawn(seed, batch=3) for seed in range(5)]
    head = fitted(name, tiles)
    assert head.images == 5
    assert map_of(head, tiles[0]).shape == (3, 6, 9)
    assert map_of(head.without(seen_of(tiles[0]), 0), tiles[0]).mean() > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_was_learned_is_the_same_from_a_file(name: str) -> None:
    head, features = fitted(name), drawn(8, (5, 5))
    again = head_of(config_of(name)).restore(config_of(name), head.state_dict(), head.images)
    assert torch.equal(map_of(head, features), map_of(again, features))
    sized = head_of(config_of(name)).sized(config_of(name))
    assert sized is not None
    assert sized.state_dict().keys() == head.state_dict().keys()


@pytest.mark.parametrize("name", ["gaussian", "autoencoder"])
def test_without_an_image_is_as_fitted_to_the_others(name: str) -> None:
    head = fitted(name)
    others = fitted(name, [*GOOD[:2], *GOOD[3:]])
    without = head.without(seen_of(GOOD[2]), 2)
    assert without.images == others.images == 4
    for features in (GOOD[2], drawn(9)):
        assert torch.allclose(map_of(without, features), map_of(others, features), rtol=1e-3)


@pytest.mark.parametrize("name", ["nearest", "nearest_halo", "halo"])
def test_an_image_does_not_find_itself_in_the_memory(name: str) -> None:
    head = fitted(name)
    own = map_of(head, GOOD[2]).mean()
    assert map_of(head.without(seen_of(GOOD[2]), 2), GOOD[2]).mean() > 1.2 * own
    stranger = drawn(11)
    assert map_of(head, stranger).mean() > 1.2 * own


def test_the_gaussian_is_that_of_all_cells() -> None:
    rows = torch.cat([averaged(each)[0].flatten(1).T for each in GOOD]).double()
    features = drawn(12)
    cells = averaged(features)[0].flatten(1).T.double()
    covariance = torch.cov(rows.T, correction=0) + 0.01 * torch.eye(CHANNELS)
    deviations = cells - rows.mean(0)
    squared = (deviations @ torch.linalg.inv(covariance) * deviations).sum(1)
    found = map_of(fitted("gaussian"), features).flatten().double()
    assert torch.allclose(found, squared.sqrt(), rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_good_images_of_several_sizes_are_measured(name: str) -> None:
    good = measure_seen(seeing(GOOD), config_of(name))
    assert len(good.scores) == len(good.peaks) == 5
    assert good.scores[0] > 0


def test_a_head_that_has_no_such_form_is_refused() -> None:
    kind = head_named("gaussian")
    config = config_of("gaussian").replace(detection={"head": "by_place"})
    register_head("by_place")(kind)
    assert head_of(config.replace(view={"kind": "fit", "place": "aligned"})) is kind
    with pytest.raises(ConfigError, match=r"learns what is good place by place: set view\.place"):
        head_of(config)
    assert sorted(NAMES) == sorted(ANYWHERE)


@pytest.mark.parametrize("size", [3, 95, 96, 128, 133])
def test_the_lowest_values_are_found_group_by_group(size: int) -> None:
    values = torch.randn(4, 50, size, generator=torch.Generator().manual_seed(size))
    assert torch.equal(lowest(values, 3), values.topk(3, largest=False).indices)
