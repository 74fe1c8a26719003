"""The whole network: the paper's figure, left to right."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from haloae.config import NetworkConfig
from haloae.network.attention import Attention
from haloae.network.autoencoder import HaloDecoder, HaloEncoder
from haloae.network.branches import RGB, Classifier, ImageDecoder
from haloae.network.features import FeatureExtractor
from haloae.network.lean import with_parts
from haloae.network.reducer import FeatureReducer


class HaloAEOutput(NamedTuple):
    """What the network makes of a batch of images, the same in training and in use."""

    features: Tensor
    """(B, C, H/stride, W/stride), reduced where the config says so."""
    rebuilt: Tensor
    """Like `features`: their reconstruction; themselves, without the auto-encoder."""
    image: Tensor | None
    """(B, 3, H, W), the reconstructed image; None without the image branch."""
    logits: Tensor | None
    """(B, 2), normal and CutPaste; None without the classifier."""


class HaloAE(nn.Module):
    """Frozen features, a halo auto-encoder, an image decoder and a classifier.

    Args:
        config: widths, kernels, heads; which branches there are.
        image_size: height and width of the images, in pixels, on which the classifier depends; one
            number is both.
        weights: the trunk's, see `FeatureExtractor`; None leaves all weights to be loaded.
        generator: draws the initial weights; None takes torch's global one.

    Raises:
        ConfigError: no such trunk or mode of attention, or more components than channels.
        WeightsError: the trunk's weights cannot be had or do not fit.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        image_size: int | tuple[int, int],
        weights: str | Path | None = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.extractor = FeatureExtractor(
            weights,
            config.trunk,
            published_taps=config.published_taps,
            stride=config.stride,
        )
        channels = config.reduced_channels or self.extractor.channels
        self.reducer: nn.Module = nn.Identity()
        if config.reduced_channels:
            taps = [tap.channels for tap in self.extractor.taps]
            self.reducer = FeatureReducer(taps, channels)
        self.encoder: HaloEncoder | None = None
        self.decoder: HaloDecoder | None = None
        if config.autoencoder:
            self.encoder = HaloEncoder(config, channels)
            self.decoder = HaloDecoder(config, self.encoder.out_channels, channels)
        self.image_decoder: ImageDecoder | None = None
        if config.image_decoder is not None:
            self.image_decoder = ImageDecoder(
                channels, config.image_decoder, relu=config.image_relu
            )
        self.classifier: Classifier | None = None
        if config.classifier:
            height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
            cells = (height // config.stride) * (width // config.stride)
            self.classifier = Classifier(
                RGB * height * width if self.image_decoder else channels * cells
            )
        if weights is None:
            return  # all weights are about to be loaded
        for branch in (self.encoder, self.decoder, self.image_decoder, self.classifier):
            if branch is not None:
                initialise(branch, generator)

    def normalise(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) RGB in [0, 1] → the same shape, as the trunk wants it."""
        return self.extractor.normalise(images)

    def forward(self, image: Tensor, *, generator: torch.Generator | None = None) -> HaloAEOutput:
        """Run the network.

        Args:
            image: (B, 3, H, W), of `normalise`.
            generator: draws the bottleneck's noise in training, where the config has any.
        """
        features = self.reducer(self.extractor(image))
        rebuilt = features
        if self.encoder is not None and self.decoder is not None:
            code = self.encoder(features)
            rebuilt = self.decoder(code, grid=features.shape[-2:], generator=generator)
        rebuilt_image = self.image_decoder(rebuilt) if self.image_decoder else None
        logits = None
        if self.classifier is not None:
            logits = self.classifier(rebuilt if rebuilt_image is None else rebuilt_image)
        return HaloAEOutput(features, rebuilt, rebuilt_image, logits)

    def lean(self, *, image: bool) -> "HaloAE":
        """The network in the form it is used in, see `haloae.network.lean.lean`, which to call."""
        return with_parts(
            self,
            extractor=self.extractor.lean(self.reducer),
            reducer=nn.Identity(),
            encoder=self.encoder.lean() if self.encoder else None,
            decoder=self.decoder.lean() if self.decoder else None,
            image_decoder=self.image_decoder.lean() if image and self.image_decoder else None,
            classifier=None,
        )


def initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initialise weights as published (section C).

    Kaiming normal (fan in) with zero biases for convolutions and the attention's projections,
    batch norm 1 and 0, positions normal · d^-½, the classifier as torch does.
    """
    attention_layers: set[nn.Module] = set()
    for layer in module.modules():
        if isinstance(layer, Attention):
            layer.reset_parameters(generator)
            attention_layers.update(layer.children())
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear) and layer not in attention_layers:
            bound = 1 / math.sqrt(layer.in_features)
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
