"""The paper's experiment: fit and measure over categories, presets, ablations and seeds.

Every run leaves its model, metrics, scores and report in its folder, see `haloae.experiments.grid`.
Results of all runs are put together in results.json, results.md and report.html.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from haloae._version import __version__
from haloae.claims import Results, claim_folder
from haloae.config import Config
from haloae.data.folders import Category
from haloae.detector import Detector, fit_detector
from haloae.errors import ConfigError
from haloae.evaluation.evaluate import PROTOCOL, evaluate
from haloae.experiments.grid import (
    MEAN,
    Run,
    baseline,
    cell,
    grid_of,
    numbers,
    run_grid,
    spreads,
    to_json,
)
from haloae.files import write_atomic
from haloae.outputs.evaluation import write_evaluation
from haloae.outputs.report.page import REPORT, write_benchmark_report
from haloae.outputs.report.section import Section
from haloae.outputs.report.words import METRICS
from haloae.outputs.tables import markdown
from haloae.presets import preset
from haloae.training.run_folder import CHECKPOINT, LOSS_LOG, MODEL

log = logging.getLogger(__name__)

RESULTS = "results.json"
TABLES = "results.md"
MVTEC_AD = frozenset(
    {
        *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"),
        *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
    }
)
PAPER = {"image_auroc": 0.914, "pixel_auroc": 0.912}
"""The paper's means over the 15 categories of MVTec AD; it gives no others."""
ATTENTION_MODES = ("halo", "published", "window_mean", "global", "none")
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "no_ssl": {"network": {"classifier": False}, "loss": {"clean_targets": False}},
    "no_image": {"network": {"image_decoder": None}, "detection": {"image_weight": 0.0}},
    "fixed_weights": {"loss": {"fixed_weights": (1.0, 1.0, 1.0)}},
    **{f"attention_{mode}": {"network": {"attention": {"mode": mode}}} for mode in ATTENTION_MODES},
}
"""What each changes in a preset. `no_ssl`: neither the classifier nor views with pasted patches."""


def variants(
    presets: Sequence[str],
    ablations: Sequence[str] = (),
    *,
    backbone: str | None = None,
    settings: Mapping[str, Any] | None = None,
    heads: Sequence[str] = (),
) -> dict[str, Config]:
    """The configurations to compare, by name: every preset, and every ablation and head of it.

    An ablation that changes nothing in a preset is left out: `attention_none` of one that has no
    attention.

    Args:
        presets: their names.
        ablations: of `ABLATIONS`.
        backbone: replaces every preset's.
        settings: replace every preset's, as `Config.replace` takes them; ablations come after.
        heads: detector heads that each preset is run with beside its own; an ``autoencoder`` is
            trained, the others take the features as they are.

    Raises:
        ConfigError: there is no such preset, ablation or setting, or settings do not fit.
    """
    configs: dict[str, Config] = {}
    for name in presets:
        base = preset(name).replace(**settings or {})
        if backbone is not None:
            base = base.replace(backbone=backbone)
        configs[name] = base
        for ablation in ablations:
            if ablation not in ABLATIONS:
                raise ConfigError(
                    f"no ablation is called {ablation!r}: choose of {', '.join(ABLATIONS)}."
                )
            changed = base.replace(**ABLATIONS[ablation])
            if _behaves_alike(changed, base):
                log.info("%s has nothing for %s to change: left out", name, ablation)
            else:
                configs[f"{name}, {ablation}"] = changed
        for head in heads:
            if head != base.detection.head:
                configs[f"{name}, {head}"] = base.replace(
                    network={"autoencoder": head == "autoencoder"}, detection={"head": head}
                )
    return configs


def _behaves_alike(one: Config, other: Config) -> bool:
    """True: equal, or different only in the weights of a loss that has one term."""
    if one.network == other.network and not (one.network.classifier or one.network.image_decoder):
        one = one.replace(loss={"fixed_weights": other.loss.fixed_weights})
    return one == other


def run_benchmark(
    root: Path,
    out: Path,
    configs: Mapping[str, Config],
    *,
    categories: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    overwrite: bool = True,
    device: str = "auto",
    workers: int = 0,
    progress: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda run: None,
) -> dict[str, Any]:
    """Fit and measure every variant on every category with every seed; write the results.

    A run that fails is recorded with its error and the others go on. A finished run in `out`, of
    the same configuration, images and version, is kept; one that was stopped goes on.

    Args:
        root: folder of categories in MVTec layout.
        out: folder for runs and results.
        configs: by variant, see `variants`.
        categories: of the root; None: all.
        seeds: each replaces the configs' own.
        overwrite: False: refuse an `out` that holds something.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: see `fit_detector`.
        progress: True: show bars on stderr.
        report: is told of each run when it is done.

    Returns:
        What results.json holds.

    Raises:
        DataError: a category is missing.
        OutputError: the results cannot be written, or `out` holds some and is to stay.
    """
    measure = partial(fit_and_measure, device=device, workers=workers, progress=progress)
    runs: list[dict[str, Any]] = []
    results = summarise(root.resolve().name, runs)
    points = grid_of(root, configs, categories=categories, seeds=seeds)
    whole = Results("benchmark", (RESULTS, TABLES, REPORT))
    way_out = "give --resume to go on"
    with claim_folder(out, whole, overwrite=overwrite, way_out=way_out) as folder:
        for run in run_grid(out, points, measure):
            runs.append(run)
            report(run)
            results = summarise(root.resolve().name, runs)
            write_atomic(folder / RESULTS, to_json(results))
        write_atomic(folder / TABLES, tables(results).encode("utf-8", "backslashreplace"))
        write_benchmark_report(results, folder / REPORT)
    return results


