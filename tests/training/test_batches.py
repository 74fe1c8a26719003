"""Batches are a function of (seed, step), whoever makes them and in whatever order."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from haloae.data.images import read_image
from haloae.data.source import Decoded, ImageLike, decoded
from haloae.data.views import View, resize
from haloae.errors import DataError, ImageError
from haloae.training import batches
from haloae.training.batches import GoodImages, StepBatches, seed_of, split, survey
from haloae.training.cutpaste import cutpaste_views

SIZE = 16
VIEW = View("squash", (SIZE, SIZE))


def step_batches(paths: list[Path], *, seed: int = 5, pasted: bool = True) -> StepBatches:
    indices = [0, 2, 3, 5, 7, 8, 11]
    return StepBatches(GoodImages(paths, VIEW), indices, batch_size=3, seed=seed, pasted=pasted)


def used(of: StepBatches, steps: int) -> list[int]:
    """Images of the first steps, in order, as the batches themselves take them."""
    taken: list[int] = []

    class Recorder(GoodImages):
        def __getitem__(self, index: int) -> np.ndarray:
            taken.append(index)
            return super().__getitem__(index)

    of.images = Recorder(of.images.items, VIEW)
    for step in range(steps):
        of[step]
    return list(taken)


def test_a_batch_is_views_by_images(good_paths: list[Path]) -> None:
    batch = step_batches(good_paths)[0]
    assert batch.shape == (3, 3, 3, SIZE, SIZE)
    assert batch.dtype == torch.float32
    assert 0 <= batch.min() <= batch.max() <= 1
    assert step_batches(good_paths, pasted=False)[0].shape == (1, 3, 3, SIZE, SIZE)


def test_a_batch_holds_the_views_of_its_images(good_paths: list[Path]) -> None:
    of = step_batches(good_paths)
    first = used(of, 1)
    batch = of[0]
    generator = torch.Generator().manual_seed(seed_of(5, 0))
    for place, index in enumerate(first):
        image = torch.from_numpy(resize(read_image(good_paths[index]), SIZE))
        assert torch.equal(batch[:, place], cutpaste_views(image, generator))


def test_order_of_asking_changes_nothing(good_paths: list[Path]) -> None:
    forwards = [step_batches(good_paths)[step] for step in range(5)]
    of = step_batches(good_paths)
    torch.manual_seed(1)
    for step in (4, 0, 3, 3, 1, 2):
        assert torch.equal(of[step], forwards[step])


def test_seed_and_step_change_the_batch(good_paths: list[Path]) -> None:
    of = step_batches(good_paths)
    assert not torch.equal(of[0], of[1])
    assert not torch.equal(of[0], step_batches(good_paths, seed=6)[0])
    # a sum or a difference of seed and step would give these the same batch
    assert not torch.equal(of[1], step_batches(good_paths, seed=6)[0])
    assert not torch.equal(of[0], step_batches(good_paths, seed=4)[1])


def test_every_image_once_a_lap_in_a_new_order(good_paths: list[Path]) -> None:
    of = step_batches(good_paths)
    taken = used(of, 7)  # 7 steps of 3 are 3 laps of 7
    laps = [taken[start : start + 7] for start in (0, 7, 14)]
    for lap in laps:
        assert sorted(lap) == of.indices
    assert laps[0] != laps[1] != laps[2] != laps[0]


def test_more_images_a_step_than_there_are(good_paths: list[Path]) -> None:
    of = StepBatches(GoodImages(good_paths, VIEW), [1, 4], batch_size=5, seed=0, pasted=False)
    assert Counter(used(of, 2)) == {1: 5, 4: 5}


def test_loader_gives_steps_from_start_to_stop(good_paths: list[Path]) -> None:
    of = step_batches(good_paths)
    loaded = list(of.loader(2, 5))
    assert len(loaded) == 3
    assert all(torch.equal(batch, of[2 + i]) for i, batch in enumerate(loaded))
    assert list(of.loader(5, 5)) == []


@pytest.mark.slow
def test_workers_make_the_same_batches(good_paths: list[Path]) -> None:
    of = step_batches(good_paths)
    for step, batch in enumerate(of.loader(0, 4, workers=1)):
        assert torch.equal(batch, of[step])


@pytest.mark.parametrize("count", [8, 12, 39, 40, 44, 46, 100, 209, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_held_out_images_are_never_fitted_on(count: int, seed: int) -> None:
    fitted_on, held_out = split(count, seed)
    assert sorted(fitted_on + held_out) == list(range(count))
    assert len(held_out) == max(4, round(count / 10))
    assert split(count, seed) == (fitted_on, held_out)


def test_held_out_images_are_drawn_from_everywhere() -> None:
    drawn = np.concatenate([split(100, seed)[1] for seed in range(100)])
    assert len(set(drawn)) > 95
    assert 40 < drawn.mean() < 60
    assert split(100, 0) != split(100, 1)


def test_cache_holds_images_up_to_its_limit(
    good_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = 3 * SIZE * SIZE * 4
    monkeypatch.setattr(batches, "CACHE_BYTES", 3 * one + one // 2)
    images, _, _ = survey(good_paths, VIEW)
    read_again: list[object] = []

    def counting(item: ImageLike, view: View) -> Decoded | ImageError:
        read_again.append(item)
        return decoded(item, view)

    monkeypatch.setattr(batches, "decoded", counting)
    for index in range(len(images)):
        first = images[index]
        assert np.array_equal(first, images[index])
        assert np.array_equal(first, resize(read_image(good_paths[index]), SIZE))
    assert Counter(read_again) == Counter(2 * good_paths[3:])


def test_cached_images_are_not_read_again(
    good_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _, _ = survey(good_paths, VIEW)

    def fail(path: Path, view: View) -> None:
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr(batches, "decoded", fail)
    assert images[11].shape == (3, SIZE, SIZE)


def test_batches_leave_cached_images_as_they_are(good_paths: list[Path]) -> None:
    of = step_batches(good_paths)
    before = of.images[0].copy()
    for step in range(10):
        of[step].zero_()
    assert np.array_equal(of.images[0], before)


def test_survey_says_what_images_are_like(good_paths: list[Path], tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.fromarray(np.zeros((20, 70), np.uint8)).save(grey)
    images, kinds, skipped = survey([*good_paths, grey], VIEW)
    assert len(images) == 13
    assert skipped == []
    assert kinds.grey == (False, True)
    assert kinds.depths == (8,)
    assert kinds.heights == (20, 40)
    assert kinds.widths == (40, 70)


def test_unreadable_images_are_skipped_and_named(good_paths: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(good_paths[0].read_bytes()[:100])
    images, _, skipped = survey([good_paths[0], broken, *good_paths[1:]], VIEW)
    assert images.items == good_paths
    assert len(skipped) == 1
    assert "broken.png" in str(skipped[0])
    # indices stay those of the images that can be read
    assert np.array_equal(images[1], resize(read_image(good_paths[1]), SIZE))
    with pytest.raises(ImageError, match=r"broken\.png"):
        survey([good_paths[0], broken], VIEW, strict=True)


def test_too_few_images(good_paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="7 good images are too few: give at least 8"):
        survey(good_paths[:7], VIEW)
    missing = tmp_path / "missing.png"
    with pytest.raises(DataError, match=r"7 good images .*1 more cannot be read"):
        survey([*good_paths[:7], missing], VIEW)
    assert len(survey(good_paths[:8], VIEW)[0]) == 8
