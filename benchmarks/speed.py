"""How fast it is: every preset in every way of running it, against the published forward pass.

    python -m benchmarks.speed --out runs/speed [--repeats 7] [--threads 2] [--only NAME,...]

Milliseconds an image, one at a time and in batches of 8, with random images and untrained networks,
through the calls that users make; peak memory; start-up times; the machine's own limit. Detectors
of anomalib are measured too where it is installed. `--only` takes names or patterns (``fast-*``).

Each contestant lives in a process of its own, which is stopped while another is measured: an idle
thread pool may spin. Every round measures all of them once, in an order drawn anew, so that a
machine that slows down slows all of them. The folder gets results.json, results.md and speed.svg.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.contestants import BATCH, FORMATS, SIDE, Contestant, contestants, good_images
from benchmarks.machine import machine
from benchmarks.script import parser_of
from benchmarks.speed_pages import chart, tables

SEED = 0
SLICE = 0.25
"""Seconds a contestant is measured in a round, or one call."""
LEAST_ROUNDS = 5
SLOW = 1.0
"""Seconds a call takes for those that are measured in the least rounds, without a warm-up each."""
START_UPS = 3
COMMAND = "import sys; from haloae.cli import main; sys.exit(main())"
STARTED = "fast"


class Child:
    """A contestant's process."""

    def __init__(self, contestant: Contestant, folder: Path, threads: int) -> None:
        self.contestant = contestant
        self.log = (folder / "log.txt").open("a")
        self.process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "benchmarks.contestants", "serve", str(folder),
             contestant.name, "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=environment(threads),
        )  # fmt: skip
        self.loaded = self._answer()
        self._pause()

    def ask(self, **request: object) -> dict[str, Any]:
        """Wake it, ask, stop it again."""
        assert self.process.stdin  # noqa: S101 - it is a pipe
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": f"ended with exit code {self.process.wait()}"}
        answer = self._answer()
        self._pause()
        return answer

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout  # noqa: S101 - it is a pipe
        line = self.process.stdout.readline()
        if not line:
            return {"error": f"ended with exit code {self.process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _pause(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)


def environment(threads: int) -> dict[str, str]:
    """Of child processes: as many threads everywhere, and no downloads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


def bar(items: Iterable[Any], title: str) -> Iterable[Any]:
    """Progress on a terminal."""
    shown: Iterable[Any] = tqdm(items, title, disable=not sys.stderr.isatty(), leave=False)
    return shown


def make_models(chosen: Sequence[Contestant], folder: Path, threads: int) -> dict[str, str]:
    """Detectors and exports of the contestants; why those that failed did, by file."""
    wanted: dict[str, set[str]] = {}
    for contestant in chosen:
        if contestant.model:
            wanted.setdefault(contestant.model, set()).add(contestant.file)
    wanted.setdefault(STARTED, set()).update(STARTED + end for end in (".onnx", ".xml"))
    good_images(folder)
    failed: dict[str, str] = {}
    for model, files in bar(wanted.items(), "making"):
        for end in (".safetensors", *FORMATS, "-int8.bin", ".bin"):
            (folder / f"{model}{end}").unlink(missing_ok=True)
        with (folder / "log.txt").open("a") as log:
            done = subprocess.run(  # noqa: S603 - ourselves
                [sys.executable, "-m", "benchmarks.contestants", "make", str(folder), model,
                 *sorted(files), "--threads", str(threads)],
                stdout=subprocess.PIPE, stderr=log, text=True, env=environment(threads),
            )  # fmt: skip
        if done.returncode:
            failed |= dict.fromkeys(files, f"making it ended with exit code {done.returncode}")
        else:
            failed |= json.loads(done.stdout.splitlines()[-1])
    return failed


def start(
    chosen: Sequence[Contestant],
    folder: Path,
    threads: int,
    *,
    failed: dict[str, str],
    children: list[Child],
) -> dict[str, dict[str, Any]]:
    """Start and warm up every contestant, one after another.

    Args:
        chosen: the contestants.
        folder: of the models.
        threads: of each.
        failed: why a file could not be made.
        children: gets those that run.

    Returns:
        For each name its peak memory and seconds a call, by batch, or an error.
    """
    results: dict[str, dict[str, Any]] = {}
    for contestant in bar(chosen, "loading"):
        found: dict[str, Any] = {"peak_mb": {}, "estimate": {}, "ms": {}, "errors": {}}
        results[contestant.name] = found
        if contestant.file in failed:
            found["error"] = failed[contestant.file]
            continue
        child = Child(contestant, folder, threads)
        children.append(child)
        error = child.loaded.get("error")
        for batch in contestant.batches:
            if error:
                break
            answer = child.ask(batch=batch, seconds=0.0, warm=False)
            if "error" not in answer and answer["ms"][0] < 1000 * SLOW:
                answer = child.ask(batch=batch, seconds=0.0, warm=True)
            if "error" in answer:
                found["errors"][batch] = answer["error"]
                continue
            found["peak_mb"][batch] = answer["peak_mb"]
            found["estimate"][batch] = answer["ms"][0] / 1000
        if error or not found["estimate"]:
            found["error"] = error or next(iter(found["errors"].values()))
            children.remove(child)
            child.close()
    return results


def measure(children: Sequence[Child], results: dict[str, dict[str, Any]], repeats: int) -> None:
    """All rounds; adds each contestant's milliseconds a call, by batch."""
    order = random.Random(SEED)  # noqa: S311 - an order is no secret
    for number in range(repeats):
        turns = []
        for child in children:
            for batch, seconds in results[child.contestant.name]["estimate"].items():
                if number < LEAST_ROUNDS or seconds < SLOW:
                    turns.append((child, batch, seconds < SLOW))
        order.shuffle(turns)
        for child, batch, is_quick in bar(turns, f"round {number + 1} of {repeats}"):
            found = results[child.contestant.name]
            answer = child.ask(batch=batch, seconds=SLICE, warm=is_quick)
            if "error" in answer:
                found["errors"][batch] = answer["error"]
                continue
            found["ms"].setdefault(batch, []).append(answer["ms"])
    for child in children:
        found = results[child.contestant.name]
        is_torch = child.contestant.kind in ("published", "native", "peer")
        count = child.ask(count=1).get("multiply_adds") if is_torch else None
        if child.contestant.kind == "product":
            count = SIDE**3
        found["multiply_adds"] = count


def summary(contestant: Contestant, found: dict[str, Any]) -> dict[str, Any]:
    """A contestant's results as they are written: milliseconds are those of one image."""
    times = {}
    for batch in contestant.batches:
        rounds = found["ms"].get(batch, [])
        if not rounds:
            continue
        values = sorted(ms / batch for calls in rounds for ms in calls)
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        times[str(batch)] = {
            "median": middle, "min": values[0], "quartiles": [low, high],
            "rounds": len(rounds), "calls": len(values),
            "peak_mb": found["peak_mb"][batch],
        }  # fmt: skip
    return {
        "name": contestant.name, "group": contestant.group, "title": contestant.title,
        "size": contestant.size, "precision": contestant.precision, "kind": contestant.kind,
        "multiply_adds": found.get("multiply_adds"), "ms": times,
        "error": found.get("error") or next(iter(found["errors"].values()), None),
    }  # fmt: skip


def start_ups(folder: Path, threads: int) -> dict[str, Any]:
    """Seconds until a process is done that does one thing, median and all."""
    image = str(good_images(folder)[0])
    commands = {
        "python": ["-c", "pass"],
        "import haloae": ["-c", "import haloae"],
        "haloae --help": ["-c", COMMAND, "--help"],
    }
    for title, end in (
        ("PyTorch", ".safetensors"),
        ("ONNX Runtime", ".onnx"),
        ("OpenVINO", ".xml"),
    ):
        commands[f"haloae predict, one image, {STARTED}, {title}"] = [
            "-c", COMMAND, "predict", str(folder / f"{STARTED}{end}"), image, "--quiet",
            "--device", "cpu",
        ]  # fmt: skip
    found: dict[str, Any] = {title: {"seconds": []} for title in commands}
    for _ in bar(range(START_UPS), "start-up"):
        for title, command in commands.items():
            with tempfile.TemporaryDirectory() as out:
                into = ["--out", str(Path(out) / "found")] if "predict" in command else []
                begin = time.perf_counter()
                done = subprocess.run(  # noqa: S603 - ourselves
                    [sys.executable, *command, *into],
                    capture_output=True, text=True, env=environment(threads),
                )  # fmt: skip
            found[title]["seconds"].append(time.perf_counter() - begin)
            if done.returncode:
                found[title]["error"] = done.stderr.strip().splitlines()[-1]
    for result in found.values():
        result["median"] = statistics.median(result["seconds"])
    return found


def choose(patterns: str | None, batches: str) -> list[Contestant]:
    """The contestants whose names fit one of the patterns, with these batches.

    Args:
        patterns: separated by commas; None takes all.
        batches: sizes, separated by commas.
    """
    sizes = {int(size) for size in batches.split(",")}
    found = [
        replace(each, batches=tuple(size for size in each.batches if size in sizes))
        for each in contestants()
    ]
    if patterns:
        wanted = patterns.split(",")
        found = [each for each in found if any(fnmatch(each.name, want) for want in wanted)]
    return [each for each in found if each.batches]


def main() -> None:
    """Measure and write."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7, help=f"rounds, at least {LEAST_ROUNDS}")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", metavar="NAME,...", help="names or patterns")
    parser.add_argument("--batches", default=f"1,{BATCH}", help=f"1, {BATCH} or both (default)")
    arguments = parser.parse_args()
    chosen = choose(arguments.only, arguments.batches)
    if not chosen:
        names = " ".join(each.name for each in contestants())
        parser.error(f"--only fits none of: {names}")
    begin = time.perf_counter()
    models = arguments.out / "models"
    models.mkdir(parents=True, exist_ok=True)
    (models / "log.txt").unlink(missing_ok=True)
    children: list[Child] = []
    try:
        failed = make_models(chosen, models, arguments.threads)
        results = start(chosen, models, arguments.threads, failed=failed, children=children)
        measure(children, results, max(arguments.repeats, LEAST_ROUNDS))
    finally:
        for child in children:
            child.close()
    written: dict[str, Any] = {
        "machine": machine(arguments.threads),
        "contestants": [summary(each, results[each.name]) for each in chosen],
        "start_up": start_ups(models, arguments.threads),
    }
    written["minutes"] = (time.perf_counter() - begin) / 60
    write(arguments.out, written)
    print((arguments.out / "results.md").read_text())


def write(out: Path, results: dict[str, Any]) -> None:
    """Write the folder's files."""
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "results.md").write_text(tables(results))
    (out / "speed.svg").write_text(chart(results))


if __name__ == "__main__":
    main()
