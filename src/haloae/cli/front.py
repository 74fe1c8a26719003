"""The front door: runs one command, turns errors into a sentence and an exit code.

Exit codes: 0 done, 1 done but something was skipped or unusable, 2 bad usage or input, 130
interrupted. Results go to stdout, the rest to stderr. Heavy packages are imported where they are
used, so that `--help` needs none.
"""

import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from haloae._version import __version__
from haloae.cli.experiments import benchmark, demo
from haloae.cli.fitting import calibrate, train
from haloae.cli.serving import serve
from haloae.cli.shared import BAD_INPUT, DONE, INTERRUPTED, shown
from haloae.cli.using import evaluate, export, info, predict, slide
from haloae.errors import EXTRAS, HaloaeError, MissingExtraError
from haloae.files import FULL

DEBUG = "HALOAE_DEBUG"


class _Front(TyperGroup):
    """Without a default of its own, `--help` of a command would have pydantic check this one's."""

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401 - its type is not typer's to give
        found = super().get_help_option(ctx)
        if found is not None:
            found.default = False
        return found


app = typer.Typer(
    cls=_Front,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)
for command in (
    demo, train, calibrate, predict, slide, export, evaluate, benchmark, info, serve,
):  # fmt: skip
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _set_up_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that lacks a character shows its code, rather than stopping us.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        front = get_command(app)
        with front.make_context("haloae", given) as context:
            code: int = front.invoke(context)
        print(end="", flush=True)
        return code
    except typer.Exit as stop:
        return stop.exit_code
    except typer.TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "haloae")
        said = error.format_message()
        end = "" if said.endswith((".", "?")) else "."
        return _fail(f"{said}{end} See `{command} --help`.", BAD_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; keep Python from complaining when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except HaloaeError as error:
        return _fail(str(error), BAD_INPUT)
    except Exception as error:
        message = _reason(error)
        if not message and os.environ.get(DEBUG):
            raise
        unexpected = f"internal error ({type(error).__name__}: {error}): set {DEBUG}=1 for details."
        return _fail(message or unexpected, BAD_INPUT)


def _reason(error: Exception) -> str:
    """What lies outside of this package's power, as a sentence; empty where it does not."""
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return str(MissingExtraError(error.name, EXTRAS[error.name]))
    if isinstance(error, MemoryError) or any(
        part in str(error) for part in ("allocate memory", "out of memory")
    ):
        return "out of memory: try smaller images, or train with a smaller --image-size."
    if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
        return f"the output cannot be written ({error.strerror})."
    return ""


def _fail(message: str, code: int) -> int:
    print(f"haloae: {shown(message)}", file=sys.stderr)
    return code


def _version(wanted: bool) -> None:
    if wanted:
        print(f"haloae {__version__}")
        raise typer.Exit


@app.callback()
def _front(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_version
        ),
    ] = False,
) -> None:
    """Find and outline defects after seeing good images only."""


def _set_up_logging() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    handler.addFilter(_Once())
    logger = logging.getLogger("haloae")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


class _Once(logging.Filter):
    """Says the same thing once: a benchmark loads one backbone many times."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in self.said
        self.said.add(message)
        return is_new


class _Formatter(logging.Formatter):
    """What is worth knowing as it is; a warning is called one."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        return f"haloae: {level}{record.getMessage()}"
