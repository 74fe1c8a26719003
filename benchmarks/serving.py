"""What a request to `haloae serve` costs beside `Detector.predict` on the same bytes.

    python -m benchmarks.serving MODEL IMAGE --out runs/serving [--clients 32] [--minutes 10]

MODEL is exported, IMAGE a JPEG. The service, one process, answers clients of another that ask for
nothing but `POST /v1/predict`, each as soon as its last answer is there. Processor time is that of
the whole service, HTTP and all; `Detector.predict` is measured before and after, in processes of
its own, on one thread. Decoding is in both.
"""

import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import machine
from benchmarks.script import leave, parser_of
from benchmarks.tables import Table
from haloae.server.settings import cores

ROUNDS, EACH = 5, 60
"""Rounds of `Detector.predict`, and images in each."""
WARM_SECONDS = 10.0
LOOK_SECONDS = 2.0
"""Between two looks at the service's memory."""
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


class Asked(NamedTuple):
    """What clients saw."""

    seconds: list[float]
    """Of each answer, in ascending order."""
    statuses: dict[str, int]


def predict_cpu(model: Path, image: Path) -> float:
    """Processor seconds of `Detector.predict` on the bytes of an image: median of rounds."""
    detector_code = (
        "import sys; from pathlib import Path; from benchmarks.serving import rounds; "
        "print(rounds(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-c", detector_code, str(model), str(image)],
        capture_output=True, text=True, check=True, env=ONE_THREAD,
    )  # fmt: skip
    return float(done.stdout)


def rounds(model: Path, image: Path) -> float:
    """`predict_cpu`, in this process."""
    from haloae import load

    detector, data, found = load(model, threads=1), image.read_bytes(), []
    for number in range(ROUNDS + 1):
        start = time.process_time()
        for _ in range(EACH):
            detector.predict(data)
        if number:  # the first warms up
            found.append((time.process_time() - start) / EACH)
    return statistics.median(found)


def ask(port: int, image: Path, clients: int, seconds: float) -> Asked:
    """Have clients ask, each one thread and one connection, for so many seconds."""
    data, until = image.read_bytes(), time.monotonic() + seconds
    taken: list[float] = []
    statuses: Counter[str] = Counter()

    def one() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while (start := time.monotonic()) < until:
            connection.request("POST", "/v1/predict", data)
            answer = connection.getresponse()
            answer.read()
            taken.append(time.monotonic() - start)
            statuses[str(answer.status)] += 1
        connection.close()

    threads = [threading.Thread(target=one) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Asked(sorted(taken), dict(statuses))


def ask_apart(port: int, image: Path, clients: int, seconds: float) -> Asked:
    """`ask`, in a process whose processor time is not counted."""
    code = (
        "import json, sys; from pathlib import Path; from benchmarks.serving import ask; "
        "port, image, clients, seconds = sys.argv[1:]; "
        "print(json.dumps(ask(int(port), Path(image), int(clients), float(seconds))))"
    )
    arguments = (port, image, clients, seconds)
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return Asked(*json.loads(done.stdout))


@contextmanager
def serving(model: Path, log: Path, *options: str) -> Iterator[tuple[int, int]]:
    """The service of a model in a process of its own: its port and process."""
    with log.open("w") as written:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "haloae", "serve", str(model), "--port", "0",
             "--data", str(log.parent / "data"), *options],
            stdout=subprocess.PIPE, stderr=written, text=True, env=ONE_THREAD,
        )  # fmt: skip
    try:
        assert process.stdout is not None  # noqa: S101 - a pipe, as asked for
        url = process.stdout.readline().split()[-1]
        yield int(url.rstrip("/").rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def cpu_seconds(process: int) -> float:
    """Processor time of a process, so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mb(process: int) -> float:
    """Memory of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE / 1e6


def measure(model: Path, image: Path, out: Path, *, clients: int, minutes: float) -> dict[str, Any]:
    """Load the service, and say what a request took."""
    before = predict_cpu(model, image)
    memory: list[float] = []
    is_over = threading.Event()
    with serving(model, out / "serve.log") as (port, process):
        ask_apart(port, image, clients, WARM_SECONDS)

        def look() -> None:
            while not is_over.wait(LOOK_SECONDS):
                memory.append(resident_mb(process))

        looking = threading.Thread(target=look)
        looking.start()
        start = cpu_seconds(process)
        asked = ask_apart(port, image, clients, 60 * minutes)
        used = cpu_seconds(process) - start
        is_over.set()
        looking.join()
    after = predict_cpu(model, image)
    count = len(asked.seconds)
    tenth = max(1, len(memory) // 10)
    return {
        "clients": clients,
        "minutes": minutes,
        "requests": count,
        "statuses": asked.statuses,
        "cpu_ms": 1e3 * used / count,
        "predict_cpu_ms": [1e3 * before, 1e3 * after],
        "ratio": used / count / statistics.mean((before, after)),
        "p50_ms": 1e3 * asked.seconds[count // 2],
        "p99_ms": 1e3 * asked.seconds[count * 99 // 100],
        "memory_mb": [statistics.median(memory[:tenth]), statistics.median(memory[-tenth:])],
    }


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each run."""
    rows = []
    for result in results:
        found = result["load"]
        rows.append([
            f"`{result['preset']}`, {result['engine']}", found["clients"], found["requests"],
            found["cpu_ms"], statistics.mean(found["predict_cpu_ms"]), found["ratio"],
            round(found["p50_ms"]), round(found["p99_ms"]),
            " → ".join(f"{mb:.0f}" for mb in found["memory_mb"]),
        ])  # fmt: skip
    columns = [
        "model", "clients", "requests", "service, CPU ms a request", "`Detector.predict`, CPU ms",
        "ratio", "p50, ms", "p99, ms", "memory, MB",
    ]  # fmt: skip
    return Table(columns, rows, {columns[3]: 1, columns[4]: 1, "ratio": 2})


def main() -> None:
    """Measure, and write results.json."""
    parser = parser_of(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10)
    given = parser.parse_args()
    from haloae import load

    given.out.mkdir(parents=True, exist_ok=True)
    detector = load(given.model, threads=1)
    results = {
        "preset": detector.config.preset,
        "engine": detector.engine,
        "image": given.image.name,
        "machine": machine(cores()),
        "load": measure(
            given.model, given.image, given.out, clients=given.clients, minutes=given.minutes
        ),
    }
    leave(results, given.out)
    print(json.dumps(results["load"]))


if __name__ == "__main__":
    main()
