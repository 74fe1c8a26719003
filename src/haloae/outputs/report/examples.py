"""Single images for the report: which to show, and what was found on them."""

import base64
import heapq
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage

from haloae.data.folders import GOOD, Category, Sample
from haloae.data.images import read_image, read_mask, shown_path
from haloae.data.regions import Masked
from haloae.detection.prediction import Prediction
from haloae.detection.predictor import Predictor
from haloae.errors import DataError, ImageError
from haloae.evaluation.evaluate import Evaluation, Progress
from haloae.outputs.pictures import draw_views
from haloae.outputs.report.words import MOST, counted

QUALITY = 80


class Example(NamedTuple):
    """One image with what was found on it; pictures are data URIs."""

    path: str
    label: str
    score: float
    is_anomalous: bool
    unusable: str | None
    """See `Prediction.unusable`."""
    image: str
    anomaly_map: str
    outline: str
    has_mask: bool
    """True: the true defect is outlined too."""


class Gallery(NamedTuple):
    """Some images of one kind."""

    title: str
    note: str
    examples: Sequence[Example]


def scored_galleries(
    detector: Predictor, category: Category, evaluation: Evaluation
) -> list[Gallery]:
    """Hits, misses and false alarms, at most `MOST` of each; they are scored once more."""
    rows, samples = evaluation.rows, evaluation.samples
    order = sorted(range(len(rows)), key=lambda index: -rows[index]["score"])

    def places(*, is_defect: bool, is_called: bool) -> list[int]:
        return [
            index
            for index in order
            if samples[index].is_anomalous is is_defect and rows[index]["is_anomalous"] is is_called
        ]

    hits = places(is_defect=True, is_called=True)
    misses = places(is_defect=True, is_called=False)
    alarms = places(is_defect=False, is_called=True)
    kinds = [
        (
            "Hits",
            f"{counted(len(hits), 'defect')} found, from the clearest to the faintest",
            spread(hits),
        ),
        (
            "Misses",
            f"{counted(len(misses), 'defect')} not found, nearest to the threshold first",
            misses,
        ),
        (
            "False alarms",
            f"{counted(len(alarms), 'good image')} called defective, highest first",
            alarms,
        ),
    ]
    return [
        Gallery(title, note, _examples(detector, category, [samples[i] for i in chosen[:MOST]]))
        for title, note, chosen in kinds
    ]


def training_gallery(
    detector: Predictor, category: Category, *, progress: Progress = iter
) -> list[Gallery]:
    """The most unusual training images, all of which are scored; [] where there are none.

    None of a head that remembers them: to it, none is unusual.
    """
    if not category.train or not detector.config.network.autoencoder:
        return []
    paths = most_unusual(detector, category, progress=progress)
    samples = [Sample(path, GOOD, None) for path in paths]
    note = (
        f"Highest scores among {counted(len(category.train), 'training image')}, which are taken "
        f"to be good: a defect here spoils the training"
    )
    examples = _examples(detector, category, samples)
    return [Gallery("Most unusual training images", note, examples)]


def most_unusual(
    detector: Predictor, category: Category, *, progress: Progress = iter
) -> list[Path]:
    """The training images with the highest scores, highest first, of those that can be read."""

    def scored() -> Iterator[tuple[float, Path]]:
        for path in progress(category.train):
            # One at a time: a batch of very large images is a lot of memory.
            result = next(detector.stream([category.item(path)]))
            if isinstance(result, Prediction):
                yield result.score, path

    return [path for _, path in heapq.nlargest(MOST, scored(), key=lambda found: found[0])]


def spread(ordered: Sequence[int]) -> list[int]:
    """At most `MOST` of a sequence, evenly spaced from its first to its last."""
    places = np.linspace(0, len(ordered) - 1, min(MOST, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def _examples(detector: Predictor, category: Category, samples: Sequence[Sample]) -> list[Example]:
    """Score some samples once more and draw them; what cannot be read any more is left out."""
    examples = []
    for sample in samples:
        try:
            examples.append(_example(detector, category, sample))
        except ImageError:
            continue
    return examples


def _example(detector: Predictor, category: Category, sample: Sample) -> Example:
    item = category.item(sample.path)
    image = read_image(sample.path)
    prediction = detector.predict(Masked(image, item.region) if isinstance(item, Masked) else image)
    mask = None
    if sample.mask is not None:
        try:
            mask = read_mask(sample.mask, shape=(image.height, image.width))
        except (ImageError, DataError):
            mask = None
    views = draw_views(image, prediction, truth=mask)
    return Example(
        path=shown_path(sample.path.relative_to(category.root).as_posix()),
        label=shown_path(sample.label),
        score=prediction.score,
        is_anomalous=prediction.is_anomalous,
        unusable=prediction.unusable,
        image=_data_uri(views.image),
        anomaly_map=_data_uri(views.anomaly_map),
        outline=_data_uri(views.outlined),
        has_mask=mask is not None,
    )


def _data_uri(picture: PILImage.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
