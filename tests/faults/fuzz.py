"""Coverage-guided fuzzing of what reads files of others; run by hand, it ends when told to.

    uv run --group fuzz python tests/faults/fuzz.py TARGET FOLDER [-max_total_time=120 ...]

TARGET is images, model or exports. FOLDER keeps the inputs that led somewhere new, so that a second
run goes on from the first; sound files, made here, are put there to start from. An exception that
is no `HaloaeError` ends the run, and its input is kept. Options are libFuzzer's.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
with atheris.instrument_imports(include=["haloae", "PIL"]):
    from haloae.data.images import decode_here
    from haloae.data.limits import Limits
    from haloae.deploy.runtime import open_runtime
    from haloae.detection.model_file import read_model
    from haloae.errors import HaloaeError

LIMITS = Limits(pixels=2**20, bytes=2**20)
Target = Callable[[Path], object]


def images(path: Path) -> object:
    """All decoders, in this process."""
    return decode_here(path, path.name, LIMITS)


TARGETS: dict[str, tuple[Target, str]] = {
    "images": (images, ".img"),
    "model": (read_model, ".safetensors"),
    "exports": (open_runtime, ".onnx"),
}
"""What takes a file, and the file's suffix."""


def sow(name: str, folder: Path) -> None:
    """Put sound files into a folder."""
    from conftest import PLAIN
    from faults.models import metadata_of, small_export
    from faults.pictures import NAMES, sound
    from haloae.detection.model_file import Header, write_model

    config = PLAIN.replace(image_size=32)
    if name == "images":
        for kind in NAMES:
            (folder / kind).write_bytes(sound(kind, (5, 7)))
    elif name == "model":
        told = metadata_of(config)
        header = Header(
            config=config,
            calibration=told.calibration,
            usual_images=4,
            provenance=told.provenance,
        )
        write_model(folder / "sound.safetensors", header, {})
    else:
        small_export(folder / "sound.onnx", config)


def main() -> None:
    """Fuzz until libFuzzer ends it."""
    name, folder, *options = sys.argv[1:]
    take, suffix = TARGETS[name]
    Path(folder).mkdir(parents=True, exist_ok=True)
    sow(name, Path(folder))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, f"input{suffix}")

        def once(data: bytes) -> None:
            path.write_bytes(data)
            try:
                take(path)
            except HaloaeError as error:
                if "\n" in str(error):
                    raise ValueError(f"no sentence: {error}") from error

        atheris.Setup([sys.argv[0], folder, *options], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
