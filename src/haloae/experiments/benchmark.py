"""The paper's experiment: fit and measure over categories, presets, ablations and seeds.

Every run has a folder, `<variant>/<category>/seed-<N>`, with its model, metrics, scores and report.
Its `run.json` has the metrics once it is finished, so that a benchmark that was stopped goes on
where it was. Results of all runs are put together in results.json, results.md and report.html.
"""

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from haloae._version import __version__
from haloae.config import Config
from haloae.data.folders import GOOD, Category, load_category
from haloae.detector import fit_detector
from haloae.errors import ConfigError, DataError, HaloaeError
from haloae.evaluation.evaluate import PROTOCOL, evaluate
from haloae.files import write_atomic
from haloae.outputs.folder import write_evaluation
from haloae.outputs.report.page import REPORT, write_benchmark_report
from haloae.outputs.report.words import METRICS
from haloae.outputs.tables import markdown
from haloae.presets import preset
from haloae.training.run_folder import CHECKPOINT, LOSS_LOG, MODEL

log = logging.getLogger(__name__)

RESULTS = "results.json"
TABLES = "results.md"
RUN = "run.json"
MEAN = "mean"
"""Stands in a table where a category's name would: the mean over all categories."""
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
) -> dict[str, Config]:
    """The configurations to compare, by name: every preset, and every ablation of it.

    An ablation that changes nothing in a preset is left out: `attention_none` of one that has no
    attention.

    Args:
        presets: their names.
        ablations: of `ABLATIONS`.
        backbone: replaces every preset's.
        settings: replace every preset's, as `Config.replace` takes them; ablations come after.

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
    return configs


def _behaves_alike(one: Config, other: Config) -> bool:
    """True: equal, or different only in the weights of a loss that has one term."""
    if one.network == other.network and not (one.network.classifier or one.network.image_decoder):
        one = one.replace(loss={"fixed_weights": other.loss.fixed_weights})
    return one == other


def find_categories(root: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Folders of a root's categories in MVTec layout, by name; or those asked for, in that order.

    Raises:
        DataError: there is none, or one that is asked for is missing.
    """
    try:
        found = {p.name: p for p in sorted(root.iterdir()) if (p / "train" / GOOD).is_dir()}
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error.strerror}): check the path.") from error
    if not found:
        raise DataError(
            f"{root}: holds no category: give a folder of folders with train/{GOOD} and test in "
            f"them."
        )
    for name in names or ():
        if name not in found:
            raise DataError(f"{root}: holds no category {name!r}: choose of {', '.join(found)}.")
    return [found[name] for name in names] if names else list(found.values())


