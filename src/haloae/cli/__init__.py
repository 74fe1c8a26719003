"""The command line: a command is a typed function that calls one function and says how it went."""

from haloae.cli.front import main

__all__ = ["main"]
