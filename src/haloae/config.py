"""Every setting of a run, frozen and self-checking: presets, TOML in, JSON out.

A `Config` is all that tells one run from another besides its images; it is stored in every model
file. Sizes that follow from others (the features' channels, the grid) are derived, never set.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from haloae.errors import ConfigError
from haloae.settings import checked, merged

Name = Annotated[str, Field(pattern="^[a-z0-9_]{1,64}$")]
"""Of something in a table that may be added to: checked where it is looked up."""
Width = Annotated[int, Field(ge=1, le=4096)]
"""Channels."""
Few = Annotated[int, Field(ge=1, le=256)]
"""Heads, sides of blocks and the like."""
Fraction = Annotated[float, Field(ge=1e-12, lt=1)]
Term = Literal["mse", "ssim", "cosine"]
ViewKind = Literal["auto", "squash", "fit", "tiles"]
Place = Literal["auto", "aligned", "anywhere"]
Side = Annotated[int, Field(ge=32, le=2**20)]
"""Of what the network sees, in pixels."""
Pixels = Annotated[int, Field(ge=0, le=2**20)]
Precision = Literal["float32", "bfloat16"]

MOST_STAGES = Field(max_length=16)
LEAST_SIGMA = 0.1
"""A narrower Gaussian is none: neighbours would weigh less than 1e-21."""
EPOCHS = 251
"""Epochs the schedule is divided into, for the losses' weights (section Losses)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Stage(_Frozen):
    """One block of encoder or decoder: a row of the paper's table (section C)."""

    channels: Width | None = None
    """Output channels; None: as many as the features have (the decoder's last block)."""
    kernel: Literal[1, 3, 5, 7] = 3
    """Side of the second convolution."""
    heads: Few = 2
    """Attention heads."""
    inner: Width | None = None
    """Channels between the two convolutions; None: as many as the block puts out."""


class AttentionConfig(_Frozen):
    """Halo attention, the same in every block."""

    mode: Name = "halo"
    """Which kind, see `haloae.network.attention`."""
    block: Few = 8
    halo: Few = 2
    head_dim: Few = 16


