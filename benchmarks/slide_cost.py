"""What a slide costs: memory and processor time against pixels, with a network and without.

    python -m benchmarks.slide_cost MODEL --out runs/slides     # measure; MODEL sees slides
    python -m benchmarks.slide_cost --draw                      # docs/slides.svg, from docs/results

Each run is a process of its own, on a pyramid whose parts were compressed once. All of it is
tissue, or a corner of `CORNER` pixels each way, however many pixels of glass there are. Without a
network a cell's value is its darkness, and what is measured is all that is not the network.
`benchmarks.results` puts it into docs/results.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from markupsafe import Markup
from numpy.typing import NDArray

from benchmarks.machine import machine
from benchmarks.script import parser_of
from benchmarks.tables import ROOT, Found, Table
from haloae.config import Config
from haloae.data.source import ImageKinds
from haloae.detection.backend import Measured
from haloae.detection.calibration import Calibration
from haloae.detection.model_file import Provenance
from haloae.detection.predictor import Predictor
from haloae.evaluation.metrics import Curve
from haloae.outputs.report.charts import Axis, Line, line_chart
from haloae.presets import DEFAULT

PART = 256
CORNER = 4000
RUNS = (
    *((True, side, side) for side in (2500, 5000, 10_000)),
    *((True, side, CORNER) for side in (10_000, 20_000, 32_000, 100_000)),
    *((False, side, side) for side in (1000, 2500, 5000, 10_000, 16_000)),
)
"""With the network or without, the slide's side and that of its tissue, in pixels."""
MOST_SECONDS = 3600.0
COLUMNS = (
    "network", "megapixels", "tissue", "tiles", "peak MB", "processor seconds", "seconds",
    "computed a delivered pixel", "of the bare network's rate",
)  # fmt: skip
DRAWN = (
    ("default", True, "default, all tissue"),
    ("default", False, "default, a corner of it"),
    ("none", True, "no network, all tissue"),
)
"""Lines of the figure: network, whether all is tissue, and the name."""
BARE = 3
"""Times that the last tile is scored again from memory, for the bare network's rate."""


