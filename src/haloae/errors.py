"""Every error a caller can get, one tree: catch `HaloaeError` to catch them all.

    HaloaeError
    ├── ConfigError         a setting
    ├── DataError           a folder of images
    │   └── ImageError      one image
    │       └── MaskError   what counts of it
    ├── WeightsError        the backbone's weights
    ├── ModelFileError      a model file, native or exported
    ├── OutputError         something that is written
    ├── TrainingError       a training that cannot go on
    ├── ExportError         a model that cannot be exported
    └── MissingExtraError   a package that is not installed

Each message is one sentence that names the file and the way out; the command line prints it and
exits with code 2.
"""


class HaloaeError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(HaloaeError):
    """A setting is unknown, of the wrong type or does not fit the others."""


class DataError(HaloaeError):
    """A folder of images is missing, empty, too small or not laid out as expected."""


class ImageError(DataError):
    """One image cannot be scored: truncated, not an image, too large, unreadable."""


class MaskError(ImageError):
    """A mask of which pixels count cannot be read, does not fit an image, or leaves nothing."""


class WeightsError(HaloaeError):
    """The backbone's weights cannot be had or do not fit."""


class ModelFileError(HaloaeError):
    """A model file is truncated, tampered with, of a newer format or not a model."""


class OutputError(HaloaeError):
    """An output cannot be written, or would overwrite something."""


class TrainingError(HaloaeError):
    """Training cannot go on: a loss is not finite, or a checkpoint does not fit."""


EXTRAS = {
    **dict.fromkeys(("jinja2", "markupsafe", "onnx", "onnxscript"), "train"),
    **dict.fromkeys(("scipy", "sklearn", "torch", "torchvision"), "train"),
    "imagecodecs": "deep",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "nncf": "int8",
    "psycopg": "postgres",
    "asyncua": "opcua",
    "cv2": "camera",
    "paho": "mqtt",
    **dict.fromkeys(("fastapi", "prometheus_client", "uvicorn"), "serve"),
}
"""Which extra installs a package, by the name it is imported by."""


class MissingExtraError(HaloaeError):
    """An optional dependency is not installed, or is and cannot be imported."""

    def __init__(self, package: str, extra: str, error: ImportError | None = None) -> None:
        is_missing = error is None or (
            isinstance(error, ModuleNotFoundError) and error.name == package
        )
        problem = "is not installed" if is_missing else f"cannot be imported ({error})"
        super().__init__(
            f"{package} {problem}, and this command needs it: run `pip install 'haloae[{extra}]'`."
        )


class ExportError(HaloaeError):
    """A model cannot be exported, or what was exported does not agree with the detector."""
