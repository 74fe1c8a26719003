"""Images in, predictions out: what every detector does, whatever computes its maps."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from haloae.config import Config
from haloae.data.folders import Masks
from haloae.data.images import Image
from haloae.data.regions import (
    EACH,
    Mask,
    Masked,
    Region,
    cells_inside,
    shown_inside,
)
from haloae.data.source import BATCH, Decoded, ImageLike, decode_ahead, decoded
from haloae.data.views import View, join, pieces
from haloae.detection.backend import Backend, Measured
from haloae.detection.calibration import Calibration
from haloae.detection.guard import Guard
from haloae.detection.model_file import Provenance
from haloae.detection.parts import (
    PLAIN,
    PartScore,
    inside_of,
    members_of,
    part_scores,
    stored,
    top_mean,
    units_of_cells,
)
from haloae.detection.prediction import Prediction
from haloae.errors import ConfigError, ImageError, MaskError

log = logging.getLogger(__name__)

TILES_PIXELS = 2**20
"""Of the tiles that are measured at once, where a tile has no more of its own."""


class Predictor:
    """Decodes, resizes, batches and judges; its backend measures.

    Scoring one image does not depend on the others scored with it.

    Args:
        config: of the detector.
        calibration: its thresholds.
        provenance: where it comes from.
        backend: what computes.
        guard: says which images cannot be judged; None: all can.
        region: which pixels of every image count; ``each``: each comes with masks of its own, see
            `Masked`; None: all count.
    """

    def __init__(
        self,
        config: Config,
        calibration: Calibration,
        provenance: Provenance,
        backend: Backend,
        guard: Guard | None = None,
        region: Region | Literal["each"] | None = None,
    ) -> None:
        self.config = config
        self.calibration = calibration
        self.provenance = provenance
        self.backend = backend
        self.guard = guard
        self.region = region
        self._said: set[str] = set()

    @property
    def engine(self) -> str:
        """What computes, with its version, and in which precision."""
        return self.backend.name

    @property
    def stored_region(self) -> Region | None:
        """Which pixels count of every image, if that is the same for all."""
        return stored(self.region)

    def measure(self, images: NDArray[np.float32], inside: Mask | None = None) -> Measured:
        """Scores and maps of images as the network sees them, see `Backend.measure`."""
        return self.backend.measure(images, inside)

    @cached_property
    def view(self) -> View:
        """What the network sees of an image."""
        return View.of(self.config)

    @overload
    def predict(self, images: ImageLike) -> Prediction: ...
    @overload
    def predict(self, images: list[Any] | tuple[Any, ...]) -> list[Prediction]: ...
    def predict(
        self, images: ImageLike | list[Any] | tuple[Any, ...]
    ) -> Prediction | list[Prediction]:
        """Score images and outline their defects.

        Args:
            images: a path, a file's bytes, a PIL image or an array, (H, W) or (H, W, 3), uint8,
                uint16 or float in [0, 1]; a list of them gives a list.

        Raises:
            ImageError: an image cannot be scored; the message names it.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images])[0]
        found = []
        for result in self.stream(images):
            if isinstance(result, ImageError):
                raise result
            found.append(result)
        return found

    def stream(self, images: Iterable[ImageLike]) -> Iterator[Prediction | ImageError]:
        """Predict one after the other, in constant memory.

        An image that cannot be scored gives its error, in its place, and the rest go on. Up to 16
        images are asked for before the first result. In what an image is unlike all training images
        is logged, once of each kind.
        """
        for _, result in self.stream_with_images(images):
            if isinstance(result, Prediction):
                self._log_unlike(result.unlike)
            yield result

    def stream_with_images(
        self, images: Iterable[ImageLike]
    ) -> Iterator[tuple[Image | None, Prediction | ImageError]]:
        """As `stream`, with each image as it was decoded, or None where it could not be.

        Nothing is logged: the predictions say it. The next batch is decoded by threads while one is
        measured.
        """
        read = decode_ahead(map(self._inside, images), self.view)
        while batch := list(islice(read, BATCH)):
            good = [each for each in batch if isinstance(each, Decoded)]
            predictions = iter(self.judge(good) if good else ())
            for entry in batch:
                if isinstance(entry, ImageError):
                    yield None, entry
                else:
                    yield entry.image, next(predictions)

    def decode(self, image: ImageLike) -> Decoded | ImageError:
        """An image as `judge` takes it."""
        return decoded(self._inside(image), self.view)

    def judge(self, batch: Sequence[Decoded]) -> list[Prediction | ImageError]:
        """Predict of images that are decoded already, all measured at once.

        Args:
            batch: at least one, of `decode`.
        """
        refused = [self._refused(each) for each in batch]
        taken = [each for each, error in zip(batch, refused, strict=True) if error is None]
        predictions = iter(self._predict_batch(taken) if taken else ())
        return [
            self._checked(each.name, next(predictions)) if error is None else error
            for each, error in zip(batch, refused, strict=True)
        ]

    def _inside(self, image: ImageLike) -> ImageLike:
        """The image, with what counts of every one."""
        region = self.stored_region
        return image if region is None else Masked(image, region)

    def _refused(self, image: Decoded) -> ImageError | None:
        """Why an image of its masks or its shape is not taken; None: it is."""
        region, inside = self.stored_region, image.inside
        if self.region == EACH:
            fits = inside is not None
        else:
            fits = region is None if inside is None else _same(region, inside)
        if not fits:
            return MaskError(f"{image.name}: {self._wanted_masks()}")
        takes, (height, width) = self.backend.takes, image.shown.shape[1:]
        if takes is None or self.view.kind == "tiles" or (height, width) == takes:
            return None
        return ImageError(
            f"{image.name}: its {image.image.width}×{image.image.height} pixels are fitted to "
            f"{width}×{height}, and {self.backend.source} takes {takes[1]}×{takes[0]} alone: use "
            f"the model.safetensors it was exported from, or images of one aspect ratio."
        )

    def check_masks(self, masks: Masks | None) -> None:
        """Refuse masks for images to predict other than what the model was fitted with.

        What is masked leaves an edge, and only those that were in good images are usual.

        Args:
            masks: of all images; None: there are none, beside the model's own.

        Raises:
            ConfigError: says what is asked for.
        """
        if isinstance(masks, Region):
            fits = _same(self.stored_region, masks.inside)
        else:
            fits = (masks is not None) == (self.region == EACH)
        if not fits:
            raise ConfigError(self._wanted_masks())

    def _wanted_masks(self) -> str:
        source = self.backend.source
        if self.region == EACH:
            return (
                f"{source} was fitted to images with masks of their own: give one for each, with "
                f"--roi or --ignore, or as haloae.Masked."
            )
        how = "whole images" if self.region is None else "one region for all"
        return (
            f"{source} was fitted to {how}, and takes no other masks: fit it to images with masks, "
            f"or let `haloae calibrate` see them."
        )

    def _predict_batch(self, batch: Sequence[Decoded]) -> list[Prediction]:
        seen = [self._seen_inside(each) for each in batch]
        return [
            self._prediction(image, inside, *measured)
            for image, inside, measured in zip(
                batch, seen, self._measured(batch, seen), strict=True
            )
        ]

    def _seen_inside(self, image: Decoded) -> Mask | None:
        """Where a pixel of what is shown of an image counts; None: all do."""
        if (region := self.stored_region) is not None:
            return inside_of(region, self.view)
        return None if image.inside is None else shown_inside(image.inside, self.view)

    def _prediction(
        self, image: Decoded, seen: Mask | None, score: float, grid_map: NDArray[np.float32]
    ) -> Prediction:
        calibration, guard = self.calibration, self.guard
        size = image.image.height, image.image.width
        cells = None if seen is None else cells_inside(seen, self.view.cell)
        look = {} if guard is None else guard.measure(image.shown, seen)
        return Prediction(
            score=score,
            p_value=calibration.p_value(score),
            is_anomalous=score > calibration.threshold.value,
            extrapolated=calibration.extrapolated,
            grid_map=grid_map,
            size=size,
            covered=self.view.covered(size),
            pixel_threshold=calibration.pixel_threshold.value,
            unusable=None if guard is None else guard.why(look),
            measures=look,
            unlike=self.provenance.images.unlike(
                image.image, of_any_size=self.view.kind == "tiles"
            ),
            threshold=calibration.threshold.value,
            inside=image.inside,
            cells=cells,
            parts=self._parts(grid_map, cells),
        )

    def _parts(self, grid_map: NDArray[np.float32], cells: Mask | None) -> dict[str, PartScore]:
        """What is said of each named part."""
        region, calibration = self.stored_region, self.calibration
        if region is None or cells is None or not region.names:
            return {}
        members = members_of(region, self.view)
        in_no_units = grid_map * units_of_cells(members, calibration.units)
        share = self.config.detection.top_share
        scores = part_scores(in_no_units, members & cells, share).tolist()
        limits = [unit.score * calibration.threshold.value for unit in calibration.units]
        return {
            name: PartScore(score, limit, score > limit)
            for name, score, limit in zip(region.names, scores, limits, strict=True)
        }

    def _measured(
        self, batch: Sequence[Decoded], seen: Sequence[Mask | None]
    ) -> list[tuple[float, NDArray[np.float32]]]:
        """Score and map of each image; those of a size are measured together."""
        if self.view.kind == "tiles":
            return [self._in_tiles(*each) for each in zip(batch, seen, strict=True)]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for place, each in enumerate(batch):
            by_size.setdefault(each.shown.shape, []).append(place)
        found: dict[int, tuple[float, NDArray[np.float32]]] = {}
        for places in by_size.values():
            own = [inside for place in places if (inside := seen[place]) is not None]
            scores, maps = self.measure(
                np.stack([batch[place].shown for place in places]),
                np.stack(own) if self.region == EACH else None,
            )
            found |= zip(places, zip(scores.tolist(), maps, strict=True), strict=True)
        return [found[place] for place in range(len(batch))]

    def _in_tiles(self, image: Decoded, seen: Mask | None) -> tuple[float, NDArray[np.float32]]:
        """Score and map of one image, of those of its tiles."""
        view, top_share = self.view, self.config.detection.top_share
        at_once = max(1, TILES_PIXELS // math.prod(view.canvas))
        tiles = (pixels for _, pixels in pieces(image.shown, view))
        masks = iter(()) if seen is None else _mask_tiles(seen, view)
        maps: list[NDArray[np.float32]] = []
        while batch := list(islice(tiles, at_once)):
            own = list(islice(masks, len(batch)))
            maps += [*self.measure(np.stack(batch), np.stack(own) if own else None).maps]
        height, width = image.shown.shape[1:]
        whole = join(maps, view, (height, width))
        if seen is None:
            return top_mean(whole, top_share), whole
        members, region = cells_inside(seen, view.cell)[None], self.stored_region
        if region is not None:
            members = members & members_of(region, view)
        units = self.calibration.units or [PLAIN] * len(members)
        # What lies beyond the image is mirrored, and what counts of it does not count here.
        whole = whole * members.any(0)
        scores = part_scores(whole, members, top_share) / [unit.score for unit in units]
        return float(scores.max()), whole / units_of_cells(members, units)

    def _log_unlike(self, unlike: Mapping[str, str]) -> None:
        """Say, once of each kind, that an image is not like those the detector was fitted on."""
        new = [how for kind, how in unlike.items() if kind not in self._said]
        self._said.update(unlike)
        if new:
            log.warning(
                "an image %s, unlike any of the training images, so its score may mean little; "
                "this is said once of each kind.",
                " and ".join(new),
            )

    def _checked(self, name: str, found: Prediction) -> Prediction | ImageError:
        """What is not a number is above no threshold: it would pass for normal."""
        low, high = float(found.grid_map.min()), float(found.grid_map.max())
        if np.isfinite((found.score, low, high)).all() and min(found.score, low) >= 0:
            return found
        return ImageError(
            f"{name}: {self.backend.source} gives it a score of {found.score:g} and a map from "
            f"{low:g} to {high:g}, where finite numbers of at least 0 are expected: the model is "
            f"damaged or does not fit such images; train or export anew."
        )


def _same(region: Region | None, inside: Mask) -> bool:
    return region is not None and np.array_equal(region.inside, inside)


def _mask_tiles(seen: Mask, view: View) -> Iterator[Mask]:
    """Of what is shown, where a pixel of each tile counts."""
    return (tile[0] > 0 for _, tile in pieces(seen[None].astype(np.float32), view))
