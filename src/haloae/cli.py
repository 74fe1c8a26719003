"""The command line: parses, calls one function, prints. Results to stdout, the rest to stderr.

Exit codes: 0 done, 1 done but something was skipped, 2 bad usage or input, 130 interrupted.
"""

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haloae import __version__
from haloae.errors import ConfigError, DataError, HaloaeError, MissingExtraError, OutputError
from haloae.files import FULL, claim_folder

if TYPE_CHECKING:
    from haloae.config import Config
    from haloae.data.folders import Category
    from haloae.detection.predict import Counts
    from haloae.detection.prediction import Predictor

DONE, SKIPPED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
DEBUG = "HALOAE_DEBUG"
MAX_WORKERS = 8
SHOWN = 10
"""Images that predict lists on the screen."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    _set_up_logging(quiet=arguments.quiet)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that lacks a character shows its code, rather than stopping us.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code: int = arguments.run(arguments)
        print(end="", flush=True)
        return code
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; keep Python from complaining when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except HaloaeError as error:
        return _fail(str(error), BAD_INPUT)
    except ModuleNotFoundError as error:
        package = (error.name or "a package").split(".")[0]
        return _fail(str(MissingExtraError(package, "train")), BAD_INPUT)
    except Exception as error:
        if isinstance(error, MemoryError) or any(
            part in str(error) for part in ("allocate memory", "out of memory")
        ):
            return _fail(
                "out of memory: try smaller images, or train with a smaller --image-size.",
                BAD_INPUT,
            )
        if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
            return _fail(f"the output cannot be written ({error.strerror}).", BAD_INPUT)
        if os.environ.get(DEBUG):
            raise
        name = type(error).__name__
        return _fail(f"internal error ({name}: {error}): set {DEBUG}=1 for details.", BAD_INPUT)


def _fail(message: str, code: int) -> int:
    print(f"haloae: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="haloae", description="Find and outline defects after seeing good images only."
    )
    parser.add_argument("--version", action="version", version=f"haloae {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--quiet", action="store_true", help="no progress, no summary")
        return sub

    demo = command("demo", _demo, "See it work: makes images, trains and evaluates, in DIR.")
    demo.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("haloae-demo"),
        help="folder for images and results (default: haloae-demo)",
    )
    _add_overwrite(demo)
    _add_device(demo)

    train = command("train", _train, "Fit a detector to good images: writes RUN/model.safetensors.")
    train.add_argument(
        "data", metavar="DATA", type=Path, help="folder of good images, or an MVTec-layout category"
    )
    train.add_argument("--out", metavar="RUN", type=Path, required=True, help="folder of the run")
    train.add_argument("--preset", choices=("paper", "default", "fast"), help="default: default")
    train.add_argument("--config", metavar="FILE.toml", type=Path, help="settings over the preset")
    train.add_argument(
        "--backbone",
        metavar="auto|bundled|imagenet|random|PATH",
        help="weights of the trunk; only imagenet may download",
    )
    train.add_argument("--image-size", metavar="N", type=int, help="side in pixels")
    train.add_argument("--seed", metavar="N", type=int, help="of all randomness (default 0)")
    train.add_argument("--max-steps", metavar="N", type=_positive_int, help="stop after N steps")
    train.add_argument(
        "--max-minutes", metavar="M", type=_positive_float, help="stop after M minutes"
    )
    train.add_argument(
        "--false-alarm-rate",
        metavar="R",
        type=float,
        help="share of good images that may be called anomalous (default 0.01)",
    )
    train.add_argument("--resume", action="store_true", help="go on from RUN's checkpoint")
    _add_overwrite(train)
    _add_device(train)
    _add_strict(train)

    calibrate = command("calibrate", _calibrate, "Set thresholds anew, by rate or by good images.")
    _add_model(calibrate)
    calibrate.add_argument(
        "good_images",
        metavar="GOOD_IMAGES",
        type=Path,
        nargs="?",
        help="folder of good images, none of which it was fitted on",
    )
    calibrate.add_argument(
        "--false-alarm-rate",
        metavar="R",
        type=float,
        help="share of good images that may be called anomalous (default 0.01)",
    )
    calibrate.add_argument("--out", metavar="MODEL2", type=Path, help="default: MODEL itself")
    _add_overwrite(calibrate)
    _add_device(calibrate)
    _add_strict(calibrate)

    predict = command(
        "predict", _predict, "Score images: writes DIR/predictions.jsonl, maps, overlays."
    )
    _add_model(predict)
    predict.add_argument(
        "images",
        metavar="IMAGE_OR_FOLDER",
        type=Path,
        nargs="+",
        help="folders are searched recursively",
    )
    predict.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder for the results"
    )
    predict.add_argument(
        "--maps",
        choices=("none", "png", "tiff"),
        default="png",
        help="png: 16 bits, half range is the threshold; tiff: float32",
    )
    predict.add_argument(
        "--overlays",
        choices=("anomalous", "all", "none"),
        default="anomalous",
        help="images with their defects outlined; none: no contact sheet either",
    )
    _add_overwrite(predict)
    _add_device(predict)
    _add_strict(predict)

    export = command("export", _export, "Write a model for ONNX Runtime or OpenVINO.")
    _add_model(export)
    export.add_argument(
        "--format", choices=("onnx", "openvino"), default="onnx", help="default: onnx"
    )
    export.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help=".onnx, or .xml for openvino"
    )
    export.add_argument(
        "--good",
        metavar="FOLDER",
        type=Path,
        help="good images to compare the two on (default: made-up textures)",
    )
    _add_overwrite(export)
    _add_threads(export)

    evaluate = command("evaluate", _evaluate, "Measure: writes DIR/report.html and metrics.json.")
    _add_model(evaluate)
    evaluate.add_argument("data", metavar="DATA", type=Path, help="MVTec-layout category")
    evaluate.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder for the results"
    )
    _add_overwrite(evaluate)
    _add_device(evaluate)
    _add_strict(evaluate)

    benchmark = command(
        "benchmark", _benchmark, "The paper's experiment, over a root of categories."
    )
    benchmark.add_argument(
        "root", metavar="ROOT", type=Path, help="folder of categories in MVTec layout"
    )
    benchmark.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder for runs and results"
    )
    benchmark.add_argument("--categories", metavar="A,B", type=_names, help="default: all")
    benchmark.add_argument(
        "--presets", metavar="A,B", type=_names, default=["default"], help="default: default"
    )
    benchmark.add_argument(
        "--ablations",
        metavar="A,B",
        type=_names,
        default=[],
        help="of every preset: no_ssl, no_image, fixed_weights, attention_MODE (halo, published, "
        "window_mean, global, none)",
    )
    benchmark.add_argument("--seeds", metavar="0,1,2", type=_seeds, default=[0], help="default: 0")
    benchmark.add_argument(
        "--backbone", metavar="auto|bundled|imagenet|random|PATH", help="weights of the trunk"
    )
    benchmark.add_argument(
        "--resume", action="store_true", help="keep the runs in DIR, and go on from there"
    )
    _add_device(benchmark)

    info = command("info", _info, "Say what a model file holds.")
    _add_model(info)
    info.add_argument("--json", action="store_true", help="all of it, for a script")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="a model.safetensors")


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace what the output holds")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    _add_threads(parser)


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", metavar="N", type=_positive_int, help="CPU threads")


def _add_strict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at an image that cannot be read, instead of skipping it",
    )


def _positive_int(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _names(text: str) -> list[str]:
    if not (names := [name.strip() for name in text.split(",") if name.strip()]):
        raise argparse.ArgumentTypeError("names nothing: give names with commas between them")
    return list(dict.fromkeys(names))


def _seeds(text: str) -> list[int]:
    names = _names(text)
    if not all(name.isdecimal() for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} are no whole numbers, as in 0,1,2")
    return [int(name) for name in names]


def _positive_float(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _demo(arguments: argparse.Namespace) -> int:
    from haloae.config import preset

    out: Path = arguments.out
    claim_folder(out, overwrite=arguments.overwrite)
    from haloae.demo import DATA, run_demo, table
    from haloae.evaluation.report import REPORT

    _set_threads(arguments)
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


def _train(arguments: argparse.Namespace) -> int:
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
    from haloae.training.fit import fit_detector

    _set_threads(arguments)
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
    from haloae.config import preset, read_toml

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


def _calibrate(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out or arguments.model
    if (
        os.path.lexists(out)
        and out.resolve() != arguments.model.resolve()
        and not arguments.overwrite
    ):
        raise OutputError(f"{out}: exists: give --overwrite, or choose another --out.")
    if arguments.good_images is None and arguments.false_alarm_rate is None:
        raise ConfigError("nothing to do: give GOOD_IMAGES, --false-alarm-rate, or both.")
    from haloae.detection.detector import Detector

    _set_threads(arguments)
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


def _predict(arguments: argparse.Namespace) -> int:
    from haloae.detection.predict import PREDICTIONS, predict_to_folder

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
        _print_calibration(detector)
        _print_highest(counts)
    return SKIPPED if skipped else DONE


def _print_highest(counts: "Counts") -> None:
    """The highest scores as a table; names come last, as their width on a screen is not known."""
    from haloae.detection.overlay import readable, verdict

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
    from haloae.deploy.runtime import is_exported, load_runtime

    if is_exported(arguments.model):
        return load_runtime(arguments.model, device=arguments.device, threads=arguments.threads)
    from haloae.detection.detector import Detector

    _set_threads(arguments)
    return Detector.load(arguments.model, device=arguments.device)


def _export(arguments: argparse.Namespace) -> int:
    from haloae.data.folders import good_images
    from haloae.deploy.export import check_target, export_model
    from haloae.detection.detector import Detector

    check_target(arguments.out, format=arguments.format, overwrite=arguments.overwrite)
    good = list(good_images(arguments.good)) if arguments.good else []
    _set_threads(arguments)
    parity = export_model(
        Detector.load(arguments.model, device="cpu"),
        arguments.out,
        format=arguments.format,
        good=good,
        overwrite=arguments.overwrite,
        threads=arguments.threads,
    )
    if not arguments.quiet:
        images = "good images" if good else "made-up textures"
        print(
            f"{arguments.out}: run on {parity.images} {images}; largest relative difference from "
            f"{arguments.model}: score {parity.score:.1e}, map {parity.map:.1e}"
        )
    return DONE


def _evaluate(arguments: argparse.Namespace) -> int:
    from haloae.data.folders import load_category
    from haloae.detection.detector import Detector
    from haloae.evaluation.evaluate import evaluate, write_evaluation
    from haloae.evaluation.report import REPORT
    from haloae.training.run_folder import LOSS_LOG

    _set_threads(arguments)
    category = load_category(arguments.data)
    _refuse_skipped(arguments, category)
    detector = Detector.load(arguments.model, device=arguments.device)
    claim_folder(arguments.out, overwrite=arguments.overwrite)
    result = evaluate(
        detector,
        category,
        strict=arguments.strict,
        progress=_progress(arguments, "evaluating"),
        losses=arguments.model.parent / LOSS_LOG,
    )
    write_evaluation(result, arguments.out)
    for error in result.skipped:
        print(f"haloae: skipped: {error}", file=sys.stderr)
    if not arguments.quiet:
        print(f"{arguments.out / 'metrics.json'}")
        for name, value in result.metrics.items():
            if isinstance(value, float) or value is None:
                print(f"  {name:28} {'-' if value is None else f'{value:.4g}'}")
        for name, reason in result.metrics["reasons"].items():
            print(f"  no {name}: {reason}")
        _print_calibration(detector)
        print(f"open in a browser: {arguments.out / REPORT}")
    return SKIPPED if result.skipped or category.skipped else DONE


def _benchmark(arguments: argparse.Namespace) -> int:
    from haloae.evaluation.benchmark import (
        RESULTS,
        TABLES,
        find_categories,
        run_benchmark,
        tables,
        variants,
    )
    from haloae.evaluation.report import REPORT

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

    _set_threads(arguments)
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


def _info(arguments: argparse.Namespace) -> int:
    from haloae.detection.model_file import read_model

    header, tensors = read_model(arguments.model)
    parameters = sum(array.size for name, array in tensors.items() if name.startswith("network."))
    calibration, provenance, config = header.calibration, header.provenance, header.config
    if arguments.json:
        values = header.model_dump(mode="json")
        values["parameters"] = parameters
        values["threshold"] = calibration.threshold.value
        values["pixel_threshold"] = calibration.pixel_threshold.value
        values["extrapolated"] = calibration.extrapolated
        values["images_needed"] = calibration.images_needed
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


def _set_threads(arguments: argparse.Namespace) -> None:
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


def _set_up_logging(*, quiet: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    handler.addFilter(_Once())
    logger = logging.getLogger("haloae")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


class _Once(logging.Filter):
    """Says the same thing once: a benchmark loads one backbone many times."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in self.said
        self.said.add(message)
        return is_new


class _Formatter(logging.Formatter):
    """What is worth knowing as it is; a warning is called one."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        return f"haloae: {level}{record.getMessage()}"


if __name__ == "__main__":
    sys.exit(main())
