"""Bytes that are no longer what was written: each number a case of its own."""

import zlib

import numpy as np

from faults.models import flipped

NUMBERS = (0, 1, 2, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


def generator(name: str, number: int) -> np.random.Generator:
    """The random numbers of one case of an attack."""
    return np.random.default_rng([zlib.crc32(name.encode()), number])


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """With bits, numbers or a part of it changed, lost, moved or put in; never as it was."""
    found = data
    while found == data:
        found = _damaged_once(data, rng)
    return found


def _damaged_once(data: bytes, rng: np.random.Generator) -> bytes:
    start, other = (int(place) for place in rng.integers(len(data), size=2))
    size = int(2 ** rng.uniform(0, 12))
    part, rest = data[start : start + size], data[start + size :]
    ways = (
        lambda: flipped(data, rng, int(rng.integers(1, 20))),
        lambda: flipped(data[:64], rng) + data[64:],
        lambda: data[:start],
        lambda: data[:start] + rest,
        lambda: data[:start] + bytes(len(part)) + rest,
        lambda: data[:start] + rng.bytes(size) + part + rest,
        lambda: data[:start] + part + part + rest,
        lambda: data[:start] + data[other : other + size] + rest,
        lambda: data[:start] + _number(rng) + data[start + 4 :],
        lambda: data[: (at := start % 64)] + _number(rng) + data[at + 4 :],
    )
    return ways[rng.integers(len(ways))]()


def _number(rng: np.random.Generator) -> bytes:
    value = NUMBERS[rng.integers(len(NUMBERS))]
    return value.to_bytes(4, "big" if rng.random() < 0.5 else "little")
