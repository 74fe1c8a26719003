"""Runs tests in forked processes, in a copy of the repository, and learns what each of them runs.

A fork has the large packages imported already, so that a few tests take a moment.
"""

import gc
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tables import ROOT

COPIED = ("src", "tests", "benchmarks", "pretrain", "docs", "pyproject.toml", "README.md")
PRELOADED = (
    *("numpy", "scipy.special", "PIL.Image", "pydantic", "typer", "tqdm", "jinja2", "pytest"),
    *("torch", "torchvision.models", "safetensors.numpy", "sklearn.metrics", "simplejpeg"),
    *("imagecodecs", "onnx", "onnxscript", "onnxruntime", "openvino"),
)
PATIENCE = 4
"""How much longer by the clock than in processor time, for each process that wants a core."""
SHARED = " | "
"""Between where a fixture of several tests is and its name."""
COLLECTED = 0.3
"""Seconds that a file of tests takes before its first one."""
BROKEN = 70
"""Exit code of a fork in which pytest itself could not be run."""


class Copy:
    """A copy of the repository.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = int(time.time()) - 10**6
        for name in COPIED:
            if (ROOT / name).is_dir():
                without = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, root / name, ignore=without)
            else:
                shutil.copy(ROOT / name, root)
        for name in PRELOADED:
            with suppress(ImportError):
                import_module(name)
        gc.freeze()  # collecting would write to the memory that forks share

    def write(self, file: str, text: str) -> None:
        """Put a text into a module; each has a time of its own, by which Python knows it."""
        self.clock += 1
        path = self.root / file
        path.write_text(text, "utf-8")
        os.utime(path, (self.clock, self.clock))

    def run(self, tests: Sequence[str], plugin: object, seconds: int) -> int | None:
        """Exit code of pytest, negative where a signal ended it; None: it took too long.

        Args:
            tests: and options.
            plugin: of pytest.
            seconds: of processor time that it may take.
        """
        sys.stdout.flush()
        child = os.fork()
        if not child:
            code = BROKEN
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
                code = self._run_here(tests, plugin)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        end = time.monotonic() + PATIENCE * crowd * seconds
        status = None
        while status is None and time.monotonic() < end:
            done, told = os.waitpid(child, os.WNOHANG)
            status = told if done else None
            time.sleep(0.02)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # and what it has started
        if status is None:
            os.waitpid(child, 0)
            return None
        code = os.waitstatus_to_exitcode(status)
        return None if code in (-signal.SIGXCPU, -signal.SIGKILL) else code

    def _run_here(self, tests: Sequence[str], plugin: object) -> int:
        os.setpgid(0, 0)
        os.chdir(self.root)
        said = os.open(self.root / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(said, number)
        for name in list(sys.modules):
            if name.partition(".")[0] in ("benchmarks", "haloae"):
                del sys.modules[name]  # they are the copy's from here on
        others = [each for each in sys.path if not each.startswith(str(ROOT / "src"))]
        ours = [str(self.root / "src"), str(self.root)]
        sys.path[:] = [*ours, *others]
        os.environ["PYTHONPATH"] = os.pathsep.join(ours)
        return int(pytest.main(["-n0", "-p", "no:cacheprovider", *tests], plugins=[plugin]))


class Watch:
    """Which tests run which lines, and how long each takes: a plugin of pytest.

    What a fixture of several tests runs, and how long that takes, is told of all that use it; of
    tests that are skipped or fail, nothing.

    Args:
        root: of the copy.
        packages: of haloae, whose lines are looked at.
        out: file to write it to.
    """

    def __init__(self, root: Path, packages: Sequence[str], out: Path) -> None:
        from coverage import Coverage

        self.root, self.out = root, out
        inside = [str(root / "src" / "haloae" / name / "*") for name in packages]
        self.coverage: Any = Coverage(data_file=None, include=inside, config_file=False)
        self.seconds: dict[str, float] = {}
        self.shared: dict[str, float] = {}
        """Seconds of fixtures of several tests."""
        self.users: dict[str, list[str]] = {}
        self.useless: set[str] = set()
        self.now = ""

    def pytest_sessionstart(self) -> None:
        """Look at all that is run from here on."""
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self.now = nodeid
        self.seconds[nodeid] = -time.process_time()
        self.coverage.switch_context(nodeid)

    def pytest_runtest_setup(self, item: Any) -> None:  # noqa: ANN401 - pytest's
        """Which fixtures it uses."""
        for name in getattr(item, "fixturenames", ()):
            self.users.setdefault(name, []).append(item.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:  # noqa: ANN401
        """One of them is made, for this test or for others too."""
        shared = f"{fixturedef.baseid}{SHARED}{fixturedef.argname}"
        is_shared = fixturedef.scope != "function"
        self.coverage.switch_context(shared if is_shared else self.now)
        start = time.process_time()
        made = yield
        if is_shared:
            self.shared[shared] = time.process_time() - start
            self.seconds[self.now] -= self.shared[shared]
        return made

    def pytest_runtest_call(self) -> None:
        """All of them are made."""
        self.coverage.switch_context(self.now)

    def pytest_runtest_logreport(self, report: Any) -> None:  # noqa: ANN401
        """A part of it has ended."""
        if not report.passed:
            self.useless.add(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """It has ended."""
        self.seconds[nodeid] += time.process_time()

    def pytest_sessionfinish(self) -> None:
        """Write it down."""
        self.coverage.stop()
        data = self.coverage.get_data()
        lines: dict[str, dict[int, list[str]]] = {}
        for file in data.measured_files():
            name = str(Path(file).relative_to(self.root))
            by_line = data.contexts_by_lineno(file).items()
            lines[name] = {line: sorted(self._tests(contexts)) for line, contexts in by_line}
        uses = {shared: sorted(self._tests([shared])) for shared in self.shared}
        told = {"seconds": self.seconds, "shared": self.shared, "uses": uses, "lines": lines}
        self.out.write_text(json.dumps(told, indent=1), "utf-8")

    def _tests(self, contexts: Iterable[str]) -> set[str]:
        found = set()
        for context in contexts:
            base, is_fixture, name = context.partition(SHARED)
            if is_fixture:
                found |= {test for test in self.users.get(name, ()) if test.startswith(base)}
            elif context:
                found.add(context)
        return found - self.useless


class First:
    """Keeps which test failed first, for the process that waits: a plugin of pytest."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def pytest_runtest_logreport(self, report: Any) -> None:  # noqa: ANN401
        """A part of a test has ended."""
        if report.failed:
            self.out.write_text(report.nodeid, "utf-8")


class Known:
    """What `Watch` has told.

    Args:
        told: what it wrote.
    """

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.seconds: dict[str, float] = told["seconds"]
        self.shared: dict[str, float] = told["shared"]
        self.uses: dict[str, set[str]] = {}
        for shared, tests in told["uses"].items():
            for test in tests:
                self.uses.setdefault(test, set()).add(shared)
        self.lines = {
            file: {int(line): set(tests) for line, tests in lines.items()}
            for file, lines in told["lines"].items()
        }

    def between(self, file: str, first: int, last: int) -> set[str]:
        """Tests that run any of the lines."""
        lines = self.lines.get(file, {}).items()
        return set().union(*(tests for line, tests in lines if first <= line <= last))

    def affordable(self, tests: Iterable[str], seconds: float) -> tuple[list[str], float]:
        """The first of the tests, as long as they take so many seconds, and how many they take."""
        kept: list[str] = []
        spent, made = 0.0, set[str]()
        for test in tests:
            new = self.uses.get(test, set()) | {test.partition("::")[0]}
            new -= made
            cost = self.seconds[test] + sum(self.shared.get(each, COLLECTED) for each in new)
            if spent + cost <= seconds:
                kept.append(test)
                spent += cost
                made |= new
        return kept, spent