class ViewConfig(_Frozen):
    """What the network sees of an image (docs/views.md).

    What is None, or ``auto``, is settled by the training images when a detector is fitted, and
    stands settled in its model file.
    """

    kind: ViewKind = "squash"
    """``squash``: a square of `image_size`. ``fit``: all of it in its own aspect ratio, in somewhat
    more pixels. ``tiles``: at its own resolution, a tile at a time."""
    place: Place | None = None
    """``aligned``: what good images look like is learned place by place. ``anywhere``: once for all
    places. None: ``aligned`` where images are squashed, ``anywhere`` in tiles, else ``auto``."""
    scale: Annotated[float, Field(ge=1 / 256, le=16)] = 1.0
    """Of the images that are cut into tiles; 1 is their own resolution."""
    canvas: tuple[Side, Side] | None = None
    """Height and width of what the network is given at once: of the image, or of a tile."""
    overlap: Pixels | None = None
    """Of neighbouring tiles; None: so much that the map is that of the whole image."""
    margin: Pixels | None = None
    """Pixels from a tile's cut within which its map is not that of the whole image."""
    step: Annotated[int, Field(ge=1, le=2**16)] | None = None
    """Pixels that sides of what the network sees, and places of tiles, are whole multiples of."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "tiles" and self.place == "aligned":
            raise ValueError(
                "a tile has no place that it shares with those of other images: leave view.place "
                "out, or set view.kind to fit"
            )
        sides = (*(self.canvas or ()), self.overlap or 0)
        if self.step and any(side % self.step for side in sides):
            raise ValueError(f"canvas and overlap must be whole multiples of {self.step}")
        if self.canvas and min(self.canvas) <= (self.overlap or 0):
            raise ValueError(
                f"tiles of {self.canvas[0]}×{self.canvas[1]} that overlap by {self.overlap} do not "
                "get on: set a larger view.canvas, or a smaller view.overlap"
            )
        return self


class NetworkConfig(_Frozen):
    """The network, sections B to E."""

    trunk: Name = "vgg19"
    """The frozen backbone, see `haloae.network.trunks`."""
    stride: Literal[4, 8] = 4
    """Image pixels per feature cell, in each direction."""
    published_taps: bool = False
    """True: taps one reflected pixel too wide, resampled by nearest, as published."""
    reduced_channels: Width | None = 96
    """Principal components the features are reduced to; None: features as they come."""
    autoencoder: bool = True
    """False: features alone, for detector heads that look at nothing else; nothing is trained by
    gradient."""
    head_channels: Width = 96
    head_kernel: Literal[1, 3, 5, 7] = 3
    head_padding: bool = True
    """False: the head's convolution shrinks the grid; the output is resized to it (nearest)."""
    encoder: Annotated[tuple[Stage, ...], MOST_STAGES] = (Stage(channels=64), Stage(channels=32))
    decoder: Annotated[tuple[Stage, ...], MOST_STAGES] = (
        Stage(channels=32),
        Stage(channels=64),
        Stage(),
    )
    rebuilt_relu: bool = False
    """True: the last block ends in ReLU, right only for features that are never negative."""
    bottleneck_noise: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Standard deviation of the noise added to the code in training, in units of its own."""
    attention: AttentionConfig = AttentionConfig()
    image_decoder: Annotated[tuple[Width, ...], MOST_STAGES] | None = None
    """Channels of the image decoder's convolutions before the two that upsample; None: no image."""
    image_relu: bool = False
    """True: the reconstructed image ends in ReLU, as published, and is never negative."""
    classifier: bool = True
    """True: the self-supervised branch that tells CutPaste views from normal ones."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.published_taps and self.trunk != "vgg19":
            raise ValueError(f"published_taps are those of vgg19, and the trunk is {self.trunk}")
        if self.stride != 4 and self.image_decoder is not None:
            raise ValueError(
                f"the image_decoder enlarges a grid of stride 4, and the stride is {self.stride}"
            )
        if not self.encoder or not self.decoder:
            raise ValueError("encoder and decoder need a stage each")
        if any(stage.channels is None for stage in (*self.encoder, *self.decoder[:-1])):
            raise ValueError("only the decoder's last stage may leave out its channels")
        if self.decoder[-1].channels is not None:
            raise ValueError("the decoder's last stage has the features' channels: leave them out")
        return self


class LossConfig(_Frozen):
    """The loss terms and how they are weighed."""

    feature_terms: tuple[Term, ...] = ("mse", "ssim")
    image_terms: tuple[Term, ...] = ("mse", "ssim")
    fixed_weights: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] | None = None
    """Weights of classification, features, image; None: the paper's, by epoch."""
    clean_targets: bool = False
    """True: CutPaste views are fed too, and must be rebuilt as the image without the paste."""


class TrainingConfig(_Frozen):
    """The schedule."""

    steps: Annotated[int, Field(ge=1, le=10**9)] = 1000
    """Length of the schedule; `max_steps` stops earlier without changing it."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    """Images a step, three views each."""
    learning_rate: PositiveFloat = 1e-4
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 1e-5
    """L2, as in Adam without decoupling."""
    schedule: Literal["constant", "cosine"] = "constant"
    """``cosine``: warms up over 5 % of the steps, then falls to zero."""
    precision: Precision = "float32"
    """Arithmetic of training, ``bfloat16`` only where the device has it; weights and scores are
    float32 either way."""


class DetectionConfig(_Frozen):
    """From features and residuals to a map, a score and a verdict."""

    head: Name = "autoencoder"
    """What makes the map, see `haloae.detection.heads`."""
    normalisation: Literal[
        "difference", "channel_difference", "none", "channel", "position", "both"
    ] = "difference"
    """What residuals are compared with, see `haloae.detection.maps.residual_map`."""
    image_weight: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Weight of the image branch's map, added to the features' map."""
    smoothing: Literal["gaussian", "published"] = "gaussian"
    """Of the map; ``published``: by 3×3 cells, always the same, see `haloae.detection.maps`."""
    sigma: Annotated[float, Field(ge=0, le=100)] = 0.8
    """Of the Gaussian, in feature cells; 0, which smooths nothing, or at least `LEAST_SIGMA`; with
    ``published`` 0."""
    top_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The score is the mean of this share of the map, its highest values."""
    false_alarm_rate: Fraction = 0.01
    """Share of good images that may be called anomalous."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if 0 < self.sigma < LEAST_SIGMA:
            raise ValueError(f"sigma must be 0, or at least {LEAST_SIGMA}, got {self.sigma}")
        if self.smoothing == "published" and self.sigma:
            raise ValueError(
                f"smoothing published has a kernel of its own, and sigma is {self.sigma}: set "
                "sigma to 0, or smoothing to gaussian"
            )
        return self


