"""Commands that fit and measure many detectors: the demo, the benchmark."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from haloae.cli import options
from haloae.cli.screen import report_run
from haloae.cli.shared import DONE, SKIPPED, prepare, shown, wants_progress, workers
from haloae.errors import DataError


def demo(
    *,
    out: Annotated[Path, Option(metavar="DIR", help="folder for images and results")] = Path(
        "haloae-demo"
    ),
    settings: options.Assignments = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> int:
    """See it work: makes images, trains and evaluates, in DIR."""
    from haloae.detector import check_names
    from haloae.presets import configure

    config = configure("fast", assignments=settings or ())
    check_names(config)
    from haloae.experiments.demo import DATA, run_demo, table
    from haloae.outputs.report.page import REPORT

    prepare(threads)
    outcomes = run_demo(
        out, config, overwrite=overwrite, device=device, progress=wants_progress(quiet)
    )
    if not quiet:
        print(table(outcomes))
        print(f"images in {shown(out / DATA)}; models, metrics.json and scores.csv in:")
        for outcome in outcomes:
            print(f"  {shown(out / outcome.category)}")
        print(f"open in a browser: {shown(out / REPORT)}")
    return DONE


def benchmark(
    root: Annotated[Path, Argument(metavar="ROOT", help="folder of categories in MVTec layout")],
    *,
    out: Annotated[Path, Option(metavar="DIR", help="folder for runs and results")],
    categories: Annotated[str | None, Option(metavar="A,B", help="default: all")] = None,
    presets: Annotated[str, Option(metavar="A,B", help="to fit each of")] = "default",
    settings: options.Assignments = None,
    ablations: Annotated[
        str | None,
        Option(
            metavar="A,B",
            help="of every preset: no_ssl, no_image, fixed_weights, attention_MODE (halo, "
            "published, window_mean, global, none)",
        ),
    ] = None,
    heads: Annotated[
        str | None,
        Option(
            metavar="A,B",
            help="of every preset, beside its own: autoencoder, gaussian, nearest, nearest_halo, "
            "halo",
        ),
    ] = None,
    seeds: Annotated[str, Option(metavar="0,1,2", help="to fit with each of")] = "0",
    backbone: options.Backbone = None,
    resume: Annotated[
        bool, Option("--resume", help="keep the runs in DIR, and go on from there")
    ] = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    limits: options.Limits = None,
    quiet: options.Quiet = False,
) -> int:
    """The paper's experiment, over a root of categories."""
    from haloae.data.folders import find_categories
    from haloae.detector import check_names
    from haloae.experiments.benchmark import (
        RESULTS,
        TABLES,
        run_benchmark,
        tables,
        variants,
    )
    from haloae.outputs.report.page import REPORT
    from haloae.settings import read_assignments

    wanted = options.names(categories, "--categories") if categories is not None else None
    numbers = options.seeds(seeds)
    configs = variants(
        options.names(presets, "--presets"),
        options.names(ablations, "--ablations") if ablations is not None else (),
        backbone=backbone,
        settings=read_assignments(settings or ()),
        heads=options.names(heads, "--heads") if heads is not None else (),
    )
    for config in configs.values():
        check_names(config)
    find_categories(root, wanted)
    prepare(threads)
    results = run_benchmark(
        root,
        out,
        configs,
        overwrite=resume,
        categories=wanted,
        seeds=numbers,
        device=device,
        workers=workers(),
        progress=wants_progress(quiet),
        report=lambda run: report_run(run, quiet=quiet),
    )
    if not quiet:
        places = f"{shown(out / RESULTS)} and {shown(out / TABLES)}"
        print(f"\n{tables(results)}\nfor a script: {places}")
        print(f"open in a browser: {shown(out / REPORT)}")
    failed = sum("error" in run for run in results["runs"])
    if failed == len(results["runs"]):
        raise DataError(f"{root}: every run failed: see {out / RESULTS}.")
    return SKIPPED if failed else DONE
