"""What each command does: reads its options, calls one function, prints.

Results go to stdout, the rest to stderr. Heavy packages are imported where they are used, so that
`--help` needs none.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haloae.errors import ConfigError, DataError, OutputError
from haloae.files import claim_folder
from haloae.machine import keep_freed_memory

if TYPE_CHECKING:
    from haloae.config import Config
    from haloae.data.folders import Category
    from haloae.detection.predictor import Predictor
    from haloae.outputs.folder import Counts

DONE, SKIPPED = 0, 1
"""Exit codes: all of it; all but what could not be read, or what failed among others."""
MAX_WORKERS = 8
SHOWN = 10
"""Images that predict lists on the screen."""


def demo(arguments: argparse.Namespace) -> int:
    """Make images, fit, measure, and say where the report is."""
    from haloae.presets import preset

    out: Path = arguments.out
    claim_folder(out, overwrite=arguments.overwrite)
    from haloae.experiments.demo import DATA, run_demo, table
    from haloae.outputs.report.page import REPORT

    _prepare(arguments)
    outcomes = run_demo(
        out, preset("fast"), device=arguments.device, progress=_wants_progress(arguments)
    )
    if not arguments.quiet:
        print(table(outcomes))
        print(f"images in {out / DATA}; models, metrics.json and scores.csv in:")
        for outcome in outcomes:
            print(f"  {out / outcome.category}")
        print(f"open in a browser: {out / REPORT}")
    return DONE


def train(arguments: argparse.Namespace) -> int:
    """Fit a detector and save it in the folder of the run."""
    from haloae.data.folders import load_category
    from haloae.data.images import shown_path
    from haloae.training.run_folder import CHECKPOINT, LOSS_LOG, MODEL

    if arguments.resume and arguments.overwrite:
        raise OutputError("--resume and --overwrite exclude each other: choose one.")
    out: Path = arguments.out
    if arguments.resume and not (out / CHECKPOINT).exists() and out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{out}: holds no checkpoint to resume: give --overwrite to start anew.")
    category = load_category(arguments.data)
    if not category.train:
        raise DataError(f"{arguments.data}: there are no good images in train/good to fit on.")
    _refuse_skipped(arguments, category)
    config = _config(arguments)
    claim_folder(
        out,
        overwrite=arguments.overwrite or arguments.resume,
        way_out="give --resume to go on or --overwrite to start anew",
    )
    from haloae.detector import fit_detector

    _prepare(arguments)
    fitted = fit_detector(
        category.train,
        config,
        name=shown_path(arguments.data.resolve().name),
        run=out,
        device=arguments.device,
        max_steps=arguments.max_steps,
        max_minutes=arguments.max_minutes,
        resume=arguments.resume,
        strict=arguments.strict,
        progress=_wants_progress(arguments),
        workers=min(MAX_WORKERS, os.cpu_count() or 1),
    )
    for error in fitted.skipped:
        print(f"haloae: skipped: {error}", file=sys.stderr)
    fitted.detector.save(out / MODEL)
    if not arguments.quiet:
        steps = config.training.steps
        print(f"{out / MODEL}: fitted in {fitted.steps} of {steps} steps; losses in {LOSS_LOG}")
        _print_calibration(fitted.detector)
        if not fitted.is_finished:
            print("  stopped before the end of its schedule: --resume goes on")
    return SKIPPED if fitted.skipped or category.skipped else DONE


def _refuse_skipped(arguments: argparse.Namespace, category: "Category") -> None:
    if arguments.strict and category.skipped:
        first = category.skipped[0]
        raise DataError(f"{first.path} is left out: {first.reason}.")


def _config(arguments: argparse.Namespace) -> "Config":
    """Preset (or the checkpoint that is resumed), then the TOML file, then the flags."""
    from haloae.config import read_toml
    from haloae.presets import preset

    settings = read_toml(arguments.config) if arguments.config else {}
    base = None
    if arguments.resume:
        from haloae.training.run_folder import load_checkpoint

        saved = load_checkpoint(arguments.out)
        base = saved.config if saved else None
    name = arguments.preset or settings.get("preset")
    if base is None:
        base = preset(name or "default")
    elif name not in (None, base.preset):
        raise ConfigError(f"the run to resume has preset {base.preset!r}, not {name!r}.")
    flags: dict[str, Any] = {
        name: value
        for name in ("backbone", "image_size", "seed")
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.false_alarm_rate is not None:
        flags["detection"] = {"false_alarm_rate": arguments.false_alarm_rate}
    try:
        configured = base.replace(**{**settings, "preset": base.preset})
    except ConfigError as error:
        raise ConfigError(f"{arguments.config}: {error}") from error
    return configured.replace(**flags)


def calibrate(arguments: argparse.Namespace) -> int:
    """Set thresholds anew."""
    out: Path = arguments.out or arguments.model
    if (
        os.path.lexists(out)
        and out.resolve() != arguments.model.resolve()
        and not arguments.overwrite
    ):
        raise OutputError(f"{out}: exists: give --overwrite, or choose another --out.")
    if arguments.good_images is None and arguments.false_alarm_rate is None:
        raise ConfigError("nothing to do: give GOOD_IMAGES, --false-alarm-rate, or both.")
    from haloae.detector import Detector

    _prepare(arguments)
    detector = Detector.load(arguments.model, device=arguments.device)
    images: list[Path] | None = None
    skipped: list[str] = []
    if arguments.good_images is not None:
        images, skipped = _readable_images(arguments)
    calibrated = detector.calibrated(images, false_alarm_rate=arguments.false_alarm_rate)
    calibrated.save(out)
    if not arguments.quiet:
        print(f"{out}: calibrated")
        _print_calibration(calibrated)
    return SKIPPED if skipped else DONE


def _readable_images(arguments: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """Images of a folder that can be read, and a sentence for each other."""
    from haloae.data.folders import GOOD, load_category
    from haloae.data.images import read_image
    from haloae.errors import ImageError

    folder: Path = arguments.good_images
    is_part = folder.resolve().parts[-2:] in (("train", GOOD), ("test", GOOD))
    if is_part or any((folder / part).is_dir() for part in ("train", "test", "ground_truth")):
        raise DataError(
            f"{folder}: is or holds the training or test images of a data set: give a folder of "
            f"good images alone, none of which the model was fitted on."
        )
    category = load_category(folder)
    _refuse_skipped(arguments, category)
    skipped: list[str] = []
    images = []
    for path in _progress(arguments, "reading")(category.train):
        try:
            read_image(path)
            images.append(path)
        except ImageError as error:
            skipped.append(str(error))
    if skipped and arguments.strict:
        raise DataError(skipped[0])
    for message in skipped:
        print(f"haloae: skipped: {message}", file=sys.stderr)
    return images, skipped


def predict(arguments: argparse.Namespace) -> int:
    """Score images, native model or exported."""
    from haloae.outputs.folder import OVERLAYS, PREDICTIONS, SHEET, predict_to_folder

    detector = _load(arguments)
    counts = predict_to_folder(
        detector,
        arguments.images,
        arguments.out,
        maps=arguments.maps,
        overlays=arguments.overlays,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        progress=_progress(arguments, "predicting"),
        report=lambda message: print(f"haloae: skipped: {message}", file=sys.stderr),
    )
    skipped = counts.failed + counts.skipped
    if not arguments.quiet:
        print(
            f"{arguments.out / PREDICTIONS}: {counts.anomalous} anomalous, {counts.normal} normal, "
            f"{skipped} skipped"
        )
        if arguments.overlays != "none" and counts.highest:
            print(f"to look at: {arguments.out / SHEET}, {arguments.out / OVERLAYS}")
        _print_calibration(detector)
        _print_highest(counts)
    return SKIPPED if skipped else DONE


def _print_highest(counts: "Counts") -> None:
    """The highest scores as a table; names come last, as their width on a screen is not known."""
    from haloae.outputs.pictures import readable, verdict

    if not counts.highest:
        return
    shown = counts.highest[:SHOWN]
    print(f"  highest {len(shown)} of {counts.normal + counts.anomalous} scores:")
    rows = [("score", "p-value", "verdict", "image")]
    rows += [
        (readable(one.score), f"{one.p_value:.2g}", verdict(one.is_anomalous), one.name)
        for one in shown
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for score, p_value, word, name in rows:
        print(f"  {score:>{widths[0]}}  {p_value:>{widths[1]}}  {word:{widths[2]}}  {name}")


def _load(arguments: argparse.Namespace) -> "Predictor":
    """The detector of a file, native or exported: the latter without torch."""
    from haloae.deploy.runtime import is_exported
    from haloae.detector import load

    if not is_exported(arguments.model):
        _prepare(arguments)
    return load(
        arguments.model,
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
    )


def export(arguments: argparse.Namespace) -> int:
    """Write a model for another runtime, and say how well the two agree."""
    from haloae.data.folders import good_images, load_category
    from haloae.deploy.export import check_target, export_model
    from haloae.detector import Detector

    check_target(arguments.out, format=arguments.format, overwrite=arguments.overwrite)
    good = list(good_images(arguments.good)) if arguments.good else []
    category = load_category(arguments.test) if arguments.test else None
    if category is not None and not category.test:
        raise DataError(f"{category.root}: holds no test images for --test: leave it out.")
    _prepare(arguments)
    detector = Detector.load(arguments.model, device="cpu")
    parity = export_model(
        detector,
        arguments.out,
        format=arguments.format,
        good=good,
        input_type=arguments.input_type,
        overwrite=arguments.overwrite,
        threads=arguments.threads,
    )
    if not arguments.quiet:
        images = "good images" if good else "made-up textures"
        print(
            f"{arguments.out}: run on {parity.images} {images}; largest relative difference from "
            f"{arguments.model}: score {parity.score:.1e}, map {parity.map:.1e}"
        )
    if category is not None and not arguments.quiet:
        from haloae.evaluation.evaluate import compare

        exported = Detector.load(arguments.out, threads=arguments.threads)
        progress = _progress(arguments, "measuring")
        print(f"  {f'on {category.root}':28} {'before':>8} {'after':>8}")
        for name, *both in compare(detector, exported, category, progress=progress):
            shown = ["-" if value is None else f"{value:.4f}" for value in both]
            print(f"  {name:28} {shown[0]:>8} {shown[1]:>8}")
    return DONE


def evaluate(arguments: argparse.Namespace) -> int:
    """Measure a detector on labelled images."""
    from haloae.data.folders import load_category
    from haloae.evaluation.evaluate import evaluate
    from haloae.outputs.folder import write_evaluation
    from haloae.outputs.report.page import REPORT
    from haloae.training.run_folder import LOSS_LOG

    category = load_category(arguments.data)
    _refuse_skipped(arguments, category)
    detector = _load(arguments)
    claim_folder(arguments.out, overwrite=arguments.overwrite)
    progress = _progress(arguments, "evaluating")
    result = evaluate(detector, category, strict=arguments.strict, progress=progress)
    losses = arguments.model.parent / LOSS_LOG
    write_evaluation(result, detector, category, arguments.out, losses=losses, progress=progress)
    for error in result.skipped:
        print(f"haloae: skipped: {error}", file=sys.stderr)
    if not arguments.quiet:
        print(f"{arguments.out / 'metrics.json'}")
        for name, value in result.metrics.as_dict().items():
            if isinstance(value, float) or value is None:
                print(f"  {name:28} {'-' if value is None else f'{value:.4g}'}")
        for name, reason in result.metrics.reasons.items():
            print(f"  no {name}: {reason}")
        _print_calibration(detector)
        print(f"open in a browser: {arguments.out / REPORT}")
    return SKIPPED if result.skipped or category.skipped else DONE


def benchmark(arguments: argparse.Namespace) -> int:
    """Fit and measure over categories, presets, ablations and seeds."""
    from haloae.experiments.benchmark import (
        RESULTS,
        TABLES,
        find_categories,
        run_benchmark,
        tables,
        variants,
    )
    from haloae.outputs.report.page import REPORT

    configs = variants(arguments.presets, arguments.ablations, backbone=arguments.backbone)
    find_categories(arguments.root, arguments.categories)
    out: Path = arguments.out
    claim_folder(out, overwrite=arguments.resume, way_out="give --resume to go on")

    def tell(run: dict[str, Any]) -> None:
        name = f"{run['variant']}, {run['category']}, seed {run['seed']}"
        if "error" in run:
            print(f"haloae: failed: {name}: {run['error']}", file=sys.stderr)
        elif not arguments.quiet:
            auroc = run["metrics"]["image_auroc"]
            shown = "-" if auroc is None else f"{auroc:.3f}"
            print(f"{name}: image AUROC {shown}, {run['seconds']:.0f} s", flush=True)

    _prepare(arguments)
    results = run_benchmark(
        arguments.root,
        out,
        configs,
        categories=arguments.categories,
        seeds=arguments.seeds,
        device=arguments.device,
        workers=min(MAX_WORKERS, os.cpu_count() or 1),
        progress=_wants_progress(arguments),
        report=tell,
    )
    if not arguments.quiet:
        print(f"\n{tables(results)}\nfor a script: {out / RESULTS} and {out / TABLES}")
        print(f"open in a browser: {out / REPORT}")
    failed = sum("error" in run for run in results["runs"])
    if failed == len(results["runs"]):
        raise DataError(f"{arguments.root}: every run failed: see {out / RESULTS}.")
    return SKIPPED if failed else DONE


def info(arguments: argparse.Namespace) -> int:
    """Say what a model file holds."""
    from haloae.detection.model_file import read_model

    if arguments.image_size is not None and not arguments.cost:
        raise ConfigError("--image-size is the size that --cost counts at: give --cost as well.")
    header, tensors = read_model(arguments.model)
    cost = None
    if arguments.cost:
        from haloae.experiments.cost import cost_of, cost_table

        cost = cost_of(header.config, image_size=arguments.image_size)
    parameters = sum(array.size for name, array in tensors.items() if name.startswith("network."))
    calibration, provenance, config = header.calibration, header.provenance, header.config
    if arguments.json:
        values = header.model_dump(mode="json")
        values["parameters"] = parameters
        values["threshold"] = calibration.threshold.value
        values["pixel_threshold"] = calibration.pixel_threshold.value
        values["extrapolated"] = calibration.extrapolated
        values["images_needed"] = calibration.images_needed
        if cost is not None:
            values["cost"] = cost
        print(json.dumps(values, indent=2))
        return DONE
    rows = {
        "format": f"{header.format_version}, written by haloae {header.package_version}",
        "preset": f"{config.preset}, {config.image_size}² pixels, seed {config.seed}",
        "backbone": f"{config.network.trunk}, {provenance.backbone} "
        f"(sha256 {provenance.backbone_sha256[:12]})",
        "parameters": f"{parameters:,}",
        "training": f"{provenance.data}: {provenance.fitted_on} images, {provenance.held_out} held "
        f"out, {provenance.skipped} skipped; {provenance.steps} of {config.training.steps} steps",
        "threshold": f"{calibration.threshold.value:.6g} at a false-alarm rate of "
        f"{calibration.false_alarm_rate:g}",
        "pixel threshold": f"{calibration.pixel_threshold.value:.6g}",
        "extrapolated": f"yes, {calibration.images_needed} held-out images would be needed"
        if calibration.extrapolated
        else "no",
    }
    print(arguments.model)
    for name, value in rows.items():
        print(f"  {name:16} {value}")
    if cost is not None:
        print(cost_table(cost))
    return DONE


def _print_calibration(detector: "Predictor") -> None:
    calibration = detector.calibration
    print(
        f"  threshold {calibration.threshold.value:.6g}, for a false-alarm rate of "
        f"{calibration.false_alarm_rate:g}, from {len(calibration.scores)} held-out good images"
    )
    if calibration.extrapolated:
        print(
            f"  extrapolated: so small a rate needs {calibration.images_needed} held-out images; "
            f"the threshold is a fit to the tail"
        )


def _prepare(arguments: argparse.Namespace) -> None:
    keep_freed_memory()
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)


def _wants_progress(arguments: argparse.Namespace) -> bool:
    return not arguments.quiet and sys.stderr.isatty()


def _progress(arguments: argparse.Namespace, title: str) -> Callable[[Iterable[Any]], Any]:
    def wrap(items: Iterable[Any]) -> Any:  # noqa: ANN401 - tqdm is not typed
        from tqdm import tqdm

        return tqdm(items, title, disable=not _wants_progress(arguments), leave=False)

    return wrap
