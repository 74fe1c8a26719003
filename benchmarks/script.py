"""What programs begin and end with: options under their own text, and a results.json."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haloae.files import write_atomic

RESULTS = "results.json"


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """Of a program whose help is its module's text as it stands."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def leave(results: Mapping[str, Any], folder: Path) -> Path:
    """Write what was measured to a folder; says where."""
    text = json.dumps(results, indent=1, ensure_ascii=False)
    write_atomic(folder / RESULTS, f"{text}\n".encode())
    return folder / RESULTS


def left(folder: Path) -> dict[str, Any]:
    """What `leave` wrote there."""
    found: dict[str, Any] = json.loads((folder / RESULTS).read_text("utf-8"))
    return found
