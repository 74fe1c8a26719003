"""Tables and chart of what `benchmarks.speed` measured."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from benchmarks.contestants import BATCH
from benchmarks.peers import BANK
from benchmarks.tables import Table, cell_text, milliseconds, texts
from haloae.outputs.report.charts import Axis, dot_shape
from haloae.outputs.tables import markdown
from haloae.presets import PRESETS

Result = dict[str, Any]
BASELINE = "published"
DETECTORS = (BASELINE, *PRESETS)
SINGLE, BATCHED = "1", str(BATCH)
ADDS = "10⁹ multiply-adds"

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
    parts = [_about(results)]
    for title, table in (
        ("Detectors", detectors(results)),
        ("Resolution, `fast`'s network, PyTorch, float32, one image", resolution(results)),
        ("The machine", products(results)),
        ("The least time a pass can take on it, ms", least_time(results)),
        ("Start-up, whole processes", start_up(results)),
    ):
        if table.rows:
            parts.append(f"## {title}\n\n{markdown(texts(table), table.columns)}")
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


def measured(results: Result) -> str:
    """The machine and the versions, in words."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {text}" for name, text in machine["versions"].items())
    return (
        f"{machine['cpu']} (family {machine['family']}, model {machine['model']}; "
        f"{', '.join(machine['flags'])}), {_count(machine['threads'], 'thread')}; {versions}"
    )


def _about(results: Result) -> str:
    return (
        f"Measured on {measured(results)}, in {results['minutes']:.0f} minutes.\n\n"
        f"Medians, and quartiles in brackets. Times are those of one image; memory is the most the "
        f"whole process held. Share of peak: of what a large matrix product reaches in the same "
        f"arithmetic. PatchCore's bank holds {BANK:,} patches."
    )


def detectors(results: Result) -> Table:
    """A row for each that ran: the published pass, presets and detectors of anomalib."""
    found = results["contestants"]
    baseline = _baseline(found)
    peaks = {r["precision"]: gigaflops(r) for r in _ran(found, ["machine"])}
    rows = []
    for row in _ran(found, [*DETECTORS, "anomalib"]):
        adds, peak = row["multiply_adds"], peaks.get(row["precision"])
        share = 100 * gigaflops(row) / peak if adds and peak and SINGLE in row["ms"] else None
        times = [
            cell
            for batch in (SINGLE, BATCHED)
            for cell in (_time(row, batch), _factor(faster(row, baseline, batch)))
        ]
        rows.append([
            _pass(row), row["title"], f"{row['size']}²", *times,
            adds / 1e9 if adds else None,
            None if share is None else round(share),
            *(_memory(row, batch) for batch in (SINGLE, BATCHED)),
        ])  # fmt: skip
    columns = [
        "pass", "run by", "image", "ms, one at a time", "times faster", f"ms, {BATCH} at once",
        f"times faster, {BATCH} at once", ADDS, "share of peak, %", "MB, one at a time",
        f"MB, {BATCH} at once",
    ]  # fmt: skip
    digits = {"times faster": 1, f"times faster, {BATCH} at once": 1, ADDS: 2}
    return Table(columns, rows, digits)


def resolution(results: Result) -> Table:
    """One network at several image sizes."""
    rows = []
    for row in _ran(results["contestants"], ["resolution"]):
        megapixel = row["ms"][SINGLE]["median"] / (row["size"] ** 2 / 1e6)
        adds = (row["multiply_adds"] or 0) / 1e9
        memory = _memory(row, SINGLE)
        rows.append([row["title"], _time(row, SINGLE), round(megapixel), adds, memory])
    return Table(["image", "ms", "ms a megapixel", ADDS, "MB"], rows, {ADDS: 2})


def products(results: Result) -> Table:
    """What the machine reaches in products of large matrices."""
    rows = [
        [f"{r['title']}, {r['size']}²", round(gigaflops(r))]
        for r in _ran(results["contestants"], ["machine"])
    ]
    return Table(["", "10⁹ operations a second"], rows, {})


def least_time(results: Result) -> Table:
    """What a pass would take if all its operations ran as fast as a product of large matrices."""
    found = results["contestants"]
    peaks = {r["precision"]: gigaflops(r) for r in _ran(found, ["machine"])}
    rows = [
        [f"{_pass(r)}, {r['multiply_adds'] / 1e9:.3g} GMAC",
         *(2 * r["multiply_adds"] / 1e6 / peak for peak in peaks.values())]
        for r in _ran(found, DETECTORS)
        if peaks and r["multiply_adds"] and r["precision"] == "float32"
    ]  # fmt: skip
    return Table(["pass", *peaks], rows, dict.fromkeys(peaks, 1))


def start_up(results: Result) -> Table:
    """Whole processes, to ten milliseconds; those that failed are left out."""
    rows = [
        [f"`{name}`" if "haloae" in name else name, round(100 * found["median"]) * 10]
        for name, found in results["start_up"].items()
        if "error" not in found
    ]
    return Table(["process", "ms"], rows, {})


def _ran(found: Sequence[Result], groups: Sequence[str]) -> list[Result]:
    return [r for r in found if r["group"] in groups and r["ms"]]


def _baseline(found: Sequence[Result]) -> Result | None:
    return next((r for r in found if r["group"] == BASELINE), None)


def _pass(row: Result) -> str:
    return f"`{row['group']}`" if row["group"] in PRESETS else str(row["group"])


def _time(row: Result, batch: str) -> dict[str, Any] | None:
    times = row["ms"].get(batch)
    return times and {"median": times["median"], "quartiles": times["quartiles"]}


def _memory(row: Result, batch: str) -> int | None:
    return round(row["ms"][batch]["peak_mb"]) if batch in row["ms"] else None


def _factor(value: float | None) -> float | None:
    """As exact as it is worth."""
    return value if value is None or value < 10 else round(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def chart(results: Result) -> str:
    """A dot for each detector and batch on a logarithmic axis of milliseconds an image."""
    found = [r for r in results["contestants"] if r["kind"] != "product" and r["ms"]]
    groups = [*DETECTORS, "anomalib"]
    rows = [r for group in groups for r in found if r["group"] == group]
    baseline = _baseline(rows)
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
                    milliseconds(times["median"]))
        )  # fmt: skip
    if SINGLE in row["ms"]:
        cells = [(WIDTH - 84, f"{milliseconds(row['ms'][SINGLE]['median'])} ms")]
        if factor and not is_base:
            cells.append((WIDTH - 20, f"{cell_text(_factor(factor), 1)}×"))
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
