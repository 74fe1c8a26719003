"""The command line: parses, runs one command, turns errors into a sentence and an exit code.

Exit codes: 0 done, 1 done but something was skipped, 2 bad usage or input, 130 interrupted.
"""

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from haloae import commands
from haloae._version import __version__
from haloae.errors import HaloaeError, MissingExtraError
from haloae.files import FULL

BAD_INPUT, INTERRUPTED = 2, 130
DEBUG = "HALOAE_DEBUG"


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
        return commands.DONE
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
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--quiet", action="store_true", help="no progress, no summary")
        return sub

    demo = command(
        "demo", commands.demo, "See it work: makes images, trains and evaluates, in DIR."
    )
    demo.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("haloae-demo"),
        help="folder for images and results (default: haloae-demo)",
    )
    _add_overwrite(demo)
    _add_device(demo)

    train = command(
        "train", commands.train, "Fit a detector to good images: writes RUN/model.safetensors."
    )
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

    calibrate = command(
        "calibrate", commands.calibrate, "Set thresholds anew, by rate or by good images."
    )
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
        "predict", commands.predict, "Score images: writes DIR/predictions.jsonl, maps, overlays."
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
    _add_precision(predict)
    _add_strict(predict)

    export = command("export", commands.export, "Write a model for ONNX Runtime or OpenVINO.")
    _add_model(export)
    export.add_argument(
        "--format",
        choices=("onnx", "openvino", "openvino-int8"),
        default="onnx",
        help="default: onnx; int8 needs --good",
    )
    export.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help=".onnx, or .xml for openvino"
    )
    export.add_argument(
        "--good",
        metavar="FOLDER",
        type=Path,
        help="good images to compare the two on (default: made-up textures), and to quantise with",
    )
    export.add_argument(
        "--test",
        metavar="DATA",
        type=Path,
        help="MVTec-layout category to measure both on, before and after",
    )
    export.add_argument(
        "--input",
        dest="input_type",
        choices=("float32", "uint8"),
        default="float32",
        help="pixels the export takes: float32 in [0, 1] (default), or uint8",
    )
    _add_overwrite(export)
    _add_threads(export)

    evaluate = command(
        "evaluate", commands.evaluate, "Measure: writes DIR/report.html and metrics.json."
    )
    _add_model(evaluate)
    evaluate.add_argument("data", metavar="DATA", type=Path, help="MVTec-layout category")
    evaluate.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder for the results"
    )
    _add_overwrite(evaluate)
    _add_device(evaluate)
    _add_precision(evaluate)
    _add_strict(evaluate)

    benchmark = command(
        "benchmark", commands.benchmark, "The paper's experiment, over a root of categories."
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

    info = command("info", commands.info, "Say what a model file holds.")
    _add_model(info)
    info.add_argument("--json", action="store_true", help="all of it, for a script")
    info.add_argument(
        "--cost", action="store_true", help="what one image costs, block by block (needs torch)"
    )
    info.add_argument(
        "--image-size", metavar="N", type=int, help="of --cost, in pixels (default: the model's)"
    )
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="a model.safetensors")


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace what the output holds")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    _add_threads(parser)


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16: faster where the processor has it; scores move by about a hundredth",
    )


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
