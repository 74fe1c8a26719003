"""The one experiment loop: every configuration on every category with every seed.

Every run has a folder of its own, `<variant>/<category>/seed-<N>`. Its `run.json` has the run's
plan once it is begun and what was measured once it is finished, so that an experiment that was
stopped, at whatever moment, goes on where it was. A run that replaces another does so once it is
whole. A run knows nothing of the others: `run_point` is
all that a machine needs to do one.
"""

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from haloae._version import __version__
from haloae.claims import Results, claim_folder
from haloae.config import Config
from haloae.data.folders import Category, find_categories, load_category
from haloae.errors import HaloaeError
from haloae.files import read_regular, write_atomic
from haloae.outputs.evaluation import EVALUATION
from haloae.training.run_folder import RUN as TRAINED

log = logging.getLogger(__name__)

RUN = "run.json"
MOST_BYTES = 2**26
"""Of a run's file."""
MEASURED = Results("measured", (RUN, *TRAINED.files, *EVALUATION.files), goes_on_from=RUN)
"""What a run leaves in its folder."""
MEAN = "mean"
"""Stands in a table where a category's name would: the mean over all categories."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the grid: what one run fits, and to what."""

    variant: str
    """Name of its configuration."""
    data: Path
    """Folder of its category."""
    config: Config
    """Its seed is the run's."""

    @property
    def labels(self) -> dict[str, Any]:
        """What results tell the run by, its folder below the experiment's among it."""
        name = self.variant.replace(", ", "-").replace(" ", "_")
        return {
            "variant": self.variant,
            "category": self.data.name,
            "seed": self.config.seed,
            "folder": f"{name}/{self.data.name}/seed-{self.config.seed}",
        }


class Run(NamedTuple):
    """What a run is to measure."""

    category: Category
    config: Config
    folder: Path
    """For all that the run leaves."""
    resume: bool
    """True: the folder is that of the same run, which was stopped."""


Measure = Callable[[Run], Mapping[str, Any]]
"""Does a run; gives what its file is to hold: ``metrics``, by which a run is known to be finished,
and what else is worth keeping."""


def grid_of(
    root: Path,
    configs: Mapping[str, Config],
    *,
    categories: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
) -> list[Point]:
    """Every configuration on every category with every seed, in this order.

    Args:
        root: folder of categories in MVTec layout.
        configs: by variant.
        categories: of the root; None: all.
        seeds: each replaces the configs' own.

    Raises:
        DataError: a category is missing.
    """
    folders = find_categories(root, categories)
    return [
        Point(variant, folder, config.replace(seed=seed))
        for variant, config in configs.items()
        for folder in folders
        for seed in seeds
    ]


def run_grid(out: Path, points: Sequence[Point], measure: Measure) -> Iterator[dict[str, Any]]:
    """Each run in turn, as `run_point` gives it, as soon as it is done."""
    for point in points:
        yield run_point(out, point, measure)


def run_point(out: Path, point: Point, measure: Measure) -> dict[str, Any]:
    """One run, made unless it is finished already.

    It is the same run while configuration, images and version are.

    Args:
        out: folder of the experiment.
        point: what to fit.
        measure: does it.

    Returns:
        The point's labels, ``seconds``, and what `measure` gave; or ``error`` in its place: a run
        that fails, however it does, must not end the others.
    """
    folder = out / point.labels["folder"]
    start = time.perf_counter()
    try:
        category = load_category(point.data)
        plan = {
            **point.labels,
            "config": point.config.model_dump(mode="json"),
            "images": _fingerprint(category),
            "package_version": __version__,
        }

        def is_same(place: Path) -> bool:
            before = _read(place / RUN)
            return {**before, **plan} == before

        with claim_folder(folder, MEASURED, overwrite=True, goes_on=is_same) as place:
            before, resume = _read(place / RUN), is_same(place)
            if resume and "metrics" in before:
                return {k: before[k] for k in before if k in point.labels or k not in plan}
            write_atomic(place / RUN, to_json(plan))
            measured = measure(Run(category, point.config, place, resume=resume))
            done = {"seconds": time.perf_counter() - start, **measured}
            write_atomic(place / RUN, to_json({**plan, **done}))
        return {**point.labels, **done}
    except HaloaeError as error:
        message = str(error)
    except Exception as error:
        log.debug("%s failed", point.labels["folder"], exc_info=True)
        message = f"{type(error).__name__}: {error}"
    return {**point.labels, "seconds": time.perf_counter() - start, "error": message}


def to_json(values: Mapping[str, Any]) -> bytes:
    """A file of results: JSON to be read by people too."""
    return (json.dumps(values, indent=2) + "\n").encode()


def _read(path: Path) -> dict[str, Any]:
    """A run's file, empty where there is none that can be read: the run is then made anew."""
    try:
        values = json.loads(read_regular(path, most=MOST_BYTES))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _fingerprint(category: Category) -> str:
    """Changes when an image is added, removed, renamed or changes its size."""
    masks = (sample.mask for sample in category.test if sample.mask)
    paths = [*category.train, *(sample.path for sample in category.test), *masks]
    lines = [f"{p.relative_to(category.root).as_posix()!a} {p.stat().st_size}\n" for p in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# Means and spreads


def spreads(
    values: Sequence[tuple[str, int, float | None]], categories: Sequence[str]
) -> dict[str, dict[str, float] | None]:
    """Mean, sample standard deviation and count over seeds, for each category and for `MEAN`.

    The mean over categories is taken within a seed, and only where every category has a number.

    Args:
        values: category, seed and value of each run of one variant; None where it has none.
        categories: all that should have a number.
    """
    found: dict[str, list[float]] = {
        name: [v for category, _, v in values if category == name and v is not None]
        for name in categories
    }
    found[MEAN] = []
    for seed in dict.fromkeys(seed for _, seed, _ in values):
        of_seed = {category: v for category, s, v in values if s == seed and v is not None}
        if of_seed.keys() == set(categories):
            found[MEAN].append(statistics.fmean(of_seed.values()))
    return {name: _spread(known) for name, known in found.items()}


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, sample standard deviation (0 of one value) and count; None of nothing."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "n": len(values)}


def baseline(runs: Sequence[Mapping[str, Any]], categories: Sequence[str]) -> dict[str, float]:
    """The pixel difference's image AUROC on each category, and `MEAN` where all have it.

    Args:
        runs: finished ones.
        categories: all there are.
    """
    key = "pixel_difference_image_auroc"
    found = {run["category"]: run["metrics"][key] for run in runs}
    if categories and all(found.get(name) is not None for name in categories):
        found[MEAN] = statistics.fmean(found[name] for name in categories)
    return found


def cell(spread: Mapping[str, float] | None) -> str:
    """A table's cell: mean ± standard deviation, the mean alone of one value, – of none."""
    if spread is None:
        return "–"
    if spread["n"] == 1:
        return f"{spread['mean']:.3f}"
    return f"{spread['mean']:.3f} ± {spread['std']:.3f}"


def numbers(values: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    """Cells of values that have no spread, by name; – of what is missing."""
    return ["–" if (v := values.get(name)) is None else f"{v:.3f}" for name in names]
