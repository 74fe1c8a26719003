"""Differences between two detectors on the same images, and arms chosen by halves."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.paired import Scores, auroc, compared, table
from sklearn.metrics import roc_auc_score

from benchmarks import halves, paired


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "DRAWS", 200)


def scores(seed: int, gap: float, seeds: int = 1) -> Scores:
    generator = np.random.default_rng(seed)
    return Scores(generator.normal(size=(seeds, 12)), gap + generator.normal(size=(seeds, 9)))


def test_the_area_is_that_of_another_library_ties_included() -> None:
    good, defective = (np.round(values, 1) for values in scores(0, 0.5, seeds=3))
    labels = [0] * 12 + [1] * 9
    wanted = [
        roc_auc_score(labels, [*good[i], *defective[i]]) for i in range(3)
    ]  # each seed ranks on its own
    assert auroc(good, defective) == pytest.approx(np.mean(wanted))


def test_the_interval_holds_the_difference_and_not_nought_where_it_is_clear() -> None:
    ours, theirs, drawn = compared(scores(0, 3.0), scores(1, 0.0))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert 0 < low < ours - theirs < high


def test_a_detector_is_never_better_than_itself() -> None:
    same = scores(0, 0.5)
    assert not compared(same, same)[2].any()


def test_other_images_are_not_compared() -> None:
    fewer = Scores(np.zeros((1, 11)), np.zeros((1, 9)))
    with pytest.raises(ValueError, match="different images"):
        compared(scores(0, 1.0), fewer)


def test_images_are_paired_by_name_and_papers_count_as_one(tmp_path: Path) -> None:
    runs: list[dict[str, Any]] = []
    for variant, gap in (("default", 2.0), ("default, gaussian", 0.0)):
        for number, name in enumerate(("cloth", "paper_a", "paper_b")):
            folder = tmp_path / variant / name
            folder.mkdir(parents=True)
            good, defective = scores(number, gap)
            rows = [(f"test/good/{i}.png", "good", s) for i, s in enumerate(good[0])]
            rows += [(f"test/hole/{i}.png", "hole", s) for i, s in enumerate(defective[0])]
            with (folder / "scores.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("path", "label", "score"))
                writer.writerows(rows if gap else rows[::-1])
            runs.append({"variant": variant, "category": name, "at": folder})
    found = table(runs)
    assert [row[1] for row in found.rows] == ["cloth", "paper", "**mean**"]
    cloth, paper, mean = ([float(value) for value in row[2:5]] for row in found.rows)
    assert mean == pytest.approx(np.mean([cloth, paper], axis=0), abs=0.06)
    assert all(row[5].startswith("+") for row in found.rows)


def test_what_one_half_chooses_is_shown_on_the_other() -> None:
    found = halves.table()
    chosen = {row[0] for row in found.rows}
    assert chosen == {", ".join(half) for half in halves.HALVES}
    for half in chosen:
        there = [float(row[3]) for row in found.rows if row[0] == half]
        assert there == sorted(there, reverse=True)
        assert [row[1] for row in found.rows if row[0] == half][:3] == [1, 2, 3]
