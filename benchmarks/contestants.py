"""What `benchmarks.speed` measures, each in a process of its own.

    python -m benchmarks.contestants make FOLDER MODEL FILE...
    python -m benchmarks.contestants serve FOLDER NAME --threads N

`make` builds a detector that was never trained, which takes as long as one that was, saves it and
exports it. `serve` loads a contestant and then answers, one JSON line for each that it is sent.
Only what a contestant needs is imported, so that its memory is its own.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.peers import PEER_SIZE, PEERS, build_peer
from benchmarks.script import parser_of
from benchmarks.untrained import Images, textures
from haloae.machine import keep_freed_memory
from haloae.presets import PRESETS

if TYPE_CHECKING:
    from haloae.config import Precision

Kind = Literal["published", "native", "exported", "peer", "product"]
BATCH = 8
RESOLUTIONS = (128, 256, 512, 768)
SIDE = 2048
"""Of the square matrices whose product shows what the machine can do at most."""
MAX_CALLS = 50
FEW = 4
"""Images a detector is calibrated on that no int8 export is made of, or whose images are dear."""
GOOD = 16
"""Images the others are calibrated on, and exports: int8 of a reducer fitted on few is far off.
Heads that remember images are given as many as they remember."""
WAYS: tuple[tuple[str, str, Kind, str, str], ...] = (
    ("float32", "PyTorch, float32", "native", ".safetensors", "float32"),
    ("bfloat16", "PyTorch, bfloat16", "native", ".safetensors", "bfloat16"),
    ("onnx", "ONNX Runtime, float32", "exported", ".onnx", "float32"),
    ("openvino", "OpenVINO, float32", "exported", ".xml", "float32"),
    ("openvino-bfloat16", "OpenVINO, bfloat16", "exported", ".xml", "bfloat16"),
    ("openvino-int8", "OpenVINO, int8 and float32", "exported", "-int8.xml", "int8"),
    ("openvino-int8-bfloat16", "OpenVINO, int8 and bfloat16", "exported", "-int8.xml", "bfloat16"),
)
"""How a detector is run: name, title, kind, the file's end, arithmetic."""
FORMATS = {
    ".onnx": "onnx",
    ".xml": "openvino",
    "-int8.xml": "openvino-int8",
}


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something whose time is measured."""

    name: str
    group: str
    title: str
    kind: Kind
    size: int
    """Side of its images, or of its matrices."""
    model: str = ""
    """The detector it runs, as `make` names them."""
    file: str = ""
    precision: str = "float32"
    batches: tuple[int, ...] = (1, BATCH)


def contestants() -> list[Contestant]:
    """All there are."""
    found = [
        Contestant(
            "published", "published", "forward pass as published, float32", "published",
            PRESETS["paper"].image_size, "paper", "paper.safetensors",
        )
    ]  # fmt: skip
    for preset, config in PRESETS.items():
        found += [
            Contestant(
                f"{preset}-{way}", preset, title, kind, config.image_size, preset,
                f"{preset}{end}", precision,
            )
            for way, title, kind, end, precision in WAYS
        ]  # fmt: skip
    found += [
        Contestant(name, "anomalib", title, "peer", PEER_SIZE) for name, (title, _) in PEERS.items()
    ]
    for size in RESOLUTIONS:
        model = f"fast-at-{size}"
        found.append(
            Contestant(
                model, "resolution", f"{size}²", "native", size, model, f"{model}.safetensors",
                batches=(1,),
            )
        )  # fmt: skip
    found += [
        Contestant(f"product-{precision}", "machine", f"matrix product, {precision}", "product",
                   SIDE, precision=precision, batches=(1,))
        for precision in ("float32", "bfloat16", "int8")
    ]  # fmt: skip
    return found


# Making detectors and their exports


def make(folder: Path, model: str, files: list[str], threads: int) -> dict[str, str]:
    """Save a detector and export it.

    Returns:
        Why a file could not be made, for those that could not.
    """
    import torch

    from benchmarks.untrained import untrained
    from haloae.deploy.export import export_model
    from haloae.detection.heads.nearest_halo import MEMORY

    torch.set_num_threads(threads)
    preset, _, size = model.partition("-at-")
    config = PRESETS[preset]
    if size:
        config = config.replace(image_size=int(size))
    count = FEW if size or not config.network.reduced_channels else GOOD
    if not size and not config.network.autoencoder:
        count = MEMORY
    detector = untrained(config, count)
    detector.save(folder / f"{model}.safetensors")
    failed = {}
    for file in files:
        end = file.removeprefix(model)
        if end not in FORMATS:
            continue
        try:
            export_model(
                detector,
                folder / file,
                format=FORMATS[end],
                good=good_images(folder),
                overwrite=True,
                threads=threads,
            )
        except Exception as error:  # one that cannot be made does not stop the rest
            failed[file] = reason(error)
    return failed


def good_images(folder: Path) -> list[Path]:
    """Textures as files, written where they are missing."""
    from PIL import Image

    paths = [folder / "images" / f"{number:02}.png" for number in range(GOOD)]
    if not all(path.is_file() for path in paths):
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for path, image in zip(paths, textures(GOOD, 256), strict=True):
            Image.fromarray((255 * image.transpose(1, 2, 0)).astype(np.uint8)).save(path)
    return paths


# One contestant, serving


def build(contestant: Contestant, folder: Path, threads: int) -> Callable[[Images], object]:
    """What takes images (B, 3, S, S) in [0, 1] to scores and maps, as users call it."""
    path = folder / contestant.file
    precision: Precision = "bfloat16" if contestant.precision == "bfloat16" else "float32"
    if contestant.kind == "exported":
        from haloae.deploy.runtime import open_runtime

        return open_runtime(path, threads=threads, precision=precision).measure

    import torch

    # As the command line does; for all, lest it be an advantage over the others.
    keep_freed_memory()
    torch.set_num_threads(threads)
    if contestant.kind == "native":
        from haloae.detector import Detector

        return Detector.load(path, device="cpu", precision=precision).measure
    if contestant.kind == "product":
        return product(contestant.precision)
    network = published(path) if contestant.kind == "published" else build_peer(contestant.name)

    def run(images: Images) -> object:
        with torch.inference_mode():
            return network(torch.from_numpy(images))

    return run


def published(path: Path) -> Any:  # noqa: ANN401 - torch is imported late
    """The published network with the weights of a model file of the paper preset."""
    import torch

    from benchmarks.published import Published
    from haloae.detection.model_file import read_model

    tensors = {name: torch.from_numpy(array) for name, array in read_model(path)[1].items()}
    state = {
        name.removeprefix("network."): tensor
        for name, tensor in tensors.items()
        if name.startswith("network.")
    }
    return Published(state, tensors["usual.features"].mean(0))


def product(precision: str) -> Callable[[Images], object]:
    """The product of two large matrices, whatever images it is given."""
    import torch

    if precision == "int8":
        a, b = (torch.randint(-100, 100, (SIDE, SIDE), dtype=torch.int8) for _ in range(2))
        return lambda _: torch._int_mm(a, b)
    a, b = (torch.randn(SIDE, SIDE, dtype=getattr(torch, precision)) for _ in range(2))
    if precision == "float32":
        # By oneDNN, which runs convolutions too and is faster here than MKL on some processors.
        a, b = a.to_mkldnn(), b.to_mkldnn()
    return lambda _: torch.nn.functional.linear(a, b)


def serve(contestant: Contestant, folder: Path, threads: int) -> None:
    """Load a contestant, say so, then answer each request until there are no more.

    A request is ``{"batch": 8, "seconds": 0.2, "warm": true}``: calls are timed until that time is
    spent, at least one, after one that is not timed where it is to be warm. The answer is
    ``{"ms": [...], "peak_mb": ...}``, milliseconds a call. ``{"count": 1}`` is answered by the
    multiply-adds of a call with that batch.
    """
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        run = build(contestant, folder, threads)
        is_product = contestant.kind == "product"
        images = textures(BATCH, 1 if is_product else contestant.size)
    except Exception as error:
        answer(error=reason(error))
        return
    answer(peak_mb=peak_mb())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "count" in request:
                from benchmarks.published import multiply_adds

                answer(multiply_adds=multiply_adds(run, images[: request["count"]]))
                continue
            answer(ms=timed(run, images[: request["batch"]], request), peak_mb=peak_mb())
        except Exception as error:
            answer(error=reason(error))


def timed(run: Callable[[Images], object], images: Images, request: dict[str, Any]) -> list[float]:
    """Milliseconds of each call."""
    if request["warm"]:
        run(images)
    times: list[float] = []
    while not times or (sum(times) < 1000 * request["seconds"] and len(times) < MAX_CALLS):
        start = time.perf_counter()
        run(images)
        times.append(1000 * (time.perf_counter() - start))
    return times


def peak_mb() -> float:
    """Most memory this process ever held, in MB."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:  # noqa: PTH123
        for line in status:
            # Not getrusage's: there a process starts with what its parent held.
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def reason(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200].removesuffix(": ")


def main() -> None:
    """Make files, or serve."""
    parser = parser_of(__doc__)
    parser.add_argument("task", choices=("make", "serve"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.task == "make":
        model, *files = arguments.names
        print(json.dumps(make(arguments.folder, model, files, arguments.threads)))
        return
    contestant = next(each for each in contestants() if each.name == arguments.names[0])
    serve(contestant, arguments.folder, arguments.threads)


if __name__ == "__main__":
    main()
