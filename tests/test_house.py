"""Arrows point one way: what a room may know of, read from the imports that are there."""

import ast
from pathlib import Path

import haloae

ROOT = Path(haloae.__file__).parent
ROOMS = (
    *("_version", "errors", "files", "claims", "machine", "settings", "config", "presets"),
    *("data", "demo_set", "network", "training", "detection", "deploy.checks", "deploy.engines"),
    *("deploy.runtime", "detector", "deploy", "evaluation"),
    *("outputs", "slides", "experiments", "server", "cli"),
)
"""From what knows nothing of the others to what knows them all."""


def room_of(module: str) -> int:
    """Which room a module of the package is in; the most precise name counts."""
    fitting = [room for room in ROOMS if f"{module}.".startswith(f"haloae.{room}.")]
    return ROOMS.index(max(fitting, key=len))


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("haloae.")}


def test_no_room_knows_of_a_later_one() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(["haloae", *path.relative_to(ROOT).with_suffix("").parts])
        module = module.removesuffix(".__init__")
        if module in ("haloae", "haloae.__main__"):
            continue
        wrong += [
            f"{module} imports {name}" for name in imports(path) if room_of(name) > room_of(module)
        ]
    assert wrong == []


def test_the_network_knows_of_no_files_folders_or_frameworks() -> None:
    known = {"haloae.config", "haloae.errors", "haloae.network", "haloae.machine"}
    for path in sorted((ROOT / "network").rglob("*.py")):
        assert {".".join(name.split(".")[:2]) for name in imports(path)} <= known, path.name
