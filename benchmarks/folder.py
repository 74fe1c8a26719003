"""A folder of images: images a second against the network alone, and memory against their number.

    python -m benchmarks.folder MODEL CATEGORY --out runs/folder [--threads 2]

MODEL is native or exported. CATEGORY is in MVTec layout, its images at most 512² pixels. Its test
images are linked as often as it takes. `predict --maps none --overlays none` runs on `SPEED_IMAGES`
of them, in turn with the bare network on as many resized images, in the same batches; then
`predict` and `evaluate` run in processes of their own on few and on many images.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from benchmarks.script import leave, parser_of
from benchmarks.speed import COMMAND
from benchmarks.tables import Table
from haloae.data.images import read_image
from haloae.data.source import BATCH
from haloae.deploy.runtime import is_exported
from haloae.detector import Detector, load
from haloae.machine import keep_freed_memory
from haloae.outputs.folder import predict_to_folder

ROUNDS = 7
SPEED_IMAGES = 256
COUNTS = {"predict": (100, 10_000), "evaluate": (100, 2_000)}


def load_model(model: Path, threads: int | None) -> Detector:
    if not is_exported(model):
        import torch

        keep_freed_memory()
        if threads:
            torch.set_num_threads(threads)
    return load(model, device="cpu", threads=threads)


@contextmanager
def many(category: Path, count: int) -> Iterator[Path]:
    """The category with `count` test images, half of them good, all of them links."""
    with tempfile.TemporaryDirectory(prefix="haloae-folder-") as made:
        root = Path(made)
        (root / "train").symlink_to((category / "train").resolve())
        kinds = sorted(path.name for path in (category / "test").iterdir() if path.is_dir())
        shares = {kind: count // 2 // (len(kinds) - 1) for kind in kinds if kind != "good"}
        shares["good"] = count - sum(shares.values())
        for kind, share in shares.items():
            images = sorted((category / "test" / kind).iterdir())
            masks = category / "ground_truth" / kind
            (root / "test" / kind).mkdir(parents=True)
            for number, image in enumerate(islice(cycle(images), share)):
                name = f"{number:05}"
                link = root / "test" / kind / f"{name}{image.suffix}"
                link.symlink_to(image.resolve())
                for mask in masks.glob(f"{image.stem}_mask.*"):
                    target = root / "ground_truth" / kind / f"{name}_mask{mask.suffix}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(mask.resolve())
        yield root


def throughput(model: Path, category: Path, threads: int | None) -> dict[str, Any]:
    """Images a second, of the network alone and of `predict`: medians of rounds in turn."""
    detector = load_model(model, threads)
    with many(category, SPEED_IMAGES) as root, tempfile.TemporaryDirectory() as folder:
        paths = sorted((root / "test").rglob("*.*"))
        size = detector.config.image_size
        images = np.stack([detector.view.show(read_image(path)) for path in paths])
        sides = {read_image(path).pixels.shape[:2] for path in paths}
        seconds: dict[str, list[float]] = {"network": [], "predict": []}
        for number in range(ROUNDS + 1):
            start = time.perf_counter()
            for first in range(0, len(images), BATCH):
                detector.measure(images[first : first + BATCH])
            middle = time.perf_counter()
            out = Path(folder) / str(number)
            predict_to_folder(detector, [root / "test"], out, maps="none", overlays="none")
            end = time.perf_counter()
            if number:  # the first warms up
                seconds["network"].append(middle - start)
                seconds["predict"].append(end - middle)
    rates = {name: len(paths) / statistics.median(each) for name, each in seconds.items()}
    return {
        "preset": detector.config.preset,
        "image_size": size,
        "engine": detector.engine,
        "sizes": sorted(f"{height}×{width}" for height, width in sides),
        **rates,
        "ratio": rates["predict"] / rates["network"],
    }


def peak(command: str, model: Path, category: Path, count: int, threads: int | None) -> float:
    """Most memory the command ever held, in MB, in a process of its own."""
    with many(category, count) as root, tempfile.TemporaryDirectory() as folder:
        data = root / "test" if command == "predict" else root
        rest = ["--out", f"{folder}/out", "--quiet"]
        rest += ["--maps", "none", "--overlays", "none"] if command == "predict" else []
        rest += ["--threads", str(threads)] if threads else []
        code = (
            "import atexit; from benchmarks.contestants import peak_mb; "
            f"atexit.register(lambda: print(peak_mb())); {COMMAND}"
        )
        done = subprocess.run(  # noqa: S603 - ourselves
            [sys.executable, "-c", code, command, str(model), str(data), *rest],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return float(done.stdout.split()[-1])


def rates(results: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each model: images a second of both, and the share of the bare network's."""
    rows = []
    for result in results:
        found = result["throughput"]
        rows.append(
            [_named(result), found["network"], found["predict"], round(100 * found["ratio"])]
        )
    columns = ["model", "network alone", "`predict`", "share, %"]
    return Table(columns, rows, dict.fromkeys(columns[1:3], 1))


def memory(results: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each command and number of images: most memory of the whole process."""
    rows = [
        [_named(result), f"`{command}`", int(count), round(peak)]
        for result in results
        for command in COUNTS
        for count, peak in result.get(command, {}).items()
    ]
    return Table(["model", "command", "images", "MB"], rows, {})


def _named(result: Mapping[str, Any]) -> str:
    found = result["throughput"]
    return f"`{found['preset']}`, {found['image_size']}², {found['engine']}"


def main() -> None:
    """Measure, and write results.json."""
    parser = parser_of(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("category", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--speed-only", action="store_true", help="leave out the memory")
    arguments = parser.parse_args()
    model, category, threads = arguments.model, arguments.category, arguments.threads
    results: dict[str, Any] = {"model": model.name, "category": category.name}
    results["machine"] = machine(threads or os.cpu_count() or 1)
    results["throughput"] = throughput(model, category, threads)
    print(json.dumps(results["throughput"]), flush=True)
    for command, counts in {} if arguments.speed_only else COUNTS.items():
        results[command] = {n: peak(command, model, category, n, threads) for n in counts}
        print(command, json.dumps(results[command]), flush=True)
    print(leave(results, arguments.out))


if __name__ == "__main__":
    main()
