"""Puts what experiments have left into docs/results: the one writer of results files.

    python -m benchmarks.results NAME [RUN ...]

writes docs/results/NAME.json; `KINDS` lists the names. A RUN is a folder that the experiment was
given as --out, or a part of it; where there are several, they are put together. Titles, commands
and notes stand here, figures come from the runs' own files, and what is only counted from none.

A results file is a table: title, command and note (where it comes from), measured (on and with
what), columns, rows, and digits for columns whose numbers do not take three. `benchmarks.tables`
shows it. A file whose program or detector is no more has in place of command a record: the commit
it is of, and what was run.
"""

import argparse
import csv
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks import (
    bad_images,
    copying,
    counted,
    curve,
    drift,
    faults,
    folder,
    fuzzing,
    gpu,
    guard,
    halves,
    mutants,
    paired,
    paper,
    retraining,
    service_faults,
    serving,
    slide_cost,
    slide_rates,
    speed_pages,
    thresholds,
    views,
)
from benchmarks.tables import ROOT, Table
from benchmarks.ways import finished
from haloae.detection.calibration import Calibration
from haloae.detection.good import tail_of
from haloae.detection.heads import head_named
from haloae.detection.model_file import read_model
from haloae.errors import HaloaeError
from haloae.experiments.benchmark import summarise
from haloae.experiments.grid import MEAN
from haloae.files import write_atomic
from haloae.training.run_folder import MODEL

FIGURES = {
    "image_auroc": ("image AUROC", 3),
    "pixel_difference": ("pixel difference", 3),
    "pixel_auroc": ("pixel AUROC", 3),
    "pixel_aupro": ("AUPRO", 3),
    "outline_iou": ("outline IoU", 3),
    "outline_iou_best": ("best outline IoU", 3),
    "detection_rate": ("defects detected", 2),
    "false_alarm_rate": ("false alarms", 2),
}
"""A run's metrics: the column each becomes, and its digits."""


WANTED = (0.01, 0.03, 0.05, 0.1)
"""False-alarm rates that a user may ask for."""


class Found(NamedTuple):
    """What a results file is made of."""

    table: Table
    measured: str = ""
    """On what and with what, as the runs' own files say."""


class Kind(NamedTuple):
    """A results file that can be written."""

    title: str
    make: Callable[[Sequence[Path]], Found]
    """From the folders of runs."""
    runs: str = ""
    """The command that makes these; empty: there are none, it is counted."""
    note: str = ""


def benchmark(folders: Sequence[Path]) -> Found:
    """A row for each variant and category, the mean over categories last."""
    runs = finished(*folders)
    for run in runs:
        run["metrics"] |= rates_now(run["at"])
    results = summarise("", runs)
    rows = []
    for found in results["summary"]:
        name = found["category"]
        values = {**found, "pixel_difference": results["pixel_difference"].get(name)}
        if name == MEAN:
            values |= {
                metric: _mean(results["summary"], found["variant"], metric)
                for metric in FIGURES
                if values[metric] is None
            }
        shown = "**mean**" if name == MEAN else name
        rows.append([found["variant"], shown, *(values[metric] for metric in FIGURES)])
    table = Table(["variant", "set", *dict(FIGURES.values())], rows, dict(FIGURES.values()))
    return Found(table, _circumstances(runs))


def rates_now(run: Path) -> dict[str, float | None]:
    """A run's rates with thresholds as the package fits them now: scores outlive a change of that.

    Args:
        run: a folder with model file and scores.csv.
    """
    header, _ = read_model(run / MODEL)
    above = _above(run, header.calibration.false_alarm_rate)
    return {
        metric: fmean(above[is_good]) if above[is_good] else None
        for metric, is_good in (("detection_rate", False), ("false_alarm_rate", True))
    }


