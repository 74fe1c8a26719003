"""The presets: `paper` as published, `default`, and `fast`."""

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

PAPER = Config(
    preset="paper",
    image_size=256,
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
    detection=DetectionConfig(normalisation="difference"),
)
# Chosen by the ablations in docs/adr/0004 and 0005, with their tables.
DEFAULT = Config(
    preset="default",
    image_size=256,
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
FAST = DEFAULT.model_copy(
    update={
        "preset": "fast",
        "image_size": 160,
        "training": DEFAULT.training.model_copy(update={"steps": 80}),
    }
)
PRESETS = {config.preset: config for config in (PAPER, DEFAULT, FAST)}


def preset(name: str) -> Config:
    """Config of a preset.

    >>> preset("fast").image_size
    160

    Raises:
        ConfigError: no preset has this name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
