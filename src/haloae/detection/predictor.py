"""Images in, predictions out: what every detector does, whatever computes its maps."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol, get_args, overload

import numpy as np
from numpy.typing import NDArray

from haloae.config import Config
from haloae.data.images import Image
from haloae.data.regions import EACH, Mask, Masked, Region, any_in_cells
from haloae.data.source import BATCH, Decoded, ImageLike, decode_ahead
from haloae.detection.calibration import Calibration
from haloae.detection.guard import Guard
from haloae.detection.model_file import Provenance
from haloae.detection.parts import PartScore, members_of, own_masks, part_scores
from haloae.errors import ImageError, MaskError

log = logging.getLogger(__name__)

SIZE_TOLERANCE = 1.25
"""Images up to this many times larger or smaller than any in training are not remarked on."""
Verdict = Literal["normal", "anomalous", "unusable"]
TINY = 1e-6
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a detector says of one image."""

    score: float
    """Higher is more anomalous; not negative."""
    p_value: float
    """Share of good images that score at least as high, see `Calibration.p_value`."""
    is_anomalous: bool
    """True: the score is above the detector's threshold, which says nothing of an unusable image:
    see `verdict`."""
    extrapolated: bool
    """True: that threshold is a fit to the tail, made from too few good images."""
    grid_map: NDArray[np.float32]
    """(h, w) on the feature grid, on the scale of the pixel threshold."""
    size: tuple[int, int]
    """(H, W) of the image."""
    pixel_threshold: float
    """A map value above it marks a defect."""
    unusable: str | None = None
    """Why no verdict can be had of the score, as the image as a whole is too unlike the good ones,
    in words, see `Guard`; None: it can, or the model has no guard."""
    unlike: Mapping[str, str] = field(default_factory=dict)
    """In what the file is unlike all training images (``colour``, ``depth``, ``height``,
    ``width``), and how."""
    threshold: float | None = None
    """A score above it is anomalous; None where that is not known."""
    inside: Mask | None = None
    """(H, W): True where a pixel counts; None: all do. The map is 0 elsewhere."""
    cells: Mask | None = None
    """(h, w): True where a cell of `grid_map` does."""
    parts: Mapping[str, PartScore] = field(default_factory=dict)
    """By the names of the image's parts, where the model has any; the image's score is in units of
    their thresholds, and that of the highest."""

    @property
    def verdict(self) -> Verdict:
        """``unusable`` whatever the score, else by the threshold."""
        if self.unusable is not None:
            return "unusable"
        return "anomalous" if self.is_anomalous else "normal"

    @cached_property
    def anomaly_map(self) -> NDArray[np.float32]:
        """(H, W): `grid_map` at the image's own size; made when it is first asked for."""
        return self.map_at(self.size)

    def map_at(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """The map at another size that the image is shown in, (H, W)."""
        if self.inside is None or self.cells is None:
            return resize_map(self.grid_map, size)
        # Between the cells that count alone: what is beside them says nothing about the border.
        shares = resize_map(self.cells.astype(np.float32), size)
        known = resize_map(self.grid_map * self.cells, size) / np.maximum(shares, TINY)
        return np.asarray(known * any_in_cells(self.inside, *size), np.float32)

    @cached_property
    def mark_above(self) -> float:
        """A map value above it is marked as a defect.

        The pixel threshold; where nothing of an anomalous image is above that, what made it so:
        the score's threshold, or half of the map's highest value if that is more.
        """
        peak = float(self.grid_map.max())
        if not self.is_anomalous or self.threshold is None or peak > self.pixel_threshold:
            return self.pixel_threshold
        return max(self.threshold, peak / 2)

    @cached_property
    def defects(self) -> NDArray[np.bool_]:
        """(H, W): True where the map is above `mark_above`."""
        return self.anomaly_map > self.mark_above


class UnlikeCounts:
    """In what the images of a run were unlike the training images, for one line at its end."""

    def __init__(self) -> None:
        self.images = 0
        self.kinds: Counter[str] = Counter()
        self.firsts: dict[str, str] = {}

    def add(self, prediction: Prediction) -> None:
        """Count one image, under each of its kinds."""
        self.images += 1
        self.kinds.update(prediction.unlike.keys())
        self.firsts = {**prediction.unlike, **self.firsts}

    def log(self) -> None:
        """Say it, if there is anything to say."""
        if self.kinds:
            log.warning(
                "of %d images, %s are unlike any of the training images, so their scores may mean "
                "little.",
                self.images,
                ", ".join(
                    f"{count} in {kind} (the first {self.firsts[kind]})"
                    for kind, count in self.kinds.items()
                ),
            )


class Measured(NamedTuple):
    """What a backend makes of a batch of resized images."""

    scores: NDArray[np.float32]
    """(B,)."""
    maps: NDArray[np.float32]
    """(B, h, w), on the feature grid."""


class Backend(Protocol):
    """What computes: torch, or a runtime with an exported graph."""

    source: str
    """What it was loaded from, as it is named in messages."""

    @property
    def name(self) -> str:
        """Which one, with its version, and in which precision."""

    def measure(self, images: NDArray[np.float32], inside: Mask | None = None) -> Measured:
        """Scores and maps of resized images.

        Args:
            images: (B, 3, S, S) RGB in [0, 1], S the config's image size.
            inside: (B, S, S), True where a pixel of each counts, within what counts of all; None:
                each counts as all do.
        """


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
        return self.region if isinstance(self.region, Region) else None

    def measure(self, images: NDArray[np.float32], inside: Mask | None = None) -> Measured:
        """Scores and maps of resized images, see `Backend.measure`."""
        return self.backend.measure(images, inside)

    @overload
    def predict(self, images: ImageLike) -> Prediction: ...
    @overload
    def predict(self, images: list[Any] | tuple[Any, ...]) -> list[Prediction]: ...
    def predict(
        self, images: ImageLike | list[Any] | tuple[Any, ...]
    ) -> Prediction | list[Prediction]:
        """Score images and outline their defects.

        Args:
            images: a path, a PIL image or an array, (H, W) or (H, W, 3), uint8, uint16 or float in
                [0, 1]; a list of them gives a list.

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
        read = (
            self._masked(each)
            for each in decode_ahead(self._inside(images), self.config.image_size)
        )
        while batch := list(islice(read, BATCH)):
            good = [each for each in batch if isinstance(each, Decoded)]
            predictions = iter(self._predict_batch(good) if good else ())
            for entry in batch:
                if isinstance(entry, ImageError):
                    yield None, entry
                else:
                    yield entry.image, self._checked(entry.name, next(predictions))

    def _inside(self, images: Iterable[ImageLike]) -> Iterator[ImageLike]:
        """The images, with what counts of every one."""
        region = self.stored_region
        return iter(images) if region is None else (Masked(image, region) for image in images)

    def _masked(self, image: Decoded | ImageError) -> Decoded | ImageError:
        """The image, unless it lacks the masks that the model was fitted with."""
        if self.region != EACH or isinstance(image, ImageError) or image.inside is not None:
            return image
        return MaskError(
            f"{image.name}: {self.backend.source} was fitted to images with masks of their own: "
            f"give this one's, with --roi or --ignore, or as haloae.Masked."
        )

    def _predict_batch(self, batch: Sequence[Decoded]) -> list[Prediction]:
        seen = [self._seen_of(each) for each in batch]
        images = np.stack([each.resized for each in batch])
        measured = self.measure(images, own_masks(seen, self.stored_region, self._canvas))
        return [
            self._prediction(*each)
            for each in zip(batch, seen, measured.scores.tolist(), measured.maps, strict=True)
        ]

    def _seen_of(self, image: Decoded) -> Mask | None:
        """(S, S): where a pixel that the network sees counts."""
        if image.inside is None:
            return None
        return any_in_cells(image.inside, *image.resized.shape[1:])

    def _prediction(
        self, image: Decoded, seen: Mask | None, score: float, grid_map: NDArray[np.float32]
    ) -> Prediction:
        calibration = self.calibration
        cells = None if seen is None else any_in_cells(seen, *grid_map.shape)
        guard = self.guard
        return Prediction(
            score=score,
            p_value=calibration.p_value(score),
            is_anomalous=score > calibration.threshold.value,
            extrapolated=calibration.extrapolated,
            grid_map=grid_map,
            size=(image.image.height, image.image.width),
            pixel_threshold=calibration.pixel_threshold.value,
            unusable=None if guard is None else guard.why_unusable(image.resized, seen),
            unlike=self._unlike(image.image),
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
        members = members_of(region, self._canvas, grid_map.shape) & cells
        share = self.config.detection.top_share
        scores = part_scores(grid_map, members, calibration.units, top_share=share)
        limits = [unit.score * calibration.threshold.value for unit in calibration.units]
        return {
            name: PartScore(score, limit, score > limit)
            for name, score, limit in zip(region.names, scores, limits, strict=True)
        }

    @property
    def _canvas(self) -> tuple[int, int]:
        return self.config.image_size, self.config.image_size

    def _unlike(self, image: Image) -> dict[str, str]:
        """See `Prediction.unlike`."""
        kinds = self.provenance.images
        unlike = {}
        if image.grey not in kinds.grey:
            unlike["colour"] = "is grey" if image.grey else "is in colour"
        if image.depth not in kinds.depths:
            unlike["depth"] = f"has {image.depth} bits a channel"
        for name, word, size, (low, high) in (
            ("height", "high", image.height, kinds.heights),
            ("width", "wide", image.width, kinds.widths),
        ):
            if not low / SIZE_TOLERANCE <= size <= high * SIZE_TOLERANCE:
                unlike[name] = f"is {size} pixels {word}"
        return unlike

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


def resize_map(anomaly: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear resize, (h, w) → `size`, as torch's interpolate does with align_corners=False.

    Pillow's would widen its filter when shrinking, and lower the map's peaks.
    """
    rows, columns = (_bilinear(*sides) for sides in zip(anomaly.shape, size, strict=True))
    return np.asarray(rows @ anomaly @ columns.T, dtype=np.float32)


def _bilinear(old: int, new: int) -> NDArray[np.float32]:
    """(new, old): the weights of the old cells in each new one, two a row at most."""
    centres = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    below = np.minimum(centres.astype(np.intp), max(old - 2, 0))
    share = (centres - below).astype(np.float32)
    weights = np.zeros((new, old), np.float32)
    cells = np.arange(new)
    weights[cells, below] = 1 - share
    weights[cells, np.minimum(below + 1, old - 1)] += share
    return weights