def _above(run: Path, rate: float) -> dict[bool, list[bool]]:
    """Of good test images, under True, and of others: whether each is above the threshold."""
    header, _ = read_model(run / MODEL)
    known = header.calibration
    limit = Calibration(
        scores=known.scores,
        peaks=known.peaks,
        false_alarm_rate=rate,
        tail=tail_of(head_named(header.config.detection.head)),
    ).threshold.value
    above: dict[bool, list[bool]] = {True: [], False: []}
    with (run / "scores.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file):
            above[row["label"] == "good"].append(float(row["score"]) > limit)
    return above


def wanted(folders: Sequence[Path]) -> Found:
    """A row for each set of the first seed: what is found and stopped at each wanted rate."""
    runs = [run for run in finished(*folders) if run["seed"] == 0]
    rows = []
    for run in runs:
        header, _ = read_model(run["at"] / MODEL)
        row = [run["category"], run["metrics"]["image_auroc"], len(header.calibration.scores)]
        for rate in WANTED:
            above = _above(run["at"], rate)
            row.append(f"{100 * fmean(above[False]):.0f} % ({sum(above[True])})")
        rows.append([*row, len(above[True])])
    columns = ["set", "image AUROC", "fitted to", *(f"at {100 * r:g} %" for r in WANTED)]
    return Found(Table([*columns, "good test images"], rows, {}), _circumstances(runs))


def _mean(summary: Sequence[Mapping[str, Any]], variant: str, metric: str) -> dict[str, Any] | None:
    """Over the categories that can have the metric: without masks there are no pixel metrics.

    None if the variant lacks one that others have.
    """
    of_categories = [row for row in summary if row["category"] != MEAN and row.get(metric)]
    wanted = {row["category"] for row in of_categories}
    found = [row[metric]["mean"] for row in of_categories if row["variant"] == variant]
    return {"mean": fmean(found), "n": 1} if found and len(found) == len(wanted) else None


def _late(module: str) -> Callable[[Sequence[Path]], Found]:
    """The table of a module that is imported late: it adds heads to the package's."""

    def made(folders: Sequence[Path]) -> Found:
        runs = finished(*folders)
        make = importlib.import_module(f"benchmarks.{module}").table
        return Found(make(runs), _circumstances(runs))

    return made


def _circumstances(runs: Sequence[Mapping[str, Any]]) -> str:
    """Versions, weights and seeds of runs."""
    told = {
        "haloae": [run["package_version"] for run in runs],
        "by": [run["metrics"]["engine"] for run in runs],
        "weights": [run["metrics"]["backbone"] for run in runs],
        "seeds": [str(run["seed"]) for run in runs],
    }
    return "; ".join(f"{name} {' and '.join(sorted(set(each)))}" for name, each in told.items())


def _of_runs(make: Callable[[Sequence[Mapping[str, Any]]], Table]) -> Callable[..., Found]:
    """A table of the runs of `haloae benchmark`, or of what runs as it does."""

    def made(folders: Sequence[Path]) -> Found:
        runs = finished(*folders)
        return Found(make(runs), _circumstances(runs))

    return made


def demo(folders: Sequence[Path]) -> Found:
    """A row for each category of `haloae demo`."""
    rows, told = [], set()
    for path in sorted(path for each in folders for path in each.glob("*/metrics.json")):
        metrics = json.loads(path.read_text("utf-8"))
        metrics["pixel_difference"] = metrics["pixel_difference_image_auroc"]
        rows.append([path.parent.name, *(metrics.get(metric) for metric in FIGURES)])
        told.add(f"preset {metrics['preset']}; weights {metrics['backbone']}; {metrics['engine']}")
    return Found(Table(["images", *dict(FIGURES.values())], rows, {}), "; ".join(sorted(told)))


def _of_speed(make: Callable[[dict[str, Any]], Table]) -> Callable[[Sequence[Path]], Found]:
    """One of the tables of `benchmarks.speed`'s folder."""

    def made(folders: Sequence[Path]) -> Found:
        (results,) = _results(folders)
        return Found(make(results), speed_pages.measured(results))

    return made


def _of_folder(
    make: Callable[[Sequence[Mapping[str, Any]]], Table],
) -> Callable[[Sequence[Path]], Found]:
    """One of the tables of `benchmarks.folder`'s folders."""

    def made(folders: Sequence[Path]) -> Found:
        results = _results(folders)
        return Found(make(results), speed_pages.measured(results[0]))

    return made


def _thresholds(folders: Sequence[Path]) -> Found:
    """All splits of `benchmarks.thresholds`'s folders together."""
    results = _results(folders)
    splits = [each for found in results for each in found["splits"]]
    return Found(thresholds.table({"splits": splits}), speed_pages.measured(results[0]))


def _results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    return [json.loads((each / "results.json").read_text("utf-8")) for each in folders]


def _counted(make: Callable[[], Table]) -> Callable[[Sequence[Path]], Found]:
    return lambda _: Found(make())


def _mutants(folders: Sequence[Path]) -> Found:
    """See `benchmarks.mutants`: a first run, and the same again with new tests."""
    told, _ = mutants.results(folders[0])
    return Found(mutants.table(folders), speed_pages.measured(told))


def campaign(folders: Sequence[Path]) -> Found:
    """See `benchmarks.faults`."""
    found = faults.results(folders)
    return Found(faults.table(folders), speed_pages.measured(found[0]) if found else "")


def _service_faults(folders: Sequence[Path]) -> Found:
    """See `benchmarks.service_faults`."""
    found = faults.results(folders)
    return Found(service_faults.table(found), speed_pages.measured(found[0]) if found else "")


SPEED = (
    "python -m benchmarks.speed --out runs/speed --threads 2 --repeats 5 --only "
    "published,default-float32,default-onnx,default-openvino,fast-float32,fast-onnx,fast-openvino"
)
GUARD = "python -m benchmarks.guard ROOT --out runs/guard"
RESNET18 = (
    "haloae benchmark ROOT --presets default --set network.trunk=resnet18 --backbone bundled "
    "--heads gaussian --out runs/resnet18"
)
GPU = "PYTHONPATH=src python -m benchmarks.gpu --out runs/gpu/results.json"
FOLDER = "python -m benchmarks.folder MODEL CATEGORY --out runs/folder --threads 2"
KINDS = {
    "benchmark": Kind(
        "Ten sets of real photographs",
        benchmark,
        "haloae benchmark ROOT --presets default --seeds 0,1,2 --out runs/default; "
        "haloae benchmark ROOT --presets default --heads gaussian,nearest,nearest_halo "
        "--out runs/heads; haloae benchmark ROOT --presets fast --out runs/fast",
        "`default` with three seeds, the others with one. Defects detected and false alarms are of "
        "each run's own scores, with the threshold as the package now fits it to the scores of "
        "good images in the run's model file.",
    ),
    "benchmark-resnet18": Kind(
        "`default` and its best rival on the bundled ResNet-18",
        benchmark,
        RESNET18,
        "One seed.",
    ),
    "paired-resnet18": Kind(
        "Image AUROC of `default` against its best rival on the bundled ResNet-18, the same images",
        _of_runs(paired.table),
        RESNET18,
        "Intervals as in paired.json; one seed.",
    ),
    "paired": Kind(
        "Image AUROC of `default` against each rival on the same images",
        _of_runs(paired.table),
        "haloae benchmark ROOT --presets default --seeds 0,1,2 --out runs/default; "
        "haloae benchmark ROOT --presets default --heads gaussian,nearest,nearest_halo "
        "--out runs/heads",
        "Intervals: test images were drawn anew 2,000 times, good and defective ones apart, the "
        "same for both; what other training images would change is not in them. Papers count as "
        "one set.",
    ),
    "halves": Kind(
        "Arms of heads.json chosen on one half of the sets, and what they do on the other",
        _counted(halves.table),
        note="Image AUROC, score the mean of the highest 3 %, points above the Gaussian a place of "
        "the same screening. Arms with a figure for all these sets; papers, whose figure there is "
        "of all four, are left out.",
    ),
    "paper": Kind(
        "The published network, trained by its losses",
        _of_runs(paper.table),
        "python -m benchmarks.paper ROOT --out runs/paper --sets cookie,tire --device cuda "
        "--image-size 128 --steps 800; the same with --image-size 256 --steps 300",
        "bfloat16, batches of 4, one seed, on one H200, several runs side by side.",
    ),
    "wanted": Kind(
        "Defective test images found by `default`, and good ones stopped, by the wanted rate",
        wanted,
        "haloae benchmark ROOT --presets default --out runs/default",
        "In brackets the number of good test images that are stopped. Seed 0.",
    ),
    "demo": Kind(
        "What `haloae demo` measures",
        demo,
        "haloae demo",
        "The images were drawn with such figures in view.",
    ),
    "speed-presets": Kind(
        "Speed of `default` and `fast`, beside the published forward pass in the same run",
        _of_speed(speed_pages.detectors),
        SPEED,
        "A memory of 100 images. Medians, quartiles in brackets.",
    ),
    "start-up": Kind("Start-up, whole processes", _of_speed(speed_pages.start_up), SPEED),
    "speed-peers": Kind(
        "Other detectors, untrained, the forward pass in PyTorch, float32, 256², one at a time",
        _of_speed(speed_pages.detectors),
        "python -m benchmarks.speed --out runs/speed-peers --threads 2 --repeats 5 --batches 1 "
        "--only 'published,default-float32,fast-float32,default-onnx,fast-onnx,padim,stfpm,"
        "efficient-ad,patchcore-*,reverse-distillation'",
    ),
    "resolution": Kind(
        "`fast`'s network at other image sizes, PyTorch, float32, one at a time",
        _of_speed(speed_pages.resolution),
        "python -m benchmarks.speed --out runs/speed --threads 2",
    ),
    "least-time": Kind(
        "The least time a pass can take on this machine, ms",
        _of_speed(speed_pages.least_time),
        "python -m benchmarks.speed --out runs/speed --threads 2",
        "Operations counted over what a product of matrices of 2,048² reaches.",
    ),
    "folder": Kind(
        "Images a second of `predict` on a folder, against the network alone",
        _of_folder(folder.rates),
        FOLDER,
        "Batches of 8; predict with --maps none --overlays none.",
    ),
    "memory": Kind("Most memory of the whole process, MB", _of_folder(folder.memory), FOLDER),
    "serving": Kind(
        "A request to `haloae serve` beside `Detector.predict` on the same JPEG bytes",
        _of_folder(serving.table),
        "python -m benchmarks.serving MODEL IMAGE --out runs/serving",
        "Loopback, each client asks as soon as it is answered, on two cores that had other work: "
        "of the latencies the most is waiting for them. Processor time of the whole service; "
        "memory at the beginning and at the end.",
    ),
    "retraining": Kind(
        "Inspections while `haloae serve` retrains a model, and while it does not",
        _of_folder(retraining.table),
        "python -m benchmarks.retraining MODEL GOOD --out runs/retraining",
        "Loopback, one client, which asks as soon as it is answered; alone: a minute before and a "
        "minute after.",
    ),
    "service-faults": Kind(
        "What befell `haloae serve` under load, and what came of it",
        _service_faults,
        "python -m pytest -m slow tests/server/test_kills.py --faults-out runs/service-faults",
        "Three clients and a camera's folder; sinks: folder, webhook, and MQTT with a real broker. "
        "Lost: answered or put away, and not in the store. Not delivered: in the store, and not at "
        "one of the sinks. Twice: came more than once, with the same id.",
    ),
    "fuzzing": Kind(
        "Requests made from docs/openapi.json, and how `haloae serve` answers",
        _of_folder(fuzzing.table),
        "python -m benchmarks.fuzzing MODEL --out runs/fuzzing",
        "By schemathesis, valid ones and nearly valid ones; half of the images and tensors among "
        "them are whole, the others damaged. Checked of each answer: its status is below 500, and "
        "status, type and content are as described.",
    ),
    "bad-images": Kind(
        "Small files that cost much to decode",
        _of_folder(bad_images.table),
        "python -m benchmarks.bad_images --source OLD/src --out runs/before; "
        "python -m benchmarks.bad_images --out runs/after",
        "Before: commit 25d8e9b. Processor time, and memory of the largest process, which now is "
        "the one that decodes; start-up included, limits as they are unless set.",
    ),
    "faults": Kind(
        "The campaign of faults, before and now",
        campaign,
        "python -m pytest -m faults --faults-out runs/faults",
        "Before: commit 480f0bc, see faults-before. Seconds by the clock, on a machine that had "
        "other work; memory of the whole process, which holds torch.",
    ),
    "mutants": Kind(
        "Small faults put into the code, and how many of them the tests find",
        _mutants,
        "python -m benchmarks.mutants --out runs/mutants --sample 250; "
        "python -m benchmarks.mutants --out runs/again --again runs/mutants",
        "mutmut's changes, drawn at random. Before: with the tests of then. Now: the same mutants, "
        "with the tests that were written for those that were not found. In brackets the 95 % "
        "interval by Wilson.",
    ),
    "thresholds": Kind(
        "False alarms got where 1, 5 and 10 % were wanted, `fast`, %",
        _thresholds,
        "python -m benchmarks.thresholds ROOT --out runs/thresholds",
        "Mean over random splits of all good images, in brackets its 95 % interval by Student's t. "
        "Splits share images: those that a set lacks no split shows. All images squashed.",
    ),
    "guard": Kind(
        "Pictures spoilt as a camera may do it, and what `fast` says of them",
        _of_speed(guard.spoilt_table),
        GUARD,
        "Verdicts: unusable · anomalous · normal. Score: the median, in thresholds.",
    ),
    "guard-alarms": Kind(
        "What the guard calls unusable of test images as they are",
        _of_speed(guard.alarm_table),
        GUARD,
    ),
    "guard-few": Kind(
        "Good images that a guard fitted to few of them refuses", _of_speed(guard.few_table), GUARD
    ),
    "guard-cost": Kind(
        "The guard beside the graph, ONNX Runtime, one thread",
        _of_speed(guard.cost_table),
        GUARD,
        "Medians, by turns, on a machine that had other work: the share is what counts.",
    ),
    "drift-alarms": Kind(
        "Alarms of drift over good images, simulated",
        _of_speed(drift.rate_table),
        "python -m benchmarks.drift alarms --out runs/drift-alarms",
        "Ten lines together, all bets on measures and score, without the rules for k of n. Last "
        "column: the median of 10 streams, by the same bets on one measure alone.",
    ),
    "drift-delays": Kind(
        "Images until a fifth less light is seen",
        _of_speed(drift.delay_table),
        "python -m benchmarks.drift delays --root ROOT --sets tire,kolektor,magnetic_tile "
        "--out runs/drift-delays",
        "Simulated: the standard deviation of the good images' brightness, 20 streams each. "
        "Photographs: good images of the set that the guard was not fitted to, drawn with "
        "replacement, 10 streams each.",
    ),
    "attention-memory": Kind(
        "Kinds of attention over the memory, all else equal",
        _late("attention_kinds"),
        "python -m benchmarks.attention_kinds ROOT --out runs/attention",
        "Image AUROC; AUPRO over the sets that have masks; papers count as one set. Means of place "
        "and window do not look at the cell: both are a Gaussian a place. All images squashed.",
    ),
    "ingredients": Kind(
        "The paper's ingredients in the design of `default`: each out of it, or put into it",
        _late("ingredients"),
        "python -m benchmarks.ingredients ROOT --out runs/ingredients "
        "--sets cookie,pill,tire,magnetic_tile",
        "Image AUROC; AUPRO over the sets that have masks; one seed; all images squashed.",
    ),
    "views": Kind(
        "What is seen of images: squashed, fitted, as chosen by the training images",
        _of_runs(views.table),
        "python -m benchmarks.views ROOT --sets kolektor,tire,magnetic_tile,cookie "
        "--out runs/views",
    ),
    "copy-index": Kind(
        "How much of a patch that is pasted into the features comes back in what is rebuilt",
        _of_speed(copying.table),
        "haloae demo; haloae benchmark haloae-demo/data --presets default,fast,autoencoder "
        "--out runs/demo; python -m benchmarks.copying haloae-demo/data runs/demo "
        "--out runs/copying",
        "0 predicts, 1 copies. Sides of patches are in cells. good: of another good image, at the "
        "same place; foreign: of an image of the other set.",
    ),
    "curve": Kind(
        "Image AUROC of `autoencoder` by the number of training steps",
        _of_runs(curve.table),
        "python -m benchmarks.curve ROOT --sets cookie,paper_pa_bdp01_tl --out runs/curve",
        "Seconds are those of the whole fit.",
    ),
    "gpu-throughput": Kind(
        "On one NVIDIA H200",
        _of_speed(gpu.throughput_table),
        GPU,
        "Pixels in and maps out in the computer's memory, untrained, 4 good images known; MB: most "
        "that tensors took, at the largest batch.",
    ),
    "gpu-fit": Kind(
        "Fitting to 64 images of 512² on one NVIDIA H200, reading to calibration",
        _of_speed(gpu.training_table),
        GPU,
        "`paper`: 40 of its 188,250 steps.",
    ),
    "slides": Kind(
        "What slides of many sizes cost",
        slide_cost.results,
        "haloae train good/ --out run; python -m benchmarks.slide_cost run/model.safetensors "
        "--out runs/slides",
        "Each run is a process of its own, of one thread, on a pyramid in deflate. Network "
        "`default`: a corner of the slide is tissue, the rest glass; none: all is tissue, and a "
        "cell's value its darkness. Peak: of the process, 540 MB of it what importing this build "
        "of torch takes, where there is a network, which was fitted to nine parts of slides: of "
        "more its memory is no larger. The network's share: of the processor's time, "
        "what it takes in the scoring thread.",
    ),
    "slide-rates": Kind(
        "False alarms of whole slides, wanted and got",
        _counted(slide_rates.table),
        note="Simulated: 200 detectors a row, five new slides of 1,000 regions each; a region's "
        "peak is the highest of 256 cells. Slides differ by: standard deviation of the logarithm "
        "of what all regions of a slide share.",
    ),
    "cost": Kind(
        "Cost of a pass, block by block, of one image in float32",
        _counted(counted.cost),
        note="As `haloae info MODEL --cost` counts it. MMAC: million multiply-adds; MB: million "
        "bytes of activations; intensity: multiply-adds a byte, in use, weights among the bytes. "
        "Detector heads are as large as of 200 good images.",
    ),
    "growth": Kind(
        "Cost of a pass at other image sizes",
        _counted(counted.growth),
        note="GMAC: 10⁹ multiply-adds; MB: million bytes of activations; intensity in use.",
    ),
    "rates": Kind(
        "What a false-alarm rate takes, and what it costs to have less",
        _counted(counted.rates),
        note="By the rules of detection/calibration.py. The last columns: where the threshold "
        "stands above the median of the left-out log-scores, in root mean squares s of the "
        "distance from it of those above.",
    ),
}
"""By the name of the file."""


def write(name: str, runs: Sequence[Path], root: Path = ROOT) -> Path:
    """Make one results file.

    Args:
        name: of `KINDS`.
        runs: folders that the experiment left; none where it is counted.
        root: of the repository.

    Raises:
        OSError, KeyError, ValueError, ModelFileError: a run is not there, or is of another
            experiment.
    """
    kind = KINDS[name]
    table, measured = kind.make(runs)
    if not table.rows:
        raise ValueError("there is nothing of it in these runs.")
    command = f"python -m benchmarks.results {name}"
    values = {
        "title": kind.title,
        "command": f"{kind.runs}; {command} RUN ..." if kind.runs else command,
        "note": kind.note,
        "measured": measured,
        "columns": list(table.columns),
        "digits": dict(table.digits),
        "rows": table.rows,
    }
    path = root / "docs" / "results" / f"{name}.json"
    write_atomic(path, dumped({k: v for k, v in values.items() if v}).encode())
    return path


def dumped(values: Mapping[str, Any]) -> str:
    """JSON with a line for each value and each row, so that a changed figure is a changed line."""
    lines = []
    for name, value in values.items():
        text = json.dumps(value, ensure_ascii=False)
        if name == "rows":
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            text = f"[\n  {rows}\n ]"
        lines.append(f' "{name}": {text}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write one file; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(KINDS))
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    given = parser.parse_args(arguments)
    if bool(given.runs) != bool(KINDS[given.name].runs):
        parser.error(f"{given.name} is {'made of runs' if not given.runs else 'counted'}: give "
                     f"{'their folders' if not given.runs else 'no RUN'}.")  # fmt: skip
    try:
        print(write(given.name, given.runs, root))
    except KeyError as error:
        sys.exit(f"{given.name}: a run holds no {error}: it is of another experiment or version.")
    except (OSError, ValueError, HaloaeError) as error:
        sys.exit(f"{given.name}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
