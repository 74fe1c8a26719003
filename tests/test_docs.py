"""The pages lead to what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SYMBOLS = re.compile(r"`([\w/]+\.py)(?:: ([\w., ]+))?`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]|[²³]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_resolve(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        known = anchors(target) if target.suffix == ".md" and target.is_file() else set()
        if not target.exists() or (anchor and anchor not in known):
            broken.append(link)
    assert broken == []


def test_pages_for_users_import_public_names_alone() -> None:
    deep = re.compile(r"(?:from|import) haloae\.\w+")
    pages = [page for page in PAGES if page.name != "CONTRIBUTING.md"]
    found = {page.name: deep.findall(page.read_text("utf-8")) for page in pages}
    assert {name: imports for name, imports in found.items() if imports} == {}


def test_paper_map_names_what_is_there() -> None:
    page = (ROOT / "docs" / "paper-map.md").read_text("utf-8")
    places = [place for place in SYMBOLS.findall(page) if not place[0].startswith("tests/")]
    assert places
    for path, symbols in places:
        source = (ROOT / "src" / "haloae" / path).read_text("utf-8")
        for symbol in re.findall(r"\w+", symbols):
            assert re.search(rf"\b{symbol}\b", source), f"{path} has no {symbol}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tests_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", page.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []
