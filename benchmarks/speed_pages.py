"""Tables and chart of what `benchmarks.speed` measured."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from benchmarks.contestants import BATCH
from benchmarks.peers import BANK
from haloae.outputs.report.charts import Axis, dot_shape
from haloae.presets import PRESETS

Result = dict[str, Any]
BASELINE = "published"
DETECTORS = (BASELINE, *PRESETS)
SINGLE, BATCHED = "1", str(BATCH)

WIDTH, LEFT, RIGHT, TOP, ROW = 860, 282, 150, 74, 25
STYLE = Markup("""
:root { --card: #ffffff; --ink: #1b2026; --muted: #5b6570; --line: #dfe2e6; --one: #0072b2;
  --many: #c24e00; }
@media (prefers-color-scheme: dark) { :root { --card: #1b1f25; --ink: #e9ecef; --muted: #9ba6b1;
  --line: #313841; --one: #56b4e9; --many: #f58a42; } }
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  fill: var(--muted); font-variant-numeric: tabular-nums; }
text.group { fill: var(--ink); font-weight: 650; }
text.value { fill: var(--ink); }
.card { fill: var(--card); stroke: var(--line); }
.grid { stroke: var(--line); }
.base { stroke: var(--muted); stroke-dasharray: 4 4; }
.spread { stroke: var(--one); stroke-width: 3; stroke-opacity: .45; }
.one { fill: var(--one); }
.many { fill: var(--card); stroke: var(--many); stroke-width: 2; }
""")


def tables(results: Result) -> str:
    """All results, in Markdown."""
    found = results["contestants"]
    peaks = {r["precision"]: gigaflops(r) for r in found if r["kind"] == "product" and r["ms"]}
    baseline = next((r for r in found if r["group"] == BASELINE), None)
    parts = [_about(results)]
    for title, groups in (("Presets", DETECTORS), ("anomalib", ("anomalib",))):
        rows = [r for r in found if r["group"] in groups]
        if rows:
            parts += [f"## {title}", _detectors(rows, baseline, peaks)]
    parts += [
        f"## {title}\n\n{table}"
        for title, table in (
            ("Resolution, `fast`'s network, PyTorch, float32, one image", _resolution(found)),
            ("The machine", _machine(found)),
            ("Start-up, whole process", _start_up(results["start_up"])),
        )
        if table
    ]
    missing = [f"- {r['name']}: {r['error']}" for r in found if r["error"]]
    if missing:
        parts += ["## Not available", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def gigaflops(result: Result) -> float:
    """Operations a second in 10⁹, two for each multiply-add."""
    return float(2 * result["multiply_adds"] / result["ms"][SINGLE]["median"] / 1e6)


def faster(result: Result, baseline: Result | None, batch: str) -> float | None:
    """How many times faster than the published forward pass, an image, batches alike."""
    if baseline is None or batch not in baseline["ms"] or batch not in result["ms"]:
        return None
    return float(baseline["ms"][batch]["median"] / result["ms"][batch]["median"])


def _about(results: Result) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {text}" for name, text in machine["versions"].items())
    return (
        f"Measured on {machine['cpu']} (family {machine['family']}, model {machine['model']}; "
        f"{', '.join(machine['flags'])}), {_count(machine['threads'], 'thread')}, in "
        f"{results['minutes']:.0f} minutes. {versions}.\n\n"
        f"Medians, and quartiles in brackets. Times are those of one image; memory is the most the "
        f"whole process held. Share of peak: of what a large matrix product reaches in the same "
        f"arithmetic. PatchCore's bank holds {BANK:,} patches."
    )


def _detectors(rows: Sequence[Result], baseline: Result | None, peaks: dict[str, float]) -> str:
    lines = [
        f"| | run by | image | ms, one at a time | times faster | ms, {BATCH} at once | "
        f"times faster | 10⁹ multiply-adds | share of peak | MB, one / {BATCH} at once |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        name = row["group"] if row["group"] in DETECTORS else ""
        cells = [name, row["title"], f"{row['size']}²"]
        if not row["ms"]:
            lines.append(f"| {' | '.join(cells)} | not available |{' |' * 6}")
            continue
        for batch in (SINGLE, BATCHED):
            factor = faster(row, baseline, batch)
            cells += [_time(row, batch), _factor(factor) if factor else "–"]
        adds, peak = row["multiply_adds"], peaks.get(row["precision"])
        cells.append(f"{adds / 1e9:.2f}" if adds else "–")
        share = adds and peak and SINGLE in row["ms"]
        cells.append(f"{100 * gigaflops(row) / peak:.0f} %" if share and peak else "–")
        cells.append(" / ".join(f"{row['ms'][b]['peak_mb']:.0f}" for b in row["ms"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _resolution(found: Sequence[Result]) -> str:
    rows = [r for r in found if r["group"] == "resolution" and r["ms"]]
    lines = ["| image | ms | ms a megapixel | 10⁹ multiply-adds | MB |", "|--:|--:|--:|--:|--:|"]
    for row in rows:
        megapixel = row["ms"][SINGLE]["median"] / (row["size"] ** 2 / 1e6)
        lines.append(
            f"| {row['title']} | {_time(row, SINGLE)} | {megapixel:.0f} | "
            f"{(row['multiply_adds'] or 0) / 1e9:.2f} | {row['ms'][SINGLE]['peak_mb']:.0f} |"
        )
    return "\n".join(lines) if rows else ""


def _machine(found: Sequence[Result]) -> str:
    rows = [r for r in found if r["group"] == "machine" and r["ms"]]
    lines = ["| | 10⁹ operations a second |", "|---|--:|"]
    lines += [f"| {r['title']}, {r['size']}² | {gigaflops(r):.0f} |" for r in rows]
    return "\n".join(lines) if rows else ""


def _start_up(found: Result) -> str:
    lines = ["| | seconds |", "|---|--:|"]
    for name, result in found.items():
        text = f"failed: {result['error']}" if "error" in result else f"{result['median']:.2f}"
        lines.append(f"| `{name}` | {text} |" if "haloae" in name else f"| {name} | {text} |")
    return "\n".join(lines)


def _time(row: Result, batch: str) -> str:
    if batch not in row["ms"]:
        return "–"
    low, high = row["ms"][batch]["quartiles"]
    return f"{_ms(row['ms'][batch]['median'])} ({_ms(low)}–{_ms(high)})"


def _ms(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _factor(value: float) -> str:
    return f"{value:.{0 if value >= 10 else 1}f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def chart(results: Result) -> str:
    """A dot for each detector and batch on a logarithmic axis of milliseconds an image."""
    found = [r for r in results["contestants"] if r["kind"] != "product" and r["ms"]]
    groups = [*DETECTORS, "anomalib"]
    rows = [r for group in groups for r in found if r["group"] == group]
    baseline = next((r for r in rows if r["group"] == BASELINE), None)
    values = [r["ms"][batch]["median"] for r in rows for batch in r["ms"]]
    axis = Axis.around([min(values, default=1) * 0.8, max(values, default=9) * 1.2])
    parts: list[Markup] = []
    y = TOP
    for group in groups:
        members = [r for r in rows if r["group"] == group]
        if not members:
            continue
        y += 8
        if group != BASELINE:
            title = f"{group}, {members[0]['size']}²"
            parts.append(
                Markup('<text class="group" x="20" y="{}">{}</text>').format(y + 14, title)
            )
            y += ROW
        for row in members:
            parts.append(_row(row, axis, y + 10, faster(row, baseline, SINGLE)))
            y += ROW
    return str(_svg(parts, axis, y + 6, results, baseline))


def _x(axis: Axis, value: float) -> float:
    return LEFT + float(axis.place(value)) * (WIDTH - LEFT - RIGHT)


def _row(row: Result, axis: Axis, y: float, factor: float | None) -> Markup:
    is_base = row["group"] == BASELINE
    title = f"published forward pass, {row['size']}²" if is_base else row["title"]
    parts = [
        Markup('<text class="{}" x="{}" y="{}">{}</text>').format(
            "group" if is_base else "", 20 if is_base else 32, y + 4.5, title
        )
    ]
    parts.append(Markup('<path class="grid" d="M{},{}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
    for batch, kind in ((BATCHED, "many"), (SINGLE, "one")):
        if batch not in row["ms"]:
            continue
        times = row["ms"][batch]
        low, high = (_x(axis, value) for value in times["quartiles"])
        if kind == "one":
            parts.append(
                Markup('<path class="spread" d="M{:.1f},{}H{:.1f}"/>').format(low, y, high)
            )
        parts.append(
            Markup('<path class="{}" d="{}"><title>{}, batch {}: {} ms an image</title></path>')
            .format(kind, dot_shape(kind == "many", _x(axis, times["median"]), y), title, batch,
                    _ms(times["median"]))
        )  # fmt: skip
    if SINGLE in row["ms"]:
        cells = [(WIDTH - 84, f"{_ms(row['ms'][SINGLE]['median'])} ms")]
        if factor and not is_base:
            cells.append((WIDTH - 20, f"{_factor(factor)}×"))
        parts += [
            Markup('<text class="value" x="{}" y="{}" text-anchor="end">{}</text>').format(
                x, y + 4.5, text
            )
            for x, text in cells
        ]
    return Markup("").join(parts)


def _svg(
    parts: Sequence[Markup], axis: Axis, bottom: float, results: Result, baseline: Result | None
) -> Markup:
    threads = _count(results["machine"]["threads"], "thread")
    height = bottom + 46
    grid = []
    for tick in axis.ticks(8):
        x = _x(axis, tick)
        grid.append(Markup('<path class="grid" d="M{:.1f},{}V{}"/>').format(x, TOP, bottom))
        grid.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(
                x, bottom + 18, tick
            )
        )
    if baseline and SINGLE in baseline["ms"]:
        x = _x(axis, baseline["ms"][SINGLE]["median"])
        grid.append(Markup('<path class="base" d="M{:.1f},{}V{}"/>').format(x, TOP, bottom))
    heading = Markup(
        '<text class="group" x="20" y="30" style="font-size:16px">Milliseconds an image, {}</text>'
        '<path class="one" d="{}"/><text x="36" y="56">one at a time</text>'
        '<path class="many" d="{}"/><text x="152" y="56">{} at once</text>'
        '<text x="{}" y="56" text-anchor="end">one at a time</text>'
        '<text x="{}" y="56" text-anchor="end">faster</text>'
    ).format(
        threads, dot_shape(0, 25, 51.5), dot_shape(1, 141, 51.5), BATCH, WIDTH - 84, WIDTH - 20
    )
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" '
        'role="img" aria-label="Milliseconds an image of the published forward pass and of each '
        'preset"><style>{style}</style>'
        '<rect class="card" x=".5" y=".5" width="{cw}" height="{ch}" rx="10"/>'
        '{heading}{grid}{parts}<text x="{right}" y="{foot}" text-anchor="end">'
        "ms an image, logarithmic</text></svg>\n"
    ).format(
        w=WIDTH, h=height, cw=WIDTH - 1, ch=height - 1, style=STYLE, heading=heading,
        grid=Markup("").join(grid), parts=Markup("").join(parts), right=WIDTH - RIGHT,
        foot=bottom + 36,
    )  # fmt: skip
