"""A prediction for programs: the values of its JSON line, its map as the bytes of a PNG or TIFF."""

import io
from typing import Any, Literal

import numpy as np
from PIL import Image as PILImage

from haloae.detection.prediction import Prediction
from haloae.errors import ImageError

MapFormat = Literal["png", "tiff"]
TINY = 1e-30


def as_record(
    path: str, result: Prediction | ImageError, *, map: str | None, overlay: str | None
) -> dict[str, Any]:
    """What is said of one image; every key is always there, and JSON can hold every value.

    Args:
        path: of the image, as it was given.
        result: where it is an error, that is all there is to say.
        map: where the map was written.
        overlay: where the picture was written.
    """
    prediction, error = (None, result) if isinstance(result, ImageError) else (result, None)
    return {
        "path": path,
        "score": prediction and prediction.score,
        "p_value": prediction and prediction.p_value,
        "is_anomalous": prediction and prediction.is_anomalous,
        "extrapolated": prediction and prediction.extrapolated,
        "verdict": prediction and prediction.verdict,
        "unusable": prediction and prediction.unusable,
        "unlike": prediction and list(prediction.unlike.values()),
        "regions": prediction and {name: part._asdict() for name, part in prediction.parts.items()},
        "map": map,
        "overlay": overlay,
        "error": error and str(error),
    }


def encode_map(prediction: Prediction, format: MapFormat) -> bytes:
    """The anomaly map at the image's own size, as a file's bytes.

    Args:
        prediction: of one image.
        format: ``png``, 16 bits, where half the range is the pixel threshold and the map is cut
            off at twice that; ``tiff``, float32, the values themselves.
    """
    values = prediction.anomaly_map
    if format == "png":
        threshold = max(prediction.pixel_threshold, TINY)
        values = (np.clip(values / (2 * threshold), 0, 1) * 65535).round().astype(np.uint16)
    buffer = io.BytesIO()
    PILImage.fromarray(values).save(buffer, format=format)
    return buffer.getvalue()
