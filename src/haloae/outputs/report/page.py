"""One HTML page that says how well a detector works: no network, no scripts, all in one file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from haloae._version import __version__
from haloae.data.images import shown_path
from haloae.errors import EXTRAS, MissingExtraError
from haloae.files import write_atomic
from haloae.outputs.pictures import FOUND, RAMP, TRUE
from haloae.outputs.report import REPORT as REPORT
from haloae.outputs.report.section import Chart, Section
from haloae.outputs.report.words import METRICS, MOST, percent, protocol_entries, shown, three

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from haloae.outputs.report.charts import Dots, dot_chart, dot_class, dot_shape
except ModuleNotFoundError as error:
    if error.name not in EXTRAS:
        raise
    raise MissingExtraError(error.name, EXTRAS[error.name]) from error


def write_report(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page.

    Raises:
        OutputError: it cannot be written.
    """
    _write(path, "report.html", title=title, sections=sections, most=MOST)


def write_benchmark_report(results: Mapping[str, Any], path: Path) -> None:
    """Write the page of a benchmark, given what results.json holds.

    Raises:
        OutputError: it cannot be written.
    """
    runs = [
        {**run, "link": quote(f"{run['folder']}/{REPORT}", errors="surrogateescape")}
        for run in results["runs"]
    ]
    summary = {(row["variant"], row["category"]): row for row in results["summary"]}
    variants = list(dict.fromkeys(row["variant"] for row in results["summary"]))
    categories = list(dict.fromkeys(row["category"] for row in results["summary"]))
    names = [name for name in categories if name != "mean"]
    # First, as fifteen categories are wider than a page.
    categories = (["mean"] if "mean" in categories else []) + names
    tables = [
        _benchmark_table(results, key, (variants, categories), summary)
        for key in METRICS
        if any(row.get(key) for row in results["summary"])
    ]
    _write(
        path,
        "benchmark.html",
        title=f"Benchmark of {shown_path(Path(results['root']).name)}",
        verdict=benchmark_verdict(results),
        tables=tables,
        categories=categories,
        chart=_benchmark_chart(results, variants, names, summary) if names else None,
        runs=[run for run in runs if "metrics" in run],
        failures=[run for run in runs if "error" in run],
        seconds=sum(run["seconds"] for run in runs),
        settings=[
            ("haloae", results["package_version"]),
            ("Backbone weights", ", ".join(results["backbones"]) or "–"),
            *protocol_entries(results["protocol"]),
        ],
    )


def write_slide_report(path: Path, **values: object) -> None:
    """Write the page of a slide, given what it shows, see `haloae.slides.page`.

    Raises:
        OutputError: it cannot be written.
    """
    _write(path, "slide.html", title="HaloAE slide", **values)


def benchmark_verdict(results: Mapping[str, Any]) -> str:
    """What came out, in one sentence."""
    means = {
        row["variant"]: row["image_auroc"]["mean"]
        for row in results["summary"]
        if row["category"] == "mean" and row.get("image_auroc")
    }
    failed = sum("error" in run for run in results["runs"])
    tail = f"; {failed} of {len(results['runs'])} runs failed" if failed else ""
    if not means:
        return f"No run gave a ranking of images{tail}."
    best = max(means, key=lambda name: means[name])
    count = len({row["category"] for row in results["summary"]} - {"mean"})
    plain = (results.get("pixel_difference") or {}).get("mean")
    paper = (results.get("paper") or {}).get("image_auroc")
    words = [] if plain is None else [f"{plain:.3f} for the plain pixel difference"]
    words += [] if paper is None else [f"{paper:.3f} in the paper"]
    against = f", against {' and '.join(words)}" if words else ""
    subject = f"“{best}” does best" if len(means) > 1 else f"“{best}” ranks images"
    of = f"over {count} categories" if count > 1 else "on one category"
    return f"{subject} with a mean image AUROC of {means[best]:.3f} {of}{against}{tail}."


def _write(path: Path, template: str, **values: object) -> None:
    environment = Environment(
        loader=PackageLoader("haloae.outputs.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": shown,
        "percent": percent,
        "three": three,
        "duration": _duration,
        "printable": shown_path,
    }
    ramp = ", ".join(f"rgb{colour}" for colour in RAMP)
    colours = {"ramp": ramp, "found_colour": FOUND, "true_colour": TRUE}
    page = environment.get_template(template).render(version=__version__, **colours, **values)
    write_atomic(path, page.encode("utf-8", "backslashreplace"))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _benchmark_table(
    results: Mapping[str, Any],
    key: str,
    axes: tuple[Sequence[str], Sequence[str]],
    summary: Mapping[tuple[str, str], Mapping[str, Any]],
) -> dict[str, Any]:
    """Title and rows of (name, kind, cells), a cell being (mean, spread)."""
    variants, categories = axes

    def cell(entry: Mapping[str, Any] | None) -> tuple[str, str]:
        if not entry:
            return "–", ""
        several = (entry.get("n") or 1) > 1 and entry.get("std") is not None
        return f"{entry['mean']:.3f}", f"± {entry['std']:.3f}" if several else ""

    rows = [
        (name, "", [cell(summary.get((name, c), {}).get(key)) for c in categories])
        for name in variants
    ]
    plain = results.get("pixel_difference") or {}
    if key == "image_auroc":
        cells = [(three(plain.get(name)), "") for name in categories]
        rows.append(("pixel difference", "baseline", cells))
    paper = results.get("paper") or {}
    if paper.get(key) is not None:
        cells = [(three(paper[key]) if name == "mean" else "", "") for name in categories]
        rows.append(("the paper", "baseline", cells))
    return {"title": METRICS[key], "rows": rows}


def _benchmark_chart(
    results: Mapping[str, Any],
    variants: Sequence[str],
    names: Sequence[str],
    summary: Mapping[tuple[str, str], Mapping[str, Any]],
) -> Chart:
    plain = results.get("pixel_difference") or {}
    kinds = [shown_path(name) for name in [*variants, "pixel difference"]]

    def value(variant: str, name: str) -> float | None:
        entry = summary.get((variant, name), {}).get("image_auroc")
        return entry["mean"] if entry else None

    rows = [
        Dots(shown_path(name), [*(value(v, name) for v in variants), plain.get(name)])
        for name in names
    ]
    key = [(dot_class(kind, len(kinds)), name) for kind, name in enumerate(kinds)]
    shapes = [dot_shape(kind, 11, 5) for kind in range(len(kinds))]
    drawing = dot_chart(rows, kinds, "image AUROC")
    return Chart("Image AUROC by category", drawing, key=key, dots=shapes)
