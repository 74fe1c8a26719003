"""Disks that fill up."""

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from unittest.mock import patch


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a disk that is full.

    Python would keep the first bytes of each module's code that it imports meanwhile, and trip over
    them ever after: it keeps none.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        patch.object(sys, "dont_write_bytecode", True),
        patch.dict(os.environ, PYTHONDONTWRITEBYTECODE="1"),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
