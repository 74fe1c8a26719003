"""Asks `haloae serve` all manner of things, made by schemathesis from docs/openapi.json.

    python -m benchmarks.fuzzing MODEL --out runs/fuzzing [--requests 100000] [--part 2000]

MODEL is exported and small: what is tried are the requests. They are made in parts, each with a
seed of its own and a service of its own, until there are so many; parts that lie in the folder
count. The exit code is 1 where an answer has status 500 or more, or differs from the description.
"""

import base64
import io
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, strategies
from PIL import Image
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.machine import machine
from benchmarks.openapi import SPEC
from benchmarks.script import leave, parser_of
from benchmarks.serving import serving
from benchmarks.tables import Table
from haloae.files import write_atomic
from haloae.server.tensors import HEADER_LENGTH

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
FEW = 5
"""Requests, in a part, of an operation with nothing to choose in."""
SETTINGS = "[queue]\nseconds = 60\n"
"""Nothing is refused for want of time, however busy the machine is."""
TIMEOUT = 120
"""Seconds until a request that is not answered has failed."""
FORMATS = ("png", "jpeg", "gif", "tiff", "bmp", "webp")


@dataclass
class Tally:
    """What came of requests."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    """By operation: how many answers of each status."""
    failed: list[str] = field(default_factory=list)
    """What was wrong: the operation, and how."""

    @property
    def requests(self) -> int:
        """All of them."""
        return sum(each.total() for each in self.statuses.values())


def _images() -> list[bytes]:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
    files = [io.BytesIO() for _ in FORMATS]
    for file, name in zip(files, FORMATS, strict=True):
        picture.save(file, name)
    return [file.getvalue() for file in files]


IMAGES = _images()
"""A small one in every format."""


@strategies.composite
def damaged(draw: strategies.DrawFn) -> bytes:
    """An image with some bytes replaced, or cut off."""
    data = bytearray(draw(strategies.sampled_from(IMAGES)))
    for _ in range(draw(strategies.integers(0, 4))):
        data[draw(strategies.integers(0, len(data) - 1))] = draw(strategies.integers(0, 255))
    return bytes(data[: draw(strategies.integers(0, len(data)) | strategies.just(len(data)))])


Case = schemathesis.Case[Any]


INFER = "/infer"
"""In the path of the one operation that takes tensors."""


class Leads(NamedTuple):
    """What of a request is replaced, now and then, by what nobody would hit upon."""

    model: bool
    """Its name becomes that of one which there is."""
    tensor: bool
    """What is to be inspected becomes an image, or nearly."""
    plain: bool
    """The header that tells of bytes behind the JSON is left out."""


LEADS = strategies.builds(Leads, *(strategies.sampled_from([True, True, False]),) * 3)


@strategies.composite
def tensors(draw: strategies.DrawFn) -> tuple[dict[str, Any], bytes]:
    """An image as a tensor of the Open Inference Protocol, or nearly, and as bytes behind it."""
    data = draw(damaged())
    given: list[Any]
    if draw(strategies.booleans()):
        given, binary = [base64.b64encode(data).decode()], len(data).to_bytes(4, "little") + data
        chosen: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1]}
    else:
        given, binary = [0, 128, 255], bytes([0, 128, 255])
        chosen = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3]}
    if draw(strategies.booleans()):
        chosen["data"], binary = given, b""
    else:
        chosen["parameters"] = {"binary_data_size": len(binary)}
    if draw(strategies.booleans()):
        key = draw(strategies.sampled_from(sorted(chosen)))
        chosen[key] = draw(strategies.none() | strategies.lists(strategies.integers(), max_size=5))
    return chosen, binary


NONE: strategies.SearchStrategy[tuple[Any, bytes]] = strategies.just(({}, b""))


def fuzz(model: Path, folder: Path, *, wanted: int, seed: int) -> Tally:
    """Ask about so many times, and alike whatever there is something to choose in.

    Args:
        model: that the service is of.
        folder: for what the service keeps, and its log.
        wanted: about how many.
        seed: of what is asked.
    """
    load_all_checks()
    schemathesis.openapi.media_type("application/octet-stream", damaged() | strategies.binary())
    schema = schemathesis.openapi.from_dict(json.loads(SPEC.read_text("utf-8")))
    operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr] # the description is sound
    shares = [4 if one.body else int(any(one.iter_parameters())) for one in operations]
    tally = Tally()
    settings, log = folder / "serve.toml", folder / "serve.log"
    settings.write_text(SETTINGS)
    with (
        serving(model, log, "--config", str(settings)) as (port, _),
        requests.Session() as session,
    ):
        url = f"http://127.0.0.1:{port}"
        for operation, share in zip(operations, shares, strict=True):
            # Exactly what it says, and what it says only nearly.
            either = operation.as_strategy() | operation.as_strategy(
                generation_mode=schemathesis.GenerationMode.NEGATIVE
            )

            @hypothesis.settings(
                max_examples=wanted * share // sum(shares) or FEW,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @hypothesis.seed(seed)
            @hypothesis.given(either, LEADS, tensors() if INFER in operation.path else NONE)
            def ask(case: Case, leads: Leads, tensor: tuple[Any, bytes]) -> None:
                _lead(case, leads, model.stem, tensor)
                _note(case, url, session, tally)

            ask()
        session.get(f"{url}/v2/health/live", timeout=TIMEOUT).raise_for_status()
    return tally


def _lead(case: Case, leads: Leads, model: str, tensor: tuple[Any, bytes]) -> None:
    """Replace what the leads say."""
    if leads.model and "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = model
    if leads.model and "recipe" in (case.query or {}):
        case.query["recipe"] = model
    if leads.plain:
        case.headers.pop(HEADER_LENGTH, None)
    if leads.tensor and INFER in case.operation.path:
        request: Any = {"inputs": [tensor[0]]}
        head = json.dumps(request).encode()
        if case.media_type == "application/json" and not tensor[1]:
            case.body = request
        elif case.media_type == "application/octet-stream":
            case.body = head + tensor[1]
            case.headers[HEADER_LENGTH] = str(len(head))


def _note(case: Case, url: str, session: requests.Session, tally: Tally) -> None:
    """Ask once, and note what came of it."""
    name = f"{case.operation.method.upper()} {case.operation.path}"
    try:
        found = case.call(base_url=url, session=session, timeout=TIMEOUT)
    except requests.RequestException as error:
        tally.statuses.setdefault(name, Counter())["none"] += 1
        tally.failed.append(f"{name}: {case.as_curl_command()}: {error}")
        return
    tally.statuses.setdefault(name, Counter())[str(found.status_code)] += 1
    try:
        case.validate_response(found, checks=CHECKS)
    except FailureGroup as error:
        said = "; ".join(str(each) for each in error.exceptions)
        tally.failed.append(f"{name}: {case.as_curl_command()}: {said}")


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each operation, all of them last."""
    total: dict[str, Counter[str]] = {}
    failed: Counter[str] = Counter()
    for part in (part for result in results for part in result["parts"]):
        for name, statuses in part["statuses"].items():
            total.setdefault(name, Counter()).update(statuses)
        failed.update(said.partition(":")[0] for said in part["failed"])
    rows = [[f"`{name}`", *_counted(total[name]), failed[name]] for name in sorted(total)]
    everything = sum(total.values(), Counter())
    rows.append(["**all**", *_counted(everything), failed.total()])
    columns = ["asked", "requests", "2xx", "4xx", "5xx", "otherwise than described"]
    return Table(columns, rows, {})


def _counted(statuses: Counter[str]) -> list[int]:
    of = [sum(n for status, n in statuses.items() if status[0] == first) for first in "245"]
    return [statuses.total(), *of]


def main() -> int:
    """Ask, and write results.json; the exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--part", type=int, default=2_000, help="requests of a part, about")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Any]] = []
    asked = 0
    for seed in count():
        if asked >= given.requests:
            break
        path = given.out / f"part-{seed:03}.json"
        if not path.exists():
            with tempfile.TemporaryDirectory(prefix="haloae-fuzzing-") as folder:
                tally = fuzz(given.model, Path(folder), wanted=given.part, seed=seed)
            write_atomic(path, json.dumps(vars(tally), indent=1).encode())
        parts.append(json.loads(path.read_text("utf-8")))
        asked += sum(sum(each.values()) for each in parts[-1]["statuses"].values())
        print(
            f"{asked:,} requests, {sum(len(part['failed']) for part in parts)} failed", flush=True
        )
    leave({"machine": machine(1), "parts": parts}, given.out)
    return 1 if any(part["failed"] for part in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
