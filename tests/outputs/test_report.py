"""The report: what it says, that it stands alone, and how it looks in a browser."""

import html
import importlib
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from conftest import texture
from haloae.config import Config
from haloae.data.folders import Category, load_category
from haloae.detection.prediction import Prediction
from haloae.detector import Detector
from haloae.errors import ImageError, MissingExtraError
from haloae.evaluation.evaluate import Evaluation, evaluate
from haloae.outputs.evaluation import write_evaluation
from haloae.outputs.report.examples import most_unusual, spread
from haloae.outputs.report.page import write_benchmark_report, write_report
from haloae.outputs.report.section import MOST_ROWS, Section
from haloae.outputs.report.words import MOST, verdict

CHROMIUM = shutil.which("chromium")
WIDTHS = (1280, 390)
WEIRD = "a<script>alert(1)<&\"'é\nb"


class Page(HTMLParser):
    """Tags, attributes and text of a page; every tag that is opened must be closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def page_of(path: Path) -> Page:
    """The page, having made sure that it loads nothing and runs nothing."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/webp;base64,")
            assert attributes["alt"]
    assert not re.search(r"https?:|url\(|@import", text)
    return page


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(pixels).save(path, format="PNG")


@pytest.fixture(scope="module")
def detector(tiny: Config, good_paths: list[Path]) -> Detector:
    torch.set_num_threads(1)  # more of them only wait for each other on images this small
    return Detector.fit(good_paths, config=tiny, device="cpu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve training images, three good ones to test on, and two with a black square."""
    root = tmp_path / "stripes"
    for number in range(12):
        save(root / f"train/good/{number:03}.png", texture(number))
    for number in range(3):
        save(root / f"test/good/{number:03}.png", texture(20 + number))
    mask = np.zeros((40, 40), np.uint8)
    mask[8:24, 10:30] = 255
    for number in range(2):
        pixels = texture(30 + number)
        pixels[mask > 0] = 0
        save(root / f"test/square/{number:03}.png", pixels)
        save(root / f"ground_truth/square/{number:03}_mask.png", mask)
    return root


def report_of(
    detector: Detector, root: Path, *, losses: Path | None = None
) -> tuple[Evaluation, Section, Page]:
    category, out = load_category(root), root.parent / "out"
    result = evaluate(detector, category)
    section = write_evaluation(result, detector, category, out, losses=losses)
    return result, section, page_of(out / "report.html")


def test_five_images(detector: Detector, root: Path) -> None:
    losses = root / "losses.csv"
    losses.write_text("step,features,features_weight,learning_rate\n1,7.5,1,0.1\n2,6.5,1,0.1\n3,")
    result, section, page = report_of(detector, root, losses=losses)
    assert verdict(result.metrics) in page.text
    assert section.name == "stripes"
    assert [chart.title for chart in section.charts] == [
        "Scores",
        "ROC",
        "Overlap per region",
        "Training",
    ]
    shown = {gallery.title: gallery.examples for gallery in section.galleries}
    tested = shown["Hits"] + shown["Misses"] + shown["False alarms"]  # type: ignore[operator]
    assert {example.path for example in tested} >= {"test/square/000.png", "test/square/001.png"}
    assert all(example.has_mask == (example.label == "square") for example in tested)
    unusual = shown["Most unusual training images"]
    assert len(unusual) == MOST
    scores = [example.score for example in unusual]
    assert scores == sorted(scores, reverse=True)
    assert page.count("img") == 3 * (len(tested) + MOST)
    rows = [(row.label, row.images) for row in section.defects]
    assert rows == [("square", 2), ("good", 3)]
    for words in ("random weights", "torch", "threshold is a guess at the tail", "mask rule"):
        assert words in page.text


@pytest.mark.parametrize("missing", ["good", "square", "ground_truth", "train"])
def test_parts_that_are_missing(detector: Detector, root: Path, missing: str) -> None:
    shutil.rmtree(
        next(root / part for part in (missing, f"test/{missing}") if (root / part).exists())
    )
    _, section, page = report_of(detector, root)
    titles = [chart.title for chart in section.charts]
    assert titles[0] == "Scores"
    assert ("ROC" in titles) == (missing != "square")
    assert ("Overlap per region" in titles) == (missing in ("good", "train"))
    if missing == "square":
        assert "Raises" in page.text
        assert "nothing is known about what it finds" in page.text
    if missing == "good":
        assert "nothing is known about false alarms" in page.text
    if missing == "ground_truth":
        assert "No pixel metrics: 2 defective test images have no mask" in page.text
    assert ("Most unusual training images" in page.text) == (missing != "train")


def test_names_are_text(detector: Detector, root: Path) -> None:
    (root / "test/square").rename(root / "test" / WEIRD)
    (root / "test" / WEIRD / "000.png").rename(
        os.fsdecode(os.fsencode(root / "test" / WEIRD / "x") + b"\xff.png")
    )
    (root / "test/good/000.png").write_bytes(b"")
    result, _, page = report_of(detector, root)
    assert len(result.skipped) == 1
    assert "cannot be read: 1 test image." in page.text
    assert "<script>alert(1)<&\"'é\\nb" in page.text
    assert "x\\udcff.png" in page.text


class Pretender:
    """Scores by the file's number, so that thousands of images cost nothing."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self.calls = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._detector, name)

    def stream(self, images: list[Path]) -> Any:  # noqa: ANN401
        for path in images:
            number = int(path.stem)
            self.calls += 1
            if number == 13:
                yield ImageError(f"{path}: broken")
                continue
            anomaly = np.full((40, 40), number, np.float32)
            score = float(np.exp(number / 100))
            yield Prediction(score, 0.5, number > 300, True, anomaly, (40, 40), 5.0)


def many(root: Path, count: int) -> Category:
    """A category whose images all are links to one."""
    save(root / "one.png", texture(0))
    for number in range(count):
        label = "good" if number % 2 else f"defect{number % 100}"
        path = root / "test" / label / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(root / "one.png")
    return load_category(root)


def test_a_page_does_not_grow_with_the_test_set(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haloae.evaluation.evaluate.PixelMetrics.update", lambda *_: None)
    pretender: Any = Pretender(detector)
    category = many(tmp_path / "many", 600)
    result = evaluate(pretender, category)
    assert len(result.rows) == 599
    section = write_evaluation(result, pretender, category, tmp_path / "out")
    assert [len(gallery.examples) for gallery in section.galleries] == [MOST] * 3
    page = tmp_path / "out/report.html"
    assert page_of(page).count("tr") <= MOST_ROWS + 1
    assert "And 11 kinds more" in page.read_text()
    assert page.stat().st_size < 400_000


def test_the_most_unusual_are_the_highest(detector: Detector) -> None:
    paths = [Path(f"{number}.png") for number in (5, 99, 13, 7, *range(20, 30))]
    category = Category(Path(), tuple(paths), ())
    found = most_unusual(Pretender(detector), category)  # type: ignore[arg-type]
    assert [path.stem for path in found] == ["99", "29", "28", "27", "26", "25", "24", "23"]


def test_spread() -> None:
    assert spread([]) == []
    assert spread([4, 2]) == [4, 2]
    assert spread(list(range(100))) == [0, 14, 28, 42, 57, 71, 85, 99]


BENCHMARK: dict[str, Any] = {
    "root": "/data/set",
    "package_version": "0.1.0",
    "protocol": {"resolution": 256, "crop": None},
    "backbones": ["bundled"],
    "runs": [
        {
            "variant": "fast",
            "category": "cookie",
            "seed": 0,
            "seconds": 60.0,
            "folder": "fast/cookie #1/seed-0",
            "metrics": {"image_auroc": 0.9, "detection_rate": None, "false_alarm_rate": 0.01},
        },
        {
            "variant": "fast",
            "category": WEIRD,
            "seed": 0,
            "seconds": 1.0,
            "folder": "fast/weird/seed-0",
            "error": "DataError: <b>no image</b>.",
        },
    ],
    "summary": [
        {
            "variant": "fast",
            "category": category,
            "image_auroc": {"mean": 0.9, "std": 0.02, "n": 3},
            "pixel_auroc": None,
            "pixel_aupro": None,
            "detection_rate": {"mean": 0.5, "std": 0.0, "n": 1},
            "false_alarm_rate": None,
        }
        for category in ("cookie", "mean")
    ],
    "pixel_difference": {"cookie": 0.915, "mean": 0.8},
    "paper": {"image_auroc": 0.914, "pixel_auroc": 0.912},
}


def test_benchmark_report(tmp_path: Path) -> None:
    write_benchmark_report(BENCHMARK, tmp_path / "b.html")
    page = page_of(tmp_path / "b.html")
    assert (
        "“fast” ranks images with a mean image AUROC of 0.900 on one category, against 0.800 for "
        "the plain pixel difference and 0.914 in the paper; 1 of 2 runs failed."
    ) in page.text
    assert [a["href"] for tag, a in page.tags if tag == "a"] == [
        "fast/cookie%20%231/seed-0/report.html"
    ]
    assert "<b>no image</b>" in page.text
    assert "0.900 ± 0.020" in page.text
    assert "0.915" in page.text


def test_benchmark_report_of_failures(tmp_path: Path) -> None:
    results = BENCHMARK | {"runs": BENCHMARK["runs"][1:], "summary": [], "paper": None}
    write_benchmark_report(results | {"pixel_difference": {}}, tmp_path / "b.html")
    page = page_of(tmp_path / "b.html")
    assert "No run gave a ranking of images; 1 of 1 runs failed." in page.text


def browse(page: Path, profile: Path, *options: str) -> str:
    assert CHROMIUM
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=2000", *options]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=60)
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser(detector: Detector, root: Path) -> None:
    (root / "test/square").rename(root / "test" / ("long_name_" * 20))
    (root / "ground_truth/square").rename(root / "ground_truth" / ("long_name_" * 20))
    _, section, _ = report_of(detector, root)
    pages = [root.parent / "two.html", root.parent / "benchmark.html"]
    write_report(pages[0], "Two", [section, section])
    write_benchmark_report(BENCHMARK, pages[1])
    for page, schemes in zip(pages, (("dark", "light"), ("dark",)), strict=True):
        # A window is never narrower than 500 pixels here, a frame is.
        frames = "".join(
            f'<iframe style="width:{width}px;height:900px;border:0;flex:none" '
            f'srcdoc="{html.escape(page.read_text())}"></iframe>'
            for width in WIDTHS
        )
        holder = page.with_suffix(".frames.html")
        holder.write_text(
            '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
            f'<body style="margin:0;display:flex">{frames}<script>onload = () => {{'
            "document.title = [...document.querySelectorAll('iframe')].map(f => f.contentDocument)"
            ".map(d => `${d.documentElement.scrollWidth}-"
            "${[...d.images].filter(i => !i.naturalWidth).length}`) }</script>"
        )
        dom = browse(holder, root.parent / "profile", "--dump-dom")
        assert "<title>1280-0,390-0</title>" in dom, page
        for scheme, name in enumerate(schemes):
            shot = page.with_suffix(f".{name}.png")
            browse(
                holder,
                root.parent / "profile",
                f"--screenshot={shot}",
                f"--window-size={sum(WIDTHS)},900",
                f"--blink-settings=preferredColorScheme={scheme}",
            )
            look = np.asarray(PILImage.open(shot).convert("L"))
            for part in (look[:, : WIDTHS[0]], look[:, WIDTHS[0] :]):
                assert (np.median(part) < 60) if name == "dark" else (np.median(part) > 200)
                assert part.std() > 10


def test_a_module_of_ours_that_is_missing_is_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "haloae.outputs.report.page")
    monkeypatch.setitem(sys.modules, "haloae.outputs.report.charts", None)
    with pytest.raises(ModuleNotFoundError, match="charts"):
        importlib.import_module("haloae.outputs.report.page")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match="jinja2 is not installed"):
        importlib.import_module("haloae.outputs.report.page")
