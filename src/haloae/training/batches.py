"""Good images on disk → the batch of every step, a function of (seed, step) and nothing else.

So a run that was killed goes on as if it had not been, and workers may make batches ahead.
"""

import signal
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from haloae.data.limits import Limits, current_limits, limit_images
from haloae.data.regions import Mask, shown_inside
from haloae.data.source import ImageKinds, ImageLike, decode_ahead, decoded
from haloae.data.views import Size, View, tile_of
from haloae.errors import DataError, ImageError, MaskError
from haloae.training.cutpaste import VIEWS, cutpaste_views

CACHE_BYTES = 512 * 2**20
"""Most memory that decoded images are kept in, however many there are."""
MIN_GOOD = 8
"""Fewest good images a detector is fitted on: four to fit, four to calibrate."""
HELD_OUT_SHARE = 0.1
MIN_HELD_OUT = 4


class GoodImages:
    """Images by index, as the network sees them; the first stay in memory, up to `CACHE_BYTES`.

    Args:
        items: the images, however they are given.
        view: what is seen of them.
    """

    def __init__(self, items: Sequence[ImageLike], view: View) -> None:
        self.items = list(items)
        self.view = view
        self.shapes: set[Size] = set()
        """Heights and widths of what was read of them."""
        self._cache: dict[int, np.ndarray] = {}
        self._inside: dict[int, tuple[np.ndarray, int]] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getstate__(self) -> dict[str, Any]:
        # Workers fill a cache of their own.
        return {**self.__dict__, "_cache": {}}

    def __getitem__(self, index: int) -> np.ndarray:
        """(3, H, W) float32 in [0, 1], see `View.show`.

        Raises:
            ImageError: the file cannot be read any more.
        """
        if index in self._cache:
            return self._cache[index]
        read = decoded(self.items[index], self.view)
        if isinstance(read, ImageError):
            raise read
        return self.keep(index, read.shown)

    def part(self, index: int, seed: int) -> np.ndarray:
        """As much of an image as the network is given at once: all of it, or a tile, at random.

        A tile lies at whole steps, as all do; of an image that is smaller, the rest is mirrored.
        """
        pixels = self[index]
        if self.view.kind != "tiles":
            return pixels
        return tile_of(pixels, self.view, np.random.default_rng(seed))

    def inside(self, index: int) -> Mask | None:
        """(H, W): True where a pixel of what is shown counts; None: all do."""
        if index not in self._inside:
            return None
        packed, width = self._inside[index]
        return np.unpackbits(packed, axis=1, count=width).astype(bool)

    def part_inside(self, index: int, seed: int) -> Mask | None:
        """(H, W): where a pixel of `part` counts; None: all do."""
        inside = self.inside(index)
        if inside is None or self.view.kind != "tiles":
            return inside
        shown = inside[None].astype(np.float32)
        return np.asarray(tile_of(shown, self.view, np.random.default_rng(seed))[0] > 0)

    def note(self, index: int, inside: Mask | None) -> None:
        """Remember what counts of an image, (H, W) of its own."""
        if inside is not None:
            shown = shown_inside(inside, self.view)
            self._inside[index] = np.packbits(shown, axis=1), shown.shape[1]

    def keep(self, index: int, pixels: np.ndarray) -> np.ndarray:
        """Cache what was just read, if there is room."""
        worker = get_worker_info()
        room = CACHE_BYTES // (worker.num_workers if worker else 1)
        if (len(self._cache) + 1) * pixels.nbytes <= room:
            self._cache[index] = pixels
        return pixels


def survey(
    items: Sequence[ImageLike],
    view: View,
    *,
    strict: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> tuple[GoodImages, ImageKinds, list[ImageError]]:
    """Read every image once: which can be used, and what they are like.

    Args:
        items: candidates.
        view: what is seen of them.
        strict: True: raise at the first that cannot be read.
        progress: wraps the items where someone wants to watch.

    Raises:
        ImageError: with `strict`, an image cannot be read.
        MaskError: a mask cannot be read, does not fit its image, or leaves nothing of it.
        DataError: fewer than 8 images can be read.
    """
    images, skipped = GoodImages([], view), []
    grey, depths = set(), set()
    heights, widths = [], []
    watched = progress(items)
    for item, read in zip(watched, decode_ahead(items, view), strict=True):
        if isinstance(read, ImageError):
            if strict or isinstance(read, MaskError):  # it would be wrong for most others too
                raise read
            skipped.append(read)
            continue
        image = read.image
        images.items.append(item)
        images.keep(len(images) - 1, read.shown)
        images.note(len(images) - 1, read.inside)
        images.shapes.add(view.size_of((image.height, image.width)))
        grey.add(image.grey)
        depths.add(image.depth)
        heights.append(image.height)
        widths.append(image.width)
    if len(images) < MIN_GOOD:
        unread = f" ({len(skipped)} more cannot be read)" if skipped else ""
        raise DataError(
            f"{len(images)} good images are too few{unread}: give at least {MIN_GOOD}, better 50."
        )
    kinds = ImageKinds(
        grey=tuple(sorted(grey)),
        depths=tuple(sorted(depths)),
        heights=(min(heights), max(heights)),
        widths=(min(widths), max(widths)),
    )
    return images, kinds, skipped


def split(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices to fit on, and a tenth (at least 4) held out for calibration only."""
    order = np.random.default_rng([seed, 0]).permutation(count).tolist()
    held_out = max(MIN_HELD_OUT, round(HELD_OUT_SHARE * count))
    return sorted(order[held_out:]), sorted(order[:held_out])


class StepBatches(Dataset[Tensor]):
    """The views of every step's images.

    Args:
        images: all good images.
        indices: those to fit on, repeated in a new order every time they run out.
        batch_size: images a step.
        seed: of order and CutPaste.
        pasted: False: only the normal view of each image.
    """

    def __init__(
        self,
        images: GoodImages,
        indices: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        pasted: bool,
    ) -> None:
        self.images = images
        self.indices = list(indices)
        self.batch_size = batch_size
        self.seed = seed
        self.pasted = pasted

    def __getitem__(self, step: int) -> Tensor:
        """(V, B, 3, S, S) float32 in [0, 1]; V = 3 views, or 1 without pasted ones."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, step))
        batch = []
        for place in range(step * self.batch_size, (step + 1) * self.batch_size):
            index = self._index(place)
            image = torch.from_numpy(self.images.part(index, seed_of(self.seed, 2, place)))
            batch.append(cutpaste_views(image, generator)[: VIEWS if self.pasted else 1])
        return torch.stack(batch, dim=1)

    def _index(self, place: int) -> int:
        """Image at a place of the endless sequence of shuffled passes."""
        lap, position = divmod(place, len(self.indices))
        order = np.random.default_rng([self.seed, 1, lap]).permutation(len(self.indices))
        return self.indices[int(order[position])]

    def loader(self, start: int, stop: int, *, workers: int = 0) -> "DataLoader[Tensor]":
        """Batches of steps `start` to `stop`, made ahead by `workers` processes, if any."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            # fork is not safe beside the threads torch has started
            multiprocessing_context="spawn" if workers else None,
            worker_init_fn=partial(_start_worker, current_limits()) if workers else None,
        )


def _start_worker(limits: Limits, worker: int) -> None:
    """Limits of images are those of the main process; Ctrl-C is for it, which ends its workers."""
    limit_images(**limits.model_dump())
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def seed_of(*numbers: int) -> int:
    """One 63-bit seed out of several numbers, so that a step's randomness is its own."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
