"""The benchmark of speed: what is chosen, summed up, tabled and drawn. Nothing is timed here."""

import json
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.contestants import Contestant, contestants, reason, timed
from benchmarks.results import main
from benchmarks.speed import choose, summary
from benchmarks.speed_pages import chart, faster, tables
from benchmarks.tables import load, texts
from benchmarks.untrained import textures

ROUNDS = {
    "published": [[300.0], [100.0], [200.0]],
    "fast-onnx": [[9.0, 10.0, 11.0], [10.0]],
    "fast-at-256": [[20.0], [20.0]],
    "product-float32": [[5.0], [5.0]],
}


def measured(contestant: Contestant) -> dict:
    rounds = ROUNDS.get(contestant.name)
    if rounds is None:
        error = {"error": "ImportError: no such runtime"}
        return summary(contestant, {"ms": {}, "errors": {}} | error)
    found = {"ms": {1: rounds}, "errors": {}, "peak_mb": {1: 500.0}, "multiply_adds": 2 * 10**9}
    return summary(contestant, found)


def results() -> dict:
    machine = {"cpu": "<cpu>", "family": 1, "model": 2, "flags": [], "threads": 1, "versions": {}}
    return {
        "machine": machine,
        "contestants": [measured(each) for each in contestants()],
        "start_up": {"haloae --help": {"seconds": [0.1], "median": 0.1}},
        "minutes": 1.0,
    }


def test_names_are_unique_and_chosen_by_pattern() -> None:
    names = [each.name for each in contestants()]
    assert len(set(names)) == len(names)
    chosen = choose("fast-o*,published", "8")
    assert {each.name for each in chosen} == {
        "published", "fast-onnx", "fast-openvino", "fast-openvino-bfloat16", "fast-openvino-int8",
        "fast-openvino-int8-bfloat16",
    }  # fmt: skip
    assert {each.batches for each in chosen} == {(8,)}


def test_times_are_medians_of_one_image() -> None:
    contestant = next(each for each in contestants() if each.name == "fast-onnx")
    found = {"ms": {8: [[80.0], [160.0, 240.0]]}, "errors": {}, "peak_mb": {8: 1.0}}
    assert summary(contestant, found)["ms"]["8"] == {
        "median": 20.0, "min": 10.0, "quartiles": [15.0, 25.0], "rounds": 2, "calls": 3,
        "peak_mb": 1.0,
    }  # fmt: skip


def test_tables_compare_with_the_published_and_say_what_is_missing() -> None:
    found = results()
    baseline, fast = (
        next(r for r in found["contestants"] if r["name"] == name)
        for name in ("published", "fast-onnx")
    )
    assert faster(fast, baseline, "1") == 20
    text = tables(found)
    row = "| `fast` | ONNX Runtime, float32 | 192² | 10.0 (9.75–10.2) | 20 | – | – | 2.00 | 50 |"
    assert row in text
    assert "- fast-openvino: ImportError: no such runtime" in text


def test_its_tables_become_results_files(tmp_path: Path) -> None:
    found = results()
    found["start_up"]["python"] = {"seconds": [9.0], "median": 9.0, "error": "broken"}
    (tmp_path / "results.json").write_text(json.dumps(found))
    median = {"median": 20.0, "quartiles": [20.0, 20.0]}
    for name, rows in (
        ("resolution", [["256²", median, 305, 2.0, 500]]),
        ("least-time", [["published, 2 GMAC", 5.0], ["`fast`, 2 GMAC", 5.0]]),
        ("start-up", [["`haloae --help`", 100]]),
    ):
        assert main([name, str(tmp_path)], tmp_path) == 0
        values = json.loads((tmp_path / "docs" / "results" / f"{name}.json").read_text())
        assert values["rows"] == rows
        assert values["measured"].startswith("<cpu> (family 1, model 2; ), 1 thread;")
    assert main(["speed-presets", str(tmp_path)], tmp_path) == 0
    shown = texts(load(tmp_path / "docs" / "results" / "speed-presets.json"))
    assert [row[:3] for row in shown] == [
        ["published", "forward pass as published, float32", "256²"],
        ["`fast`", "ONNX Runtime, float32", "192²"],
    ]


def test_chart_is_an_svg_with_a_row_for_each_that_ran() -> None:
    root = ElementTree.fromstring(chart(results()))  # noqa: S314 - our own
    shown = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "published forward pass, 256²" in shown
    assert "20×" in shown
    assert "PaDiM, ResNet-18" not in shown


def test_calls_are_timed_until_time_is_up() -> None:
    calls = []
    images = textures(1, 32)
    assert len(timed(calls.append, images, {"warm": True, "seconds": 0.0})) == 1
    assert len(calls) == 2
    assert reason(ValueError("a\n b")) == "ValueError: a b"