class Darkness:
    """A backend without weights."""

    source = name = "darkness"
    takes: tuple[int, int] | None = None

    def measure(
        self, images: NDArray[np.float32], inside: NDArray[np.bool_] | None = None
    ) -> Measured:
        """How dark each cell of 8×8 pixels is."""
        count, _, high, wide = images.shape
        maps = 1 - images.reshape(count, 3, high // 8, 8, wide // 8, 8).mean((1, 3, 5))
        return Measured(maps.mean((1, 2)), maps)


def without_network() -> Predictor:
    """The same tiles as a detector's of 960 pixels, that overlap as its do."""
    view = {
        "kind": "tiles", "place": "anywhere", "canvas": (960, 960), "overlap": 192, "margin": 96,
        "step": 16,
    }  # fmt: skip
    config: Config = DEFAULT.replace(view=view)
    peaks = tuple(np.linspace(0.5, 0.9, 60).tolist())
    kinds = ImageKinds(grey=(False,), depths=(8,), heights=(960, 960), widths=(960, 960))
    provenance = Provenance(
        data="", fitted_on=60, held_out=0, skipped=0, steps=0, backbone="", backbone_sha256="",
        images=kinds,
    )  # fmt: skip
    calibration = Calibration(scores=peaks, peaks=peaks, cells=1024, false_alarm_rate=0.01)
    return Predictor(config, calibration, provenance, Darkness())


def write_pyramid(path: Path, side: int, tissue: int) -> None:
    """A square slide whose first `tissue` pixels each way are tissue, the rest glass."""
    rng = np.random.default_rng(0)
    glass = np.full((PART, PART, 3), 242, np.uint8)
    kinds = [(glass, 1)]
    for _ in range(16):
        noise = rng.normal(0, 18, (PART // 4, PART // 4, 3)).repeat(4, 0).repeat(4, 1)
        kinds.append(((np.array([205, 140, 185]) + noise).clip(0, 255).astype(np.uint8), 1))
    coded = [zlib.compress(pixels.tobytes(), level) for pixels, level in kinds]

    def parts(width: int, step: int) -> Iterator[bytes]:
        across = -(-width // PART)
        for row in range(across):
            for column in range(across):
                is_tissue = max(row, column) * PART * step < tissue
                yield coded[1 + (row * 7 + column * 3) % 16 if is_tissue else 0]

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        width, step = side, 1
        while True:
            file.write(
                parts(width, step), shape=(width, width, 3), dtype=np.uint8, tile=(PART, PART),
                photometric="rgb", compression="zlib", metadata=None, subfiletype=int(step > 1),
            )  # fmt: skip
            if width <= 1024:
                return
            width, step = width // 2, step * 2


def one_run(slide: Path, model: str, out: Path) -> dict[str, Any]:
    """What a slide costs, measured in this process."""
    from haloae.detector import Detector
    from haloae.slides.folder import slide_to_folder

    detector: Predictor = Detector.load(model, device="cpu") if model else without_network()
    measure, last = detector.measure, np.empty(0, np.float32)

    def kept(images: NDArray[np.float32], inside: NDArray[np.bool_] | None = None) -> Measured:
        nonlocal last
        last = images
        return measure(images, inside)

    detector.measure = kept  # type: ignore[method-assign]
    before, start = time.process_time(), time.monotonic()
    outcome, _ = slide_to_folder(detector, slide, out)
    seconds, elapsed = time.process_time() - before, time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    again = []
    for _ in range(BARE):
        start = time.monotonic()
        measure(last)
        again.append((time.monotonic() - start) / len(last))
    return {
        "network": detector.config.preset if model else "none",
        "pixels": outcome.width * outcome.height,
        "tiles": outcome.scored,
        "cost": outcome.computed_per_delivered,
        "peak": peak,
        "seconds": seconds,
        "elapsed": elapsed,
        "share": statistics.median(again) * outcome.scored / elapsed,
        "tile": outcome.tile,
        "overlap": outcome.tile_overlap,
    }


def measured(model: Path, out: Path) -> None:
    """Run what is missing, each in a process of its own, and keep it."""
    out.mkdir(parents=True, exist_ok=True)
    for has_network, side, tissue in RUNS:
        network = str(model) if has_network else ""
        kept = out / f"{'with' if network else 'without'}-{side}-{tissue}.json"
        if kept.exists():
            continue
        with tempfile.TemporaryDirectory(dir=out) as folder:
            slide = Path(folder, "slide.tif")
            write_pyramid(slide, side, tissue)
            command = [sys.executable, "-m", "benchmarks.slide_cost", network, "--slide", slide]
            done = subprocess.run(  # noqa: S603 - itself
                [*map(str, command), "--out", str(Path(folder, "out"))],
                check=True, capture_output=True, text=True, cwd=ROOT, timeout=MOST_SECONDS,
            )  # fmt: skip
            values = json.loads(done.stdout.splitlines()[-1])
            values |= {"tissue": (tissue / side) ** 2}
        kept.write_text(json.dumps(values | {"machine": machine(os.cpu_count() or 1)}))
        print(kept, values, flush=True)


def table(runs: Sequence[Path]) -> Table:
    """A row for each run of a folder, smallest first."""
    found = [json.loads(path.read_text()) for run in runs for path in run.glob("*-*.json")]
    rows = [
        [
            each["network"], each["pixels"] / 1e6, f"{100 * each['tissue']:.3g} %", each["tiles"],
            round(each["peak"] / 1e6), each["seconds"], each["elapsed"], each["cost"],
            each["share"] if each["network"] != "none" else None,
        ]
        for each in sorted(
            found, key=lambda each: (each["network"], each["tissue"] < 1, each["pixels"])
        )
    ]  # fmt: skip
    digits = {COLUMNS[1]: 1, COLUMNS[5]: 1, COLUMNS[6]: 1, COLUMNS[7]: 2, COLUMNS[8]: 2}
    return Table(COLUMNS, rows, digits)


def results(runs: Sequence[Path]) -> Found:
    """The table, and on what it was measured."""
    from benchmarks.speed_pages import measured as on_what  # not above: its memory would count

    first = next(path for run in runs for path in sorted(run.glob("*-*.json")))
    return Found(table(runs), on_what(json.loads(first.read_text())))


def figure(results: dict[str, Any]) -> str:
    """Memory against pixels, and processor time against those of tissue, where all is tissue."""
    from benchmarks.curve import STYLE  # not above, as it imports torch, whose memory would count

    columns = results["columns"]
    rows = [dict(zip(columns, row, strict=True)) for row in results["rows"]]
    drawn = []
    for label, key, unit, kinds in (
        ("peak memory, GB", "peak MB", 1000, range(len(DRAWN))),
        ("processor seconds", "processor seconds", 1, (0, 2)),
    ):
        lines: list[Line] = []
        all_x: list[float] = []
        all_y: list[float] = []
        for kind in kinds:
            network, is_all, name = DRAWN[kind]
            of = [r for r in rows if (r["network"], r["tissue"] == "100 %") == (network, is_all)]
            x = [row["megapixels"] for row in of]
            y = [row[key] / unit for row in of]
            lines.append(Line(name, Curve(np.array(x), np.array(y)), kind))
            all_x, all_y = all_x + x, all_y + y
        y_axis = Axis.around(all_y) if unit == 1 else Axis(0.0, 2.0, False)
        drawn.append(
            line_chart(lines, x_label="megapixels", y_label=label, x=Axis.around(all_x), y=y_axis)
        )
    parts = [
        Markup('<g transform="translate({},0)">{}</g>').format(
            470 * place,
            Markup(str(each).split(">", 1)[1].removesuffix("</svg>")),  # noqa: S704
        )
        for place, each in enumerate(drawn)
    ]
    key_lines = Markup("").join(
        Markup('<path class="line k{}" d="M250,{}h24"/><text x="280" y="{}">{}</text>').format(
            kind, 126 + 18 * kind, 130 + 18 * kind, name
        )
        for kind, (_, _, name) in enumerate(DRAWN)
    )
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 930 290" role="img">'
    return f"{head}{STYLE}{''.join(parts)}{key_lines}</svg>\n"


def main() -> None:
    """Measure, be measured, or draw."""
    parser = parser_of(__doc__)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--slide", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--draw", action="store_true")
    given = parser.parse_args()
    if given.draw:
        results = json.loads((ROOT / "docs/results/slides.json").read_text())
        (ROOT / "docs/slides.svg").write_text(figure(results))
    elif given.slide:
        print(json.dumps(one_run(given.slide, given.model, given.out)))
        shutil.rmtree(given.out)
    else:
        measured(Path(given.model), given.out)


if __name__ == "__main__":
    main()
