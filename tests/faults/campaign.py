"""Runs numbered attacks and keeps count: a few in this process, or all in one that may die."""

import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NamedTuple

HANG = 120.0
"""Seconds by the clock after which a case hangs; no limit of the package's own is higher."""
ROOM = 8 * 2**30
"""Bytes of memory that a process of attacks may take."""
SHOWN = 200
Run = Callable[[int], str]
"""Does a case by its number, and says in a word how it ended; raises whatever it should not."""


class Attack(NamedTuple):
    """One way to attack; the same number is the same case for ever."""

    row: str
    """Of the table in docs/faults.md."""
    count: int
    """Cases of the whole campaign."""
    sample: int
    """Cases of the default run."""
    make: Callable[[Path], Run]
    """From a folder of sound files, which cases may be written beside."""


@dataclass
class Tally:
    """What came of some cases."""

    tried: int = 0
    failed: list[str] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    """How many ended in which way."""
    seconds: float | None = None
    """Of the slowest case, by the clock."""
    mb: float | None = None
    """Most memory of a process, in MB."""

    def add(self, number: int, ended: "Ended") -> None:
        """Count a case."""
        self.tried += 1
        word = "failed" if ended.is_failure else ended.word
        self.ended[word] = self.ended.get(word, 0) + 1
        self.seconds = max(self.seconds or 0.0, ended.seconds)
        if ended.is_failure:
            self.failed.append(f"{number}: {ended.word}")


Record = Callable[[str, Tally], None]
"""Keeps what came of an attack, under the row that it counts in."""


class Ended(NamedTuple):
    """How a case ended."""

    word: str
    seconds: float
    is_failure: bool = False


def spread(count: int, most: int) -> range:
    """At most so many numbers of a campaign, from all parts of it."""
    return range(0, count, -(-count // most)) if most else range(0)


def attack_here(attack: Attack, ground: Path, numbers: Iterable[int]) -> Tally:
    """Do cases in this process."""
    tally = Tally()
    run = attack.make(ground)
    for number in numbers:
        tally.add(number, _ended(run, number))
    return tally


def attack_apart(
    attack: Attack, ground: Path, numbers: Iterable[int], processes: ForkServerContext
) -> Tally:
    """Do cases in a process that may crash, hang or fill its memory, and is then replaced."""
    tally = Tally()
    left = list(numbers)
    while left:
        ours, theirs = processes.Pipe()
        process = processes.Process(target=_work, args=(attack, ground, left, theirs))
        process.start()
        theirs.close()
        ours.recv()  # where nothing is to be had, nothing can be attacked
        try:
            while left:
                if not ours.poll(HANG):
                    raise TimeoutError
                tally.add(left[0], ours.recv())
                left.pop(0)
            tally.mb = max(tally.mb or 0.0, ours.recv())
        except EOFError:
            tally.add(left.pop(0), Ended("the process died", 0, is_failure=True))
        except TimeoutError:
            process.kill()
            tally.add(left.pop(0), Ended("hung", HANG, is_failure=True))
        process.join()
    return tally


def _work(attack: Attack, ground: Path, numbers: list[int], pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    run = attack.make(ground)
    pipe.send("ready")
    for number in numbers:
        pipe.send(_ended(run, number))
    sizes = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    pipe.send(max(size.ru_maxrss for size in sizes) / 1024)


def _ended(run: Run, number: int) -> Ended:
    start = time.monotonic()
    try:
        word, is_failure = run(number), False
    except Exception as error:  # which is what is looked for
        word, is_failure = f"{type(error).__name__}: {error}"[:SHOWN], True
    return Ended(word, time.monotonic() - start, is_failure)
