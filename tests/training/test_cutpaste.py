"""Section A: what the three views of an image are, and where their randomness comes from."""

import random

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from haloae.training import cutpaste
from haloae.training.cutpaste import colour_jitter, cutpaste_views, paste_patch, paste_scar

DRAWS = 200


def noise_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Noise away from 0 and 1, so that no colour change is cut off and every pixel differs."""
    return 0.2 + 0.5 * torch.rand(3, height, width, generator=seeded(seed))


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def changed(view: Tensor, normal: Tensor) -> np.ndarray:
    """(H, W): True where any channel differs."""
    return (view != normal).any(0).numpy()


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def box_sides(mask: np.ndarray) -> tuple[int, int]:
    rows, columns = bounding_box(mask)
    return rows.stop - rows.start, columns.stop - columns.start


def test_views_are_normal_then_patch_then_scar() -> None:
    image = noise_image(256, 256)
    normal, patch, scar = cutpaste_views(image, seeded(1))
    assert torch.equal(normal, colour_jitter(image, seeded(1)))
    # the smallest patch has 1311 pixels, the largest scar's bounding box 31²
    assert changed(patch, normal).sum() > 1250
    assert 0 < changed(scar, normal).sum() < 31**2


def test_same_generator_same_views() -> None:
    image = noise_image(40, 50)
    views = cutpaste_views(image, seeded(3))
    assert torch.equal(views, cutpaste_views(image, seeded(3)))
    assert not torch.equal(views, cutpaste_views(image, seeded(4)))


def test_global_randomness_is_neither_used_nor_moved() -> None:
    image = noise_image(40, 50)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    views = cutpaste_views(image, seeded(3))
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(views, cutpaste_views(image, seeded(3)))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 500), (500, 3), (32, 32), (256, 256)])
def test_any_size(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size, generator=seeded(0))
    before = image.clone()
    for seed in range(5):
        views = cutpaste_views(image, seeded(seed))
        assert views.shape == (3, 3, *size)
        assert views.dtype == torch.float32
        assert views.isfinite().all()
        assert views.min() >= 0
        assert views.max() <= 1
    assert torch.equal(image, before)


def test_odd_sizes_never_fail() -> None:
    rng = np.random.default_rng(0)
    for seed in range(300):
        height, width = (int(side) for side in rng.integers(1, 60, size=2))
        image = torch.rand(3, height, width, generator=seeded(seed))
        views = cutpaste_views(image, seeded(seed))
        assert views.shape == (3, 3, height, width)
        assert 0 <= views.min() <= views.max() <= 1


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_extreme_images_stay_in_range(value: float) -> None:
    for seed in range(20):
        views = cutpaste_views(torch.full((3, 20, 24), value), seeded(seed))
        assert 0 <= views.min() <= views.max() <= 1


@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 300)])
def test_patch_area_and_aspect(height: int, width: int) -> None:
    image = noise_image(height, width)
    areas, aspects = [], []
    for seed in range(DRAWS):
        mask = changed(paste_patch(image, seeded(seed)), image)
        rows, columns = box_sides(mask)
        assert mask[bounding_box(mask)].mean() > 0.95  # a full rectangle
        # the sides were rounded by half a pixel at most
        assert (rows + 0.5) * (columns + 0.5) >= 0.02 * height * width
        assert (rows - 0.5) * (columns - 0.5) <= 0.15 * height * width
        assert (columns + 0.5) / (rows - 0.5) >= 0.3
        assert (columns - 0.5) / (rows + 0.5) <= 1 / 0.3
        areas.append(rows * columns / (height * width))
        aspects.append(columns / rows)
    assert min(areas) < 0.03
    assert max(areas) > 0.14
    # log-uniform: as many below 1 as above, and both ends are reached
    assert min(aspects) < 0.36
    assert max(aspects) > 2.8
    assert 0.4 < np.mean(np.array(aspects) < 1) < 0.6


def test_patch_goes_everywhere() -> None:
    image = noise_image(64, 64)
    seen = sum(changed(paste_patch(image, seeded(seed)), image) for seed in range(DRAWS))
    assert (np.asarray(seen) > 0).mean() > 0.95


def test_patch_is_a_rectangle_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutpaste, "colour_jitter", lambda image, generator: image)
    height, width = 40, 60
    image = torch.arange(height * width, dtype=torch.float32).view(1, height, width)
    image = image.repeat(3, 1, 1) / (height * width)
    for seed in range(20):
        pasted = paste_patch(image, seeded(seed))
        mask = changed(pasted, image)
        if not mask.any():  # pasted on its own place
            continue
        source = (pasted[0].numpy() * height * width).round().astype(int)[mask]
        rows, columns = mask.nonzero()
        assert len(set(source // width - rows)) == 1
        assert len(set(source % width - columns)) == 1


def test_scar_within_rotated_bounds() -> None:
    image = noise_image(256, 256)
    counts, filled = [], []
    for seed in range(DRAWS):
        mask = changed(paste_scar(image, seeded(seed)), image)
        rows, columns = box_sides(mask)
        # at most 25.5 · cos + 16.5 · sin, and a pixel that rotating adds on each side
        assert max(rows, columns) <= 33
        counts.append(int(mask.sum()))
        filled.append(mask[bounding_box(mask)].mean())
    # 10 × 2 to 25 × 16; nearest sampling moves the edges by half a pixel
    assert min(counts) >= 9 * 1.5
    assert max(counts) <= 26 * 17
    assert max(counts) > 250
    assert min(counts) < 60
    # the rotated mask leaves corners as they were
    assert min(filled) < 0.7


def test_scar_is_rotated_up_to_45_degrees_either_way() -> None:
    image = noise_image(256, 256)
    angles = []
    for seed in range(DRAWS):
        coordinates = np.argwhere(changed(paste_scar(image, seeded(seed)), image))
        values, vectors = np.linalg.eigh(np.cov(coordinates.T))
        if values[1] > 6 * values[0]:  # thin enough to tell which way it points
            rows, columns = vectors[:, 1] * np.sign(vectors[0, 1])
            angles.append(np.degrees(np.arctan2(columns, rows)))
    assert len(angles) > 40
    assert max(np.abs(angles)) < 49
    assert min(angles) < -30
    assert max(angles) > 30


def test_scar_scales_with_the_image() -> None:
    small, large = noise_image(128, 128), noise_image(512, 512)
    sums = [
        sum(changed(paste_scar(image, seeded(seed)), image).sum() for seed in range(60))
        for image in (small, large)
    ]
    assert 13 < sums[1] / sums[0] < 19


def test_scar_scales_with_each_side() -> None:
    tall, wide = noise_image(512, 64), noise_image(64, 512)
    sides = [
        np.mean([box_sides(changed(paste_scar(i, seeded(s)), i)) for s in range(60)], axis=0)
        for i in (tall, wide)
    ]
    assert sides[0][0] > 1.5 * sides[0][1]
    assert sides[1][1] > sides[1][0]


def test_colour_jitter_changes_brightness_by_a_tenth_at_most() -> None:
    grey = torch.full((3, 4, 4), 0.5)
    levels = [colour_jitter(grey, seeded(seed)).mean().item() for seed in range(100)]
    assert 0.45 - 1e-5 <= min(levels) < 0.47
    assert 0.53 < max(levels) <= 0.55 + 1e-5


def test_no_colour_jitter_is_the_identity() -> None:
    image = noise_image(8, 9)
    assert torch.allclose(colour_jitter(image, seeded(0), amount=0.0), image, atol=1e-6)
    assert not torch.allclose(colour_jitter(image, seeded(0)), image, atol=1e-3)