def run_benchmark(
    root: Path,
    out: Path,
    configs: Mapping[str, Config],
    *,
    categories: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
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
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: see `fit_detector`.
        progress: True: show bars on stderr.
        report: is told of each run when it is done.

    Returns:
        What results.json holds.

    Raises:
        DataError: a category is missing.
        OutputError: the results cannot be written.
    """
    folders = find_categories(root, categories)
    runs: list[dict[str, Any]] = []
    for name, config in configs.items():
        for folder in folders:
            for seed in seeds:
                run = _run(out, name, config.replace(seed=seed), folder, device, workers, progress)
                runs.append(run)
                report(run)
                results = summarise(root.resolve().name, runs)
                write_atomic(out / RESULTS, _json(results))
    write_atomic(out / TABLES, tables(results).encode("utf-8", "backslashreplace"))
    write_benchmark_report(results, out / REPORT)
    return results


def _run(
    out: Path,
    variant: str,
    config: Config,
    folder: Path,
    device: str,
    workers: int,
    progress: bool,
) -> dict[str, Any]:
    """One run: what its run.json holds, or will."""
    relative = f"{variant.replace(', ', '-')}/{folder.name}/seed-{config.seed}"
    where = out / relative
    known = {
        "variant": variant, "category": folder.name, "seed": config.seed, "folder": relative
    }  # fmt: skip
    start = time.perf_counter()
    try:
        category = load_category(folder)
        plan = {
            **known,
            "config": config.model_dump(mode="json"),
            "images": _fingerprint(category),
            "package_version": __version__,
        }
        before = _read(where / RUN)
        if before is not None and {**before, **plan} == before and "metrics" in before:
            return {**known, "seconds": before["seconds"], "metrics": before["metrics"]}
        write_atomic(where / RUN, _json(plan))
        detector = fit_detector(
            category.train,
            config,
            name=folder.name,
            run=where,
            device=device,
            resume=before == plan,
            progress=progress,
            workers=workers,
        ).detector
        detector.save(where / MODEL)

        def bar(items: Iterable[Any]) -> Iterable[Any]:
            shown: Iterable[Any] = tqdm(items, "evaluating", disable=not progress, leave=False)
            return shown

        result = evaluate(detector, category, progress=bar)
        losses = where / LOSS_LOG
        write_evaluation(result, detector, category, where, losses=losses, progress=bar)
        (where / CHECKPOINT).unlink(missing_ok=True)
        done = {"seconds": time.perf_counter() - start, "metrics": result.metrics.as_dict()}
        write_atomic(where / RUN, _json({**plan, **done}))
        return {**known, **done}
    except HaloaeError as error:
        message = str(error)
    except (RuntimeError, MemoryError) as error:
        message = f"{type(error).__name__}: {error}"
    return {**known, "seconds": time.perf_counter() - start, "error": message}


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _read(path: Path) -> dict[str, Any] | None:
    """A run's file, None where there is none that can be read: the run is then made anew."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _fingerprint(category: Category) -> str:
    """Changes when an image is added, removed, renamed or changes its size."""
    masks = (sample.mask for sample in category.test if sample.mask)
    paths = [*category.train, *(sample.path for sample in category.test), *masks]
    lines = [f"{p.relative_to(category.root).as_posix()!a} {p.stat().st_size}\n" for p in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
        for category in names:
            row = {m: _spread([_value(run, m) for run in mine if run["category"] == category])
                   for m in METRICS}  # fmt: skip
            summary.append({"variant": variant, "category": category, **row})
        row = {m: _spread(_means([(r["seed"], r["category"], _value(r, m)) for r in mine], names))
               for m in METRICS}  # fmt: skip
        summary.append({"variant": variant, "category": MEAN, **row})
    difference = {run["category"]: run["metrics"]["pixel_difference_image_auroc"] for run in done}
    if names and all(difference.get(name) is not None for name in names):
        difference[MEAN] = statistics.fmean(difference[name] for name in names)
    return {
        "root": root,
        "package_version": __version__,
        "protocol": PROTOCOL,
        "backbones": sorted({run["metrics"]["backbone"] for run in done}),
        "runs": [dict(run) for run in runs],
        "summary": summary,
        "pixel_difference": difference,
        "paper": PAPER if set(names) == MVTEC_AD else None,
    }


def _value(run: Mapping[str, Any], metric: str) -> float | None:
    value: float | None = run["metrics"][metric]
    return value


def _means(values: Sequence[tuple[int, str, float | None]], names: Sequence[str]) -> list[float]:
    """Mean over categories for each seed that has a number for every one of them."""
    means = []
    for seed in dict.fromkeys(seed for seed, _, _ in values):
        found = {name: v for s, name, v in values if s == seed and v is not None}
        if set(found) == set(names):
            means.append(statistics.fmean(found.values()))
    return means


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean, sample standard deviation (0 of one value) and count; None of nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    std = statistics.stdev(known) if len(known) > 1 else 0.0
    return {"mean": statistics.fmean(known), "std": std, "n": len(known)}


def tables(results: Mapping[str, Any]) -> str:
    """results.md: a table for each metric, variants by categories, and what failed."""
    rows = results["summary"]
    names = list(dict.fromkeys(row["category"] for row in rows))
    lines = [f"# Benchmark of {results['root']}", ""]
    lines += [f"haloae {results['package_version']}; backbone: {', '.join(results['backbones'])}."]
    lines += ["Mean ± standard deviation over seeds.", ""]
    for metric, title in METRICS.items():
        table = []
        for variant in dict.fromkeys(row["variant"] for row in rows):
            cells = [_cell(row[metric]) for row in rows if row["variant"] == variant]
            table.append([variant, *cells])
        if metric == "image_auroc":
            values = [results["pixel_difference"].get(name) for name in names]
            cells = ["–" if value is None else f"{value:.3f}" for value in values]
            table.append(["pixel difference", *cells])
        if results["paper"] and metric in results["paper"]:
            cells = ["–"] * (len(names) - 1) + [f"{results['paper'][metric]:.3f}"]
            table.append(["the paper", *cells])
        lines += [f"## {title}", "", markdown(table, ["variant", *names]), ""]
    failed = [run for run in results["runs"] if "error" in run]
    if failed:
        lines += ["## Failed", ""]
        lines += [
            f"- {r['variant']}, {r['category']}, seed {r['seed']}: {r['error']}" for r in failed
        ]
        lines.append("")
    return "\n".join(lines)


def _cell(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return "–"
    if spread["n"] == 1:
        return f"{spread['mean']:.3f}"
    return f"{spread['mean']:.3f} ± {spread['std']:.3f}"
