"""What is asked of the machine, and set once a process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from haloae.machine import has_bfloat16

CODE = """
import sys

import numpy as np

from haloae.machine import keep_freed_memory
how, count, size = sys.argv[1], *map(int, sys.argv[2:])
if how != "returned":
    keep_freed_memory(large=how == "kept")
arrays = [np.ones(size, np.uint8) for _ in range(count)]
del arrays
held = [line for line in open("/proc/self/status") if line.startswith("VmRSS")][0].split()[1]
print(int(held))
"""


def held(how: str, count: int = 1) -> int:
    """kB in memory after so many arrays, 200 MB together, were freed."""
    command = [sys.executable, "-c", CODE, how, str(count), str(200_000_000 // count)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="it is of glibc")
def test_what_is_freed_is_kept() -> None:
    returned = held("returned")
    assert held("kept") - returned > 150_000
    assert held("small kept") - returned < 50_000, "what is large is given back"
    assert held("small kept", count=20) - returned > 150_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bfloat16_is_what_the_processor_says() -> None:
    says = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert has_bfloat16(torch.device("cpu")) == bool(says & {"avx512_bf16", "amx_bf16", "bf16"})


@pytest.mark.parametrize(
    ("capable", "has_it"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "avx_ne_convert": True}, False),
        ({"avx512_bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
    ],
)
def test_bfloat16_of_other_processors(
    capable: dict[str, bool], has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capable)
    assert has_bfloat16(torch.device("cpu")) == has_it
