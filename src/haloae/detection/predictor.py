"""Images in, predictions out: what every detector does, whatever computes its maps."""

import logging
import math
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
from haloae.data.source import BATCH, Decoded, ImageLike, decode_ahead
from haloae.data.views import Size, View, join, pieces
from haloae.detection.calibration import Calibration
from haloae.detection.guard import Guard
from haloae.detection.model_file import Provenance
from haloae.errors import ImageError

log = logging.getLogger(__name__)

TILES_PIXELS = 2**20
"""Of the tiles that are measured at once, where a tile has no more of its own."""
SIZE_TOLERANCE = 1.25
"""Images up to this many times larger or smaller than any in training are not remarked on."""
Verdict = Literal["normal", "anomalous", "unusable"]
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
    covered: tuple[float, float] = (1.0, 1.0)
    """How many times the image's height and width `grid_map` covers: the last cells of a map in
    tiles may reach past the image."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Of the image as a whole, see `Guard`; none where the model has no guard."""
    unlike: Mapping[str, str] = field(default_factory=dict)
    """In what the file is unlike all training images (``colour``, ``depth``, ``height``,
    ``width``), and how."""

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
        return resize_map(self.grid_map, size, self.covered)

    @cached_property
    def defects(self) -> NDArray[np.bool_]:
        """(H, W): True where the map is above the pixel threshold."""
        return self.anomaly_map > self.pixel_threshold


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
    """What a backend makes of a batch of images as the network sees them."""

    scores: NDArray[np.float32]
    """(B,)."""
    maps: NDArray[np.float32]
    """(B, h, w), on the feature grid."""