class Config(_Frozen):
    """Everything that tells one run from another, besides its images."""

    preset: str
    """The preset it was made from; its settings may have been changed since."""
    image_size: Annotated[int, Field(ge=32, le=4096)]
    """Side of the square every image is brought to, in pixels; what is seen of a fitted one follows
    from it, see `view`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    backbone: str = "auto"
    """Where the trunk's weights come from: auto, bundled, imagenet, random or a file."""
    view: ViewConfig = ViewConfig()
    network: NetworkConfig
    loss: LossConfig
    training: TrainingConfig
    detection: DetectionConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        stride = self.network.stride
        if self.image_size % stride:
            raise ValueError(f"image_size {self.image_size} must be divisible by {stride}")
        if self.detection.image_weight and self.network.image_decoder is None:
            raise ValueError("detection.image_weight needs network.image_decoder")
        if self.detection.head == "autoencoder" and not self.network.autoencoder:
            raise ValueError("detection.head = autoencoder needs network.autoencoder = true")
        if not self.loss.feature_terms or not self.loss.image_terms:
            raise ValueError("loss.feature_terms and loss.image_terms must name a term")
        if self.loss.fixed_weights is not None and not self.loss.fixed_weights[1]:
            raise ValueError("loss.fixed_weights must give the features, its second, some weight")
        return self

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of what the network is given at once, in pixels.

        Before they are settled, those of a square.
        """
        if self.view.kind == "squash" or self.view.canvas is None:
            return self.image_size, self.image_size
        return self.view.canvas

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of feature cells of the canvas."""
        height, width = self.canvas
        return height // self.network.stride, width // self.network.stride

    @property
    def is_anywhere(self) -> bool:
        """True: statistics are those of all places together."""
        return self.view.place == "anywhere"

    @property
    def seen(self) -> str:
        """What the network sees of images, in words."""
        view, (height, width) = self.view, self.canvas
        if view.kind == "squash":
            words = f"{self.image_size}² pixels"
        elif view.kind == "fit":
            words = f"fitted to {width}×{height} pixels"
        else:
            scale = "" if view.scale == 1 else f" at {view.scale:g} of their size"
            words = f"in tiles of {width}×{height} pixels{scale}, overlapping by {view.overlap}"
        return f"{words}, the same anywhere" if self.is_anywhere else words

    def replace(self, **changes: Any) -> "Config":  # noqa: ANN401 - values of any setting
        """Copy with settings changed, checked anew.

        Nested settings are given as dicts and merged:

        >>> from haloae import preset
        >>> config = preset("default").replace(seed=7, network={"head_channels": 64})
        >>> config.seed, config.network.head_channels, config.network.reduced_channels
        (7, 64, 96)
        >>> config.replace(image_size=161)
        Traceback (most recent call last):
        haloae.errors.ConfigError: image_size 161 must be divisible by 8.

        Raises:
            ConfigError: a setting is unknown, of the wrong type or does not fit the others.
        """
        return parse_config(merged(self.model_dump(), changes))


def parse_config(values: object) -> Config:
    """Config from plain values, checked.

    Raises:
        ConfigError: see `checked`.
    """
    return checked(Config, values)


def without_retired(values: dict[str, Any]) -> dict[str, Any]:
    """A stored config without the settings that have gone since.

    Raises:
        ConfigError: one of them had a value that can no longer be had.
    """
    network, training = dict(values.get("network", {})), dict(values.get("training", {}))
    attention = dict(network.get("attention", {}))
    if attention.pop("mask_padding", True) is not True:
        raise ConfigError("attention to padding (mask_padding = false) is no longer offered.")
    # Only what is trained anew would look at it.
    training.pop("epochs", None)
    return values | {"network": network | {"attention": attention}, "training": training}
