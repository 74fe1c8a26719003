"""The options that commands share: each with its type, its name and its help.

Nothing heavy is imported, so that `--help` comes at once: names that the presets or a registry hold
are taken as they come, and checked where they are used.
"""

import logging
import math
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, BadParameter, Option

from haloae.errors import ConfigError


def _positive(value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise BadParameter(f"{value} is not positive")
    return value


def _hush(quiet: bool) -> bool:
    """Before the command runs: of what is logged, warnings alone are shown."""
    if quiet:
        logging.getLogger("haloae").setLevel(logging.WARNING)
    return quiet


def _limit(given: list[str] | None) -> list[str] | None:
    """Before the command runs: limits hold for all that it reads."""
    if given:
        from haloae.data.limits import read_limits

        read_limits(given)
    return given


Model = Annotated[Path, Argument(metavar="MODEL", help="a model.safetensors")]
ResultsFolder = Annotated[Path, Option("--out", metavar="DIR", help="folder for the results")]
Overwrite = Annotated[bool, Option("--overwrite", help="replace what the output holds")]
Quiet = Annotated[bool, Option("--quiet", help="no progress, no summary", callback=_hush)]
Strict = Annotated[
    bool, Option("--strict", help="stop at an image that cannot be read, instead of skipping it")
]

Limits = Annotated[
    list[str] | None,
    Option(
        "--limit",
        metavar="NAME=VALUE",
        help="most that one image may take: pixels, bytes, seconds or memory; may be given again",
        callback=_limit,
    ),
]
Roi = Annotated[
    Path | None,
    Option(
        "--roi",
        metavar="MASK",
        help="image whose white pixels count, for all; or a folder of one an image, by its path",
    ),
]
Ignore = Annotated[
    Path | None,
    Option("--ignore", metavar="MASK", help="likewise, whose white pixels do not count"),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], Option("--device", help="auto: cuda where there is any")
]
Threads = Annotated[
    int | None, Option("--threads", metavar="N", help="CPU threads", callback=_positive)
]
Precision = Annotated[
    Literal["float32", "bfloat16"],
    Option(
        "--precision",
        help="bfloat16: faster where the processor has it; scores move by about a hundredth",
    ),
]

PresetName = Annotated[
    str | None,
    Option(
        "--preset",
        metavar="NAME",
        help="paper, autoencoder, default, fast, gaussian, nearest or nearest_halo "
        "(default: default)",
    ),
]
Assignments = Annotated[
    list[str] | None,
    Option(
        "--set",
        metavar="NAME=VALUE",
        help="a setting over the preset, as network.attention.mode=halo; may be given again",
    ),
]
Backbone = Annotated[
    str | None,
    Option(
        "--backbone",
        metavar="auto|bundled|imagenet|random|PATH",
        help="weights of the trunk; only imagenet may download",
    ),
]
FalseAlarmRate = Annotated[
    float | None,
    Option(
        "--false-alarm-rate",
        metavar="R",
        help="share of good images that may be called anomalous (default: 0.01)",
    ),
]
View = Annotated[
    Literal["auto", "squash", "fit", "tiles"] | None,
    Option(
        "--view",
        help="what is seen of an image: squashed to a square, its aspect ratio kept, or all of its "
        "pixels in tiles; auto: chosen by the good images (default: the preset's)",
    ),
]
Place = Annotated[
    Literal["auto", "aligned", "anywhere"] | None,
    Option(
        "--place",
        help="aligned: what is good is learned place by place; anywhere: once for all places "
        "(default: as the view asks for)",
    ),
]
Steps = Annotated[
    int | None,
    Option("--max-steps", metavar="N", help="stop training after N steps", callback=_positive),
]
Minutes = Annotated[
    float | None,
    Option("--max-minutes", metavar="M", help="stop training after M minutes", callback=_positive),
]


def names(text: str, option: str) -> list[str]:
    """What a list with commas names, each once.

    Raises:
        ConfigError: it names nothing.
    """
    if not (found := [name.strip() for name in text.split(",") if name.strip()]):
        raise ConfigError(f"{option} {text!r} names nothing: give names with commas between them.")
    return list(dict.fromkeys(found))


def seeds(text: str) -> list[int]:
    """Whole numbers from a list with commas.

    Raises:
        ConfigError: it names nothing, or something else.
    """
    found = names(text, "--seeds")
    if not all(seed.isdecimal() for seed in found):
        raise ConfigError(f"--seeds {text!r}: these are no whole numbers, as in 0,1,2.")
    return [int(seed) for seed in found]