def fit_and_measure(run: Run, *, device: str, workers: int, progress: bool) -> dict[str, Any]:
    """Fit a detector, save it in the run's folder, and evaluate it there.

    Returns:
        ``fit_seconds``, of a run that went on those since then; ``metrics``, as in metrics.json.
    """
    start = time.perf_counter()
    detector = fit_detector(
        run.category.train,
        run.config,
        name=run.category.root.name,
        run=run.folder,
        device=device,
        resume=run.resume,
        progress=progress,
        workers=workers,
    ).detector
    fit_seconds = time.perf_counter() - start
    detector.save(run.folder / MODEL)
    metrics, _ = evaluate_into(run.folder, detector, run.category, progress=progress)
    (run.folder / CHECKPOINT).unlink(missing_ok=True)
    return {"fit_seconds": fit_seconds, "metrics": metrics}


def evaluate_into(
    folder: Path, detector: Detector, category: Category, *, progress: bool, strict: bool = False
) -> tuple[dict[str, Any], Section]:
    """Evaluate a detector; write what came out to the folder that it was fitted in.

    Args:
        folder: gets metrics.json, scores.csv and report.html.
        detector: the fitted detector.
        category: with test images.
        progress: True: show bars on stderr.
        strict: True: an image that cannot be read is an error; False: it is skipped.

    Returns:
        The metrics, as in metrics.json, and the category's section of a report.

    Raises:
        DataError: there are no test images, a mask does not fit, or none can be scored.
        ImageError: a mask cannot be read, or, with `strict`, an image.
        OutputError: the folder cannot be written to.
    """

    def bar(items: Iterable[Any]) -> Iterable[Any]:
        shown: Iterable[Any] = tqdm(items, "evaluating", disable=not progress, leave=False)
        return shown

    result = evaluate(detector, category, strict=strict, progress=bar)
    section = write_evaluation(
        result, detector, category, folder, losses=folder / LOSS_LOG, progress=bar
    )
    return result.metrics.as_dict(), section


def summarise(root: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What results.json holds: the runs, and their mean and standard deviation over seeds.

    The mean over categories is taken within a seed, and only where every category has a number.

    Args:
        root: name of the data.
        runs: with ``metrics``, or with ``error`` in its place.
    """
    done = [run for run in runs if "metrics" in run]
    names = list(dict.fromkeys(run["category"] for run in runs))
    summary = []
    for variant in dict.fromkeys(run["variant"] for run in runs):
        mine = [run for run in done if run["variant"] == variant]
        found = {
            m: spreads([(r["category"], r["seed"], r["metrics"].get(m)) for r in mine], names)
            for m in METRICS
        }
        summary += [
            {"variant": variant, "category": name, **{m: found[m][name] for m in METRICS}}
            for name in (*names, MEAN)
        ]
    return {
        "root": root,
        "package_version": __version__,
        "protocol": PROTOCOL,
        "backbones": sorted({run["metrics"]["backbone"] for run in done}),
        "runs": [dict(run) for run in runs],
        "summary": summary,
        "pixel_difference": baseline(done, names),
        "paper": PAPER if set(names) == MVTEC_AD else None,
    }


def tables(results: Mapping[str, Any]) -> str:
    """results.md: a table for each metric, variants by categories, and what failed."""
    summary = results["summary"]
    names = list(dict.fromkeys(row["category"] for row in summary))
    parts = [
        f"# Benchmark of {results['root']}",
        f"haloae {results['package_version']}; backbone: {', '.join(results['backbones'])}.\n"
        "Mean ± standard deviation over seeds.",
    ]
    for metric, title in METRICS.items():
        rows = [
            [variant, *(cell(row[metric]) for row in summary if row["variant"] == variant)]
            for variant in dict.fromkeys(row["variant"] for row in summary)
        ]
        if metric == "image_auroc":
            rows.append(["pixel difference", *numbers(results["pixel_difference"], names)])
        if results["paper"] and metric in results["paper"]:
            rows.append(["the paper", *numbers({MEAN: results["paper"][metric]}, names)])
        parts += [f"## {title}", markdown(rows, ["variant", *names])]
    failed = [
        f"- {run['variant']}, {run['category']}, seed {run['seed']}: {run['error']}"
        for run in results["runs"]
        if "error" in run
    ]
    if failed:
        parts += ["## Failed", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"
