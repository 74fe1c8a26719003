"""What is asked of the machine, and set once a process for all that it computes."""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from haloae.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters of glibc's `mallopt`."""
NEVER = 2**31 - 1
LARGE, KEPT = 2**25, 2**28
"""Bytes from which on a tensor is large, the most that glibc takes, and of what others leave."""
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Instructions that multiply it, as torch names them: of x86, of its matrix unit, of ARM."""


def keep_freed_memory(*, large: bool = True) -> None:
    """Have the C library keep what is freed, for what is allocated next.

    Each batch allocates its activations anew. glibc gives freed tensors of over 32 MB back to the
    system, which clears every page before it lends it again: a sixth of the time of `default` in
    eights, a third of that of `paper`. Without glibc, nothing is done.

    Args:
        large: False: tensors of over 32 MB are given back, for who has to bound memory; left to
            itself, glibc gives back smaller ones too, a third of the time of a slide.
    """
    if sys.platform != "linux":
        return
    with suppress(AttributeError):
        library = ctypes.CDLL(None)
        if large:
            library.mallopt(M_MMAP_MAX, 0)
        else:
            library.mallopt(M_MMAP_THRESHOLD, LARGE)
        library.mallopt(M_TRIM_THRESHOLD, NEVER if large else KEPT)


def has_bfloat16(device: "torch.device") -> bool:
    """Whether the device multiplies bfloat16 itself.

    Others convert each number back and forth: convolutions of a desktop's processor then take four
    to seven times as long as in float32.
    """
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if hasattr(torch.cpu, "get_capabilities"):
        capable = torch.cpu.get_capabilities()
        return any(capable.get(name) for name in BFLOAT16)
    return bool(torch.cpu._is_avx512_bf16_supported())  # all that an older torch tells


def resolve_device(device: str) -> "torch.device":
    """Device of a name: ``auto`` is CUDA where there is one.

    Raises:
        ConfigError: CUDA is asked for and there is none, or no such device.
        MissingExtraError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "train", error) from error

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"no device is called {device!r}: choose auto, cpu or cuda.")
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError("no CUDA device was found: use --device cpu or auto.")
    return torch.device("cuda" if has_cuda and device != "cpu" else "cpu")


def resident_bytes() -> int:
    """Memory that this process has; 0 where the system does not tell."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0
