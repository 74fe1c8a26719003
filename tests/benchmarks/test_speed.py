"""The benchmark of speed: what is chosen, summed up, tabled and drawn. Nothing is timed here."""

from xml.etree import ElementTree

from benchmarks.contestants import Contestant, contestants, reason, timed
from benchmarks.speed import choose, summary
from benchmarks.speed_pages import chart, faster, tables
from benchmarks.untrained import textures

ROUNDS = {"published": [[300.0], [100.0], [200.0]], "fast-onnx": [[9.0, 10.0, 11.0], [10.0]]}


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
    assert "| fast | ONNX Runtime, float32 | 192² | 10.0 (9.75–10.2) | 20 | – | – | 2.00 |" in text
    assert "- fast-openvino: ImportError: no such runtime" in text


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
