"""Writes docs/openapi.json: what `haloae serve` answers to, for programs.

uv run python -m benchmarks.openapi
"""

import json
import tempfile
from pathlib import Path

from haloae.files import write_atomic
from haloae.server.app import create_app

SPEC = Path(__file__).parent.parent / "docs" / "openapi.json"


def spec() -> str:
    """The service's own description of itself."""
    with tempfile.TemporaryDirectory() as models:
        return json.dumps(create_app(Path(models)).openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_atomic(SPEC, spec().encode())
