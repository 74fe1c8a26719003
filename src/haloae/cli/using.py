"""Commands that use a fitted detector: score, export, measure, look at it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from haloae.cli import options
from haloae.cli.screen import (
    calibration_lines,
    comparison_lines,
    highest_scores,
    metric_lines,
    model_lines,
    model_values,
    report_skipped,
)
from haloae.cli.shared import DONE, SKIPPED, choose_one, load_any, prepare, progress_bar, shown
from haloae.errors import ConfigError, DataError
from haloae.machine import keep_freed_memory


def predict(
    model: options.Model,
    images: Annotated[
        list[Path],
        Argument(metavar="IMAGE_OR_FOLDER", help="folders are searched recursively"),
    ],
    *,
    out: options.ResultsFolder,
    maps: Annotated[
        Literal["none", "png", "tiff"],
        Option(help="png: 16 bits, half range is the threshold; tiff: float32"),
    ] = "png",
    overlays: Annotated[
        Literal["anomalous", "all", "none"],
        Option(
            help="images with their defects outlined, unusable ones too; none: no contact sheet "
            "either"
        ),
    ] = "anomalous",
    roi: options.Roi = None,
    ignore: options.Ignore = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    precision: options.Precision = "float32",
    strict: options.Strict = False,
    limits: options.Limits = None,
    quiet: options.Quiet = False,
) -> int:
    """Score images: writes DIR/predictions.jsonl, maps, overlays."""
    from haloae.data.region_files import read_regions
    from haloae.outputs.folder import OVERLAYS, PREDICTIONS, SHEET, predict_to_folder

    detector = load_any(model, device=device, precision=precision, threads=threads)
    counts = predict_to_folder(
        detector,
        images,
        out,
        maps=maps,
        overlays=overlays,
        masks=read_regions(roi, ignore, None),
        strict=strict,
        overwrite=overwrite,
        progress=progress_bar("predicting", quiet=quiet),
        report=lambda message: report_skipped([message]),
    )
    skipped = counts.failed + counts.skipped
    if not quiet:
        found = f"{counts.anomalous} anomalous, {counts.normal} normal, {skipped} skipped"
        if counts.unusable:
            found = f"{counts.unusable} unusable, {found}"
        print(f"{shown(out / PREDICTIONS)}: {found}")
        if overlays != "none" and counts.highest:
            print(f"to look at: {shown(out / SHEET)}, {shown(out / OVERLAYS)}")
        print(calibration_lines(detector.calibration))
        if counts.highest:
            print(highest_scores(counts))
    return SKIPPED if skipped or counts.unusable else DONE


def slide(
    model: options.Model,
    image: Annotated[
        Path, Argument(metavar="SLIDE", help="one huge image: SVS, NDPI, TIFF, PNG, JPEG, …")
    ],
    *,
    out: options.ResultsFolder,
    everything: Annotated[
        bool, Option("--everything", help="score background too, instead of leaving it out")
    ] = False,
    resume: Annotated[
        bool, Option("--resume", help="go on with what was stopped in DIR, if there is any")
    ] = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    precision: options.Precision = "float32",
    quiet: options.Quiet = False,
) -> int:
    """Score a huge image: writes DIR/report.html, regions, heat map."""
    from haloae.deploy.runtime import is_exported
    from haloae.detector import load
    from haloae.outputs.report import REPORT
    from haloae.slides.folder import HEATMAP, REGIONS, slide_to_folder

    choose_one(resume=resume, overwrite=overwrite)
    keep_freed_memory(large=False)  # kept, that is half a gigabyte beside large tiles
    detector = load(model, device=device, precision=precision, threads=threads)
    if threads and not is_exported(model):
        import torch

        torch.set_num_threads(threads)
    outcome, _ = slide_to_folder(
        detector,
        image,
        out,
        everything=everything,
        resume=resume,
        overwrite=overwrite,
        progress=progress_bar("scoring", quiet=quiet),
    )
    if outcome.unscored:
        report_skipped([f"{outcome.unscored} tiles of {outcome.slide}: see {out / REGIONS}."])
    if not quiet:
        tiles = f"{outcome.scored} tiles scored, {outcome.background} background"
        print(f"{shown(image)}: {outcome.verdict}, {outcome.regions} regions; {tiles}")
        print(
            f"  score {outcome.score:.6g}, threshold {outcome.threshold:.6g}, p-value "
            f"{outcome.p_value:.2g}, from {outcome.calibrated_on}"
        )
        print(f"open in a browser: {shown(out / REPORT)}")
        print(f"in a viewer of slides: {shown(out / REGIONS)}, {shown(out / HEATMAP)}")
    return SKIPPED if outcome.unscored else DONE


def export(
    model: options.Model,
    *,
    format: Annotated[
        str, Option(metavar="NAME", help="onnx, openvino or openvino-int8, which needs --good")
    ] = "onnx",
    out: Annotated[Path, Option(metavar="FILE", help=".onnx, or .xml for openvino")],
    good: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            help="good images to compare the two on (default: made-up textures), and to quantise "
            "with",
        ),
    ] = None,
    test: Annotated[
        Path | None,
        Option(
            metavar="DATA",
            help="MVTec-layout category to measure both on, before and after",
        ),
    ] = None,
    input_type: Annotated[
        Literal["float32", "uint8"],
        Option("--input", help="pixels the export takes: float32 in [0, 1], or uint8"),
    ] = "float32",
    overwrite: options.Overwrite = False,
    threads: options.Threads = None,
    limits: options.Limits = None,
    quiet: options.Quiet = False,
) -> int:
    """Write a model for ONNX Runtime or OpenVINO."""
    from haloae.data.folders import good_images, load_category
    from haloae.deploy.export import check_target, export_model
    from haloae.detector import Detector

    check_target(out, format=format, overwrite=overwrite)
    chosen = good_images(good) if good else ()
    category = load_category(test) if test else None
    if category is not None and not category.test:
        raise DataError(f"{category.root}: holds no test images for --test: leave it out.")
    prepare(threads)
    detector = Detector.load(model, device="cpu")
    parity = export_model(
        detector,
        out,
        format=format,
        good=chosen,
        input_type=input_type,
        overwrite=overwrite,
        threads=threads,
    )
    if not quiet:
        images = "good images" if chosen else "made-up textures"
        print(
            f"{shown(out)}: run on {parity.images} {images}; largest relative difference from "
            f"{shown(model)}: "
            f"score {parity.score:.1e}, map {parity.map:.1e}"
        )
    if category is not None and not quiet:
        from haloae.evaluation.evaluate import compare

        exported = Detector.load(out, threads=threads)
        progress = progress_bar("measuring", quiet=quiet)
        compared = compare(detector, exported, category, progress=progress)
        print(comparison_lines(compared, f"on {category.root}"))
    return DONE


def evaluate(
    model: options.Model,
    data: Annotated[Path, Argument(metavar="DATA", help="MVTec-layout category")],
    *,
    out: options.ResultsFolder,
    roi: options.Roi = None,
    ignore: options.Ignore = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    precision: options.Precision = "float32",
    strict: options.Strict = False,
    limits: options.Limits = None,
    quiet: options.Quiet = False,
) -> int:
    """Measure: writes DIR/report.html and metrics.json."""
    from haloae.claims import claim_folder
    from haloae.data.folders import load_category
    from haloae.data.region_files import read_regions
    from haloae.evaluation.evaluate import evaluate
    from haloae.outputs.evaluation import EVALUATION, write_evaluation
    from haloae.outputs.report.loss_log import ends_at
    from haloae.outputs.report.page import REPORT
    from haloae.training.run_folder import LOSS_LOG, MODEL

    masks = read_regions(roi, ignore, None)
    category = replace(load_category(data, strict=strict), masks=masks)
    detector = load_any(model, device=device, precision=precision, threads=threads)
    losses: Path | None = model.parent / LOSS_LOG
    # Beside another file, such as an export, or with other steps, it is not this model's.
    if model.name != MODEL or not ends_at(model.parent / LOSS_LOG, detector.provenance.steps):
        losses = None
    progress = progress_bar("evaluating", quiet=quiet)
    with claim_folder(out, EVALUATION, overwrite=overwrite) as folder:
        result = evaluate(detector, category, strict=strict, progress=progress)
        write_evaluation(result, detector, category, folder, losses=losses, progress=progress)
    report_skipped(result.skipped)
    if not quiet:
        print(out / "metrics.json")
        print(metric_lines(result.metrics))
        print(calibration_lines(detector.calibration))
        print(f"open in a browser: {shown(out / REPORT)}")
    return SKIPPED if result.skipped or category.skipped else DONE


def info(
    model: options.Model,
    *,
    as_json: Annotated[bool, Option("--json", help="all of it, for a script")] = False,
    cost: Annotated[
        bool, Option("--cost", help="what one image costs, block by block (needs torch)")
    ] = False,
    image_size: Annotated[
        int | None,
        Option(metavar="N", help="of --cost, in pixels (default: the model's)"),
    ] = None,
    quiet: options.Quiet = False,
) -> int:
    """Say what a model file holds."""
    from haloae.detection.calibration_file import in_force
    from haloae.detection.model_file import read_model

    if image_size is not None and not cost:
        raise ConfigError("--image-size is the size that --cost counts at: give --cost as well.")
    header, tensors = read_model(model)
    calibration = in_force(model, header.calibration)
    parameters = sum(array.size for name, array in tensors.items() if name.startswith("network."))
    counted = None
    if cost:
        from haloae.detector import Detector
        from haloae.experiments.cost import cost_of, cost_table

        head = Detector.load(model, device="cpu").head
        counted = cost_of(header.config, image_size=image_size, head=head)
    if as_json:
        values = model_values(header, calibration, parameters)
        print(json.dumps(values | ({"cost": counted} if counted else {}), indent=2))
        return DONE
    print(shown(model))
    print(model_lines(header, calibration, parameters))
    if counted:
        print(cost_table(counted))
    return DONE
