"""The presets, `paper` as published, `default`, and `fast`, and what is set over them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from haloae.config import (
    EPOCHS,
    AttentionConfig,
    Config,
    DetectionConfig,
    LossConfig,
    NetworkConfig,
    Stage,
    TrainingConfig,
)
from haloae.errors import ConfigError
from haloae.settings import nested, read_assignments, read_toml

PAPER = Config(
    preset="paper",
    image_size=256,
    backbone="bundled",
    network=NetworkConfig(
        published_taps=True,
        reduced_channels=None,
        head_channels=234,
        head_kernel=5,
        head_padding=False,
        encoder=(
            Stage(channels=234, kernel=3, heads=4),
            Stage(channels=117, kernel=3, heads=8),
            Stage(channels=58, kernel=5, heads=8),
            Stage(channels=29, kernel=5, heads=8),
        ),
        decoder=(
            Stage(channels=29, kernel=3, heads=4),
            Stage(channels=59, kernel=3, heads=8, inner=58),
            Stage(channels=118, kernel=3, heads=8),
            Stage(channels=237, kernel=5, heads=8, inner=236),
            Stage(kernel=1, heads=8, inner=703),
        ),
        rebuilt_relu=True,
        attention=AttentionConfig(block=12, halo=2, head_dim=16),
        image_decoder=(380, 190, 95, 47, 23),
        image_relu=True,
    ),
    loss=LossConfig(),
    training=TrainingConfig(steps=EPOCHS * 750),
    detection=DetectionConfig(normalisation="difference", smoothing="published", sigma=0),
)
# Chosen by what docs/adr/0002 to 0006 measured.
AUTOENCODER = Config(
    preset="autoencoder",
    image_size=256,
    backbone="bundled",
    network=NetworkConfig(
        trunk="resnet18",
        reduced_channels=96,
        head_channels=96,
        encoder=(Stage(channels=48), Stage(channels=8)),
        decoder=(Stage(channels=8), Stage(channels=48), Stage()),
        attention=AttentionConfig(mode="none"),
        classifier=False,
    ),
    loss=LossConfig(feature_terms=("mse",), clean_targets=True),
    training=TrainingConfig(steps=120, learning_rate=2e-3, schedule="cosine", precision="bfloat16"),
    detection=DetectionConfig(normalisation="channel_difference", sigma=0.8, top_share=0.01),
)
# Chosen by what docs/adr/0008 and 0011 measured.
DEFAULT = AUTOENCODER.replace(
    preset="default",
    backbone="auto",
    view={"kind": "auto"},
    network={"trunk": "efficientnet_lite0", "stride": 8, "autoencoder": False},
    detection={"head": "halo", "sigma": 1.0, "top_share": 0.03},
)
FAST = DEFAULT.replace(preset="fast", image_size=192)
HEADS = ("gaussian", "nearest", "nearest_halo")
"""Simpler heads than that of `fast`, each of which is a preset too: rivals to measure against."""
ONE_HEAD = tuple(FAST.replace(preset=head, detection={"head": head}) for head in HEADS)
PRESETS = {config.preset: config for config in (PAPER, AUTOENCODER, DEFAULT, FAST, *ONE_HEAD)}


def preset(name: str) -> Config:
    """Config of a preset.

    >>> preset("fast").image_size
    192

    Raises:
        ConfigError: no preset has this name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def configure(
    name: str | None = None,
    *,
    base: Config | None = None,
    file: Path | None = None,
    assignments: Iterable[str] = (),
    flags: Mapping[str, object] | None = None,
) -> Config:
    """A preset, over it a file's settings, over them those of assignments, then of flags.

    Args:
        name: of the preset; None: the file's, or else `default`.
        base: goes in the preset's place: the config of a run that goes on.
        file: TOML.
        assignments: each ``name=value``, see `read_assignments`.
        flags: by the setting's name, with dots; None where a flag was not given.

    Raises:
        ConfigError: there is no such preset, it is not that of `base`, the file cannot be read, or
            a setting is wrong.
    """
    settings = read_toml(file) if file else {}
    assigned = read_assignments(assignments)
    name = name or settings.get("preset")
    if base is None:
        base = preset(name or "default")
    elif name not in (None, base.preset):
        raise ConfigError(f"the run to resume has preset {base.preset!r}, not {name!r}.")
    try:
        config = base.replace(**{**settings, "preset": base.preset})
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    config = config.replace(**assigned)
    for setting, value in (flags or {}).items():
        if value is not None:
            config = config.replace(**nested(setting, value))
    return config
