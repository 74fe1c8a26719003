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
if sys.argv[1] == "kept":
    keep_freed_memory()
np.ones(50_000_000, np.float32)
held = [line for line in open("/proc/self/status") if line.startswith("VmRSS")][0].split()[1]
print(int(held))
"""


def held(how: str) -> int:
    """kB in memory after an array of 200 MB was freed."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="it is of glibc")
def test_what_is_freed_is_kept() -> None:
    assert held("kept") - held("returned") > 150_000


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
