"""How long inspections take while `haloae serve` retrains a model, and while it does not.

    python -m benchmarks.retraining MODEL GOOD --out runs/retraining

MODEL is exported, GOOD a folder of good images, to which a model is fitted anew. A client, of
another process, asks for inspections of one of them, each as soon as the last answer is there:
before, for as long as the retraining runs, and after. With as many clients as cores or more, a
retraining is left next to nothing, and takes as long as they ask.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.script import leave, parser_of
from benchmarks.serving import ask_apart, serving
from benchmarks.tables import Table
from haloae.server.settings import cores

SECONDS = 60.0
"""Of load before and after."""
WARM_SECONDS = 5.0
PART = 10.0
"""Seconds of load, between two looks at whether the retraining is over."""


def measure(model: Path, good: Path, out: Path) -> dict[str, Any]:
    """Seconds of answers, in ascending order, before, during and after a retraining."""
    out.mkdir(parents=True, exist_ok=True)
    image = min(path for path in good.iterdir() if path.is_file())
    settings = out / "serve.toml"
    settings.write_text(f"[retraining.good]\n{model.stem} = {json.dumps(str(good.absolute()))}\n")
    with serving(model, out / "serve.log", "--config", str(settings)) as (port, _):

        def ask(seconds: float) -> list[float]:
            return ask_apart(port, image, 1, seconds).seconds

        def retrained(path: str) -> dict[str, Any] | None:
            found: dict[str, Any] | None
            found = _answer(f"http://127.0.0.1:{port}/page/{path}")["retraining"]
            return found

        ask(WARM_SECONDS)
        before = ask(SECONDS)
        began = time.monotonic()
        _answer(f"http://127.0.0.1:{port}/page/retrain?recipe={model.stem}", {"who": "Ada"})
        during = _while(lambda: retrained(f"models?recipe={model.stem}"), lambda: ask(PART))
        took = time.monotonic() - began
        after = ask(SECONDS)
    return {
        "seconds": took,
        "alone": summary(sorted(before + after)),
        "beside": summary(sorted(during)),
    }


def _while(
    state: Callable[[], dict[str, Any] | None], act: Callable[[], list[float]]
) -> list[float]:
    """What comes of acting again and again, until a retraining has ended."""
    found: list[float] = []
    while (now := state()) is not None and now["step"] is not None:
        found += act()
    if now is None or now["error"] is not None:
        raise RuntimeError(f"the retraining failed: {now}")
    return found


def _answer(url: str, given: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401 - any JSON
    data = None if given is None else json.dumps(given).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own service
        return json.load(answer)


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """How many answers, and their milliseconds.

    Args:
        seconds: of each, in ascending order.
    """
    count = len(seconds)
    p50, p99 = (1e3 * seconds[count * share // 100] for share in (50, 99))
    return {"requests": count, "p50": p50, "p99": p99}


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each run."""
    rows = []
    for found in results:
        alone, beside = found["alone"], found["beside"]
        rows.append([
            f"`{found['preset']}`, {found['engine']}", found["seconds"], beside["requests"],
            alone["p50"], beside["p50"], alone["p99"], beside["p99"], beside["p99"] / alone["p99"],
        ])  # fmt: skip
    columns = [
        "model", "retraining, s", "inspections beside", "p50 alone, ms", "p50 beside, ms",
        "p99 alone, ms", "p99 beside, ms", "ratio of p99",
    ]  # fmt: skip
    digits = {columns[1]: 0, **dict.fromkeys(columns[3:7], 1), columns[7]: 2}
    return Table(columns, rows, digits)


def main() -> None:
    """Measure, and write results.json."""
    parser = parser_of(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("good", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    from haloae import load

    detector = load(given.model, threads=1)
    results = {
        "preset": detector.config.preset,
        "engine": detector.engine,
        "machine": machine(cores()),
        **measure(given.model, given.good, given.out),
    }
    leave(results, given.out)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