class Backend(Protocol):
    """What computes: torch, or a runtime with an exported graph."""

    source: str
    """What it was loaded from, as it is named in messages."""
    takes: Size | None
    """Height and width of the images that it takes, no others; None: any."""

    @property
    def name(self) -> str:
        """Which one, with its version, and in which precision."""

    def measure(self, images: NDArray[np.float32]) -> Measured:
        """Scores and maps of images as the network sees them.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], of the size of the config's canvas; torch takes
                smaller ones too.
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
    """

    def __init__(
        self,
        config: Config,
        calibration: Calibration,
        provenance: Provenance,
        backend: Backend,
        guard: Guard | None = None,
    ) -> None:
        self.config = config
        self.calibration = calibration
        self.provenance = provenance
        self.backend = backend
        self.guard = guard
        self._said: set[str] = set()

    @property
    def engine(self) -> str:
        """What computes, with its version, and in which precision."""
        return self.backend.name

    def measure(self, images: NDArray[np.float32]) -> Measured:
        """Scores and maps of images as the network sees them, see `Backend.measure`."""
        return self.backend.measure(images)

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
        read = decode_ahead(images, self.view)
        while batch := list(islice(read, BATCH)):
            good = [each for each in batch if isinstance(each, Decoded)]
            predictions = iter(self.judge(good) if good else ())
            for entry in batch:
                if isinstance(entry, ImageError):
                    yield None, entry
                else:
                    yield entry.image, next(predictions)

    def judge(self, batch: Sequence[Decoded]) -> list[Prediction | ImageError]:
        """Predict of images that are decoded and shown to the network, measured together.

        Args:
            batch: at least one, decoded with this detector's `view`.
        """
        refused = [self._not_taken(each) for each in batch]
        taken = [each for each, error in zip(batch, refused, strict=True) if error is None]
        predictions = iter(self._predict_batch(taken) if taken else ())
        return [
            self._checked(each.name, next(predictions)) if error is None else error
            for each, error in zip(batch, refused, strict=True)
        ]

    def _not_taken(self, image: Decoded) -> ImageError | None:
        """Why the backend does not take an image of its shape; None: it does."""
        takes, (height, width) = self.backend.takes, image.shown.shape[1:]
        if takes is None or self.view.kind == "tiles" or (height, width) == takes:
            return None
        return ImageError(
            f"{image.name}: its {image.image.width}×{image.image.height} pixels are fitted to "
            f"{width}×{height}, and {self.backend.source} takes {takes[1]}×{takes[0]} alone: use "
            f"the model.safetensors it was exported from, or images of one aspect ratio."
        )

    def _predict_batch(self, batch: Sequence[Decoded]) -> list[Prediction]:
        calibration, guard = self.calibration, self.guard
        looks = [guard.measure(each.shown) if guard else {} for each in batch]
        return [
            Prediction(
                score=score,
                p_value=calibration.p_value(score),
                is_anomalous=score > calibration.threshold.value,
                extrapolated=calibration.extrapolated,
                grid_map=grid_map,
                size=(each.image.height, each.image.width),
                covered=self.view.covered((each.image.height, each.image.width)),
                pixel_threshold=calibration.pixel_threshold.value,
                unusable=None if guard is None else guard.why(look),
                measures=look,
                unlike=self._unlike(each.image),
            )
            for each, look, (score, grid_map) in zip(
                batch, looks, self._measured(batch), strict=True
            )
        ]

    def _measured(self, batch: Sequence[Decoded]) -> list[tuple[float, NDArray[np.float32]]]:
        """Score and map of each image; those of a size are measured together."""
        if self.view.kind == "tiles":
            return [self._in_tiles(each) for each in batch]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for place, each in enumerate(batch):
            by_size.setdefault(each.shown.shape, []).append(place)
        found: dict[int, tuple[float, NDArray[np.float32]]] = {}
        for places in by_size.values():
            scores, maps = self.measure(np.stack([batch[place].shown for place in places]))
            found |= zip(places, zip(scores.tolist(), maps, strict=True), strict=True)
        return [found[place] for place in range(len(batch))]

    def _in_tiles(self, image: Decoded) -> tuple[float, NDArray[np.float32]]:
        """Score and map of one image, of those of its tiles."""
        view = self.view
        at_once = max(1, TILES_PIXELS // math.prod(view.canvas))
        tiles = (pixels for _, pixels in pieces(image.shown, view))
        maps: list[NDArray[np.float32]] = []
        while batch := list(islice(tiles, at_once)):
            maps += [*self.measure(np.stack(batch)).maps]
        height, width = image.shown.shape[1:]
        whole = join(maps, view, (height, width))
        return top_mean(whole, self.config.detection.top_share), whole

    def _unlike(self, image: Image) -> dict[str, str]:
        """See `Prediction.unlike`."""
        kinds = self.provenance.images
        unlike = {}
        if image.grey not in kinds.grey:
            unlike["colour"] = "is grey" if image.grey else "is in colour"
        if image.depth not in kinds.depths:
            unlike["depth"] = f"has {image.depth} bits a channel"
        if self.view.kind == "tiles":
            return unlike  # of any size, as long as its scale is the same
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


def top_mean(anomaly: NDArray[np.float32], share: float) -> float:
    """Mean of the highest share of a map, as `haloae.detection.maps.image_score` has it."""
    flat = anomaly.ravel()
    count = max(1, round(share * flat.size))
    return float(np.partition(flat, flat.size - count)[flat.size - count :].mean())


def resize_map(
    anomaly: NDArray[np.float32],
    size: tuple[int, int],
    covered: tuple[float, float] = (1.0, 1.0),
) -> NDArray[np.float32]:
    """Bilinear resize, (h, w) → `size`, as torch's interpolate does with align_corners=False.

    Pillow's would widen its filter when shrinking, and lower the map's peaks.

    Args:
        anomaly: the map.
        size: (H, W) that it is brought to.
        covered: how many times that size the map covers, each way; what is beyond is cut off.
    """
    rows, columns = (_bilinear(*sides) for sides in zip(anomaly.shape, size, covered, strict=True))
    return np.asarray(rows @ anomaly @ columns.T, dtype=np.float32)


def _bilinear(old: int, new: int, covered: float) -> NDArray[np.float32]:
    """(new, old): the weights of the old cells in each new one, two a row at most."""
    centres = np.clip((np.arange(new) + 0.5) * (old / (covered * new)) - 0.5, 0, old - 1)
    below = np.minimum(centres.astype(np.intp), max(old - 2, 0))
    share = (centres - below).astype(np.float32)
    weights = np.zeros((new, old), np.float32)
    cells = np.arange(new)
    weights[cells, below] = 1 - share
    weights[cells, np.minimum(below + 1, old - 1)] += share
    return weights
