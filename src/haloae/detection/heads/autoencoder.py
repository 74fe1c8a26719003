"""The paper's head: errors of reconstruction, compared with those of good images."""

from collections.abc import Callable, Iterable, Mapping
from typing import Self

import torch
from torch import Tensor

from haloae.config import Config, DetectionConfig
from haloae.detection.heads.base import MANY, Head, Seen, features_of, register_head
from haloae.detection.maps import Residuals, Usual, residual_map, residuals
from haloae.network.branches import RGB
from haloae.network.haloae import HaloAEOutput


@register_head("autoencoder")
class AutoencoderHead(Head):
    """Mean squared errors of good images that the network was not trained on.

    Args:
        config: how maps are made.
        usual: those means.
        total: the sums they were made from, where an image is to be left out again.
        counts: (1, h, w), of how many images; None: of all.
    """

    prefix = "usual."
    needs_autoencoder = True
    refits = True
    features: Tensor
    image: Tensor | None

    def __init__(
        self,
        config: DetectionConfig,
        usual: Usual,
        total: Residuals | None = None,
        counts: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.images = usual.images
        self.total = total
        self.counts = counts
        self.register_buffer("features", usual.features)
        self.register_buffer("image", usual.image)

    @property
    def usual(self) -> Usual:
        """The errors that good images have."""
        return Usual(self.features, self.image, self.images)

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """Take the mean of the good images' errors, one image after the other."""
        total: Residuals | None = None
        count = 0
        counts: Tensor | None = None
        for each in seen():
            errors, cells = cls.errors(each), cls.counted(each)
            total = errors if total is None else _combined(total, errors, 1.0)
            if cells is not None:
                counts = cells.float() if counts is None else counts + cells
            count += 1
        if total is None:
            raise ValueError("a head is fitted to one image at least")
        return cls(config.detection, _mean(total, count, counts), total, counts)

    @classmethod
    def errors(cls, seen: Seen) -> Residuals:
        """Of one good image, as they are summed up: 0 where a cell does not count."""
        features, image = residuals(seen.output, seen.image)
        if seen.cells is None:
            return Residuals(features, image)
        cells = seen.cells[:, None]
        return Residuals(features * cells, None if image is None else image * cells)

    @classmethod
    def counted(cls, seen: Seen) -> Tensor | None:
        """(1, h, w): where a good image counts; None: everywhere."""
        return seen.cells

    @classmethod
    def places(cls, config: Config) -> tuple[int, int]:
        """Rows and columns of what is learned."""
        return config.grid

    @classmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        """See `Head.restore`."""
        grid, (_, channels) = cls.places(config), features_of(config)
        features, image = tensors["features"], tensors.get("image")
        if features.shape != (channels, *grid):
            raise ValueError(f"usual.features has shape {tuple(features.shape)}")
        if image is not None and image.shape != (RGB, *grid):
            raise ValueError(f"usual.image has shape {tuple(image.shape)}")
        if image is None and config.detection.image_weight:
            raise ValueError("usual.image is missing")
        if any((part < 0).any() for part in (features, image) if part is not None):
            raise ValueError("usual holds mean squares below 0")
        return cls(config.detection, Usual(features, image, images))

    @classmethod
    def sized(cls, config: Config) -> Self:
        """See `Head.sized`."""
        grid, (_, channels) = cls.places(config), features_of(config)
        image = torch.empty(RGB, *grid) if config.network.image_decoder else None
        return cls(config.detection, Usual(torch.empty(channels, *grid), image, MANY))

    def without(self, seen: Seen, index: int) -> "AutoencoderHead":
        """The means of the other images."""
        if self.total is None:
            raise ValueError("a head that was loaded no longer knows its sums")
        others = _combined(self.total, self.errors(seen), -1.0)
        counts, cells = self.counts, self.counted(seen)
        if counts is not None and cells is not None:
            counts = counts - cells.float()
        return type(self)(self.config, _mean(others, self.images - 1, counts))

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `Head.forward`."""
        return residual_map(residuals(output, image), self.usual, self.config)


@register_head("autoencoder", anywhere=True)
class SharedAutoencoderHead(AutoencoderHead):
    """The same means, each of a channel's errors at all places."""

    reach = 0

    @classmethod
    def errors(cls, seen: Seen) -> Residuals:
        """See `AutoencoderHead.errors`: their mean over all places that count, (1, C, 1, 1)."""
        features, image = residuals(seen.output, seen.image)
        cells = seen.cells
        return Residuals(
            _everywhere(features, cells), None if image is None else _everywhere(image, cells)
        )

    @classmethod
    def counted(cls, seen: Seen) -> None:
        """See `AutoencoderHead.counted`: an image counts as a whole."""
        return

    @classmethod
    def places(cls, config: Config) -> tuple[int, int]:
        """See `AutoencoderHead.places`: one, whatever the grid."""
        return 1, 1


def _everywhere(errors: Tensor, cells: Tensor | None) -> Tensor:
    if cells is not None:
        errors = errors[:, :, cells[0]][..., None]
    return errors.mean((0, 2, 3), keepdim=True)


def _combined(a: Residuals, b: Residuals, sign: float) -> Residuals:
    image = None if a.image is None or b.image is None else a.image + sign * b.image
    return Residuals(a.features + sign * b.features, image)


def _mean(total: Residuals, count: int, counts: Tensor | None = None) -> Usual:
    # Contiguous, as a model file gives them back: sums then round alike before and after.
    # At least 0: what one image leaves of a sum that is nearly all its own rounds to either side.
    def mean(part: Tensor) -> Tensor:
        sums = part[0].clamp_min(0)
        if counts is None:
            return (sums / count).contiguous()
        # Where no image was seen, what is usual is the mean of everywhere.
        everywhere = sums.sum((1, 2), keepdim=True) / counts.sum().clamp_min(1)
        return torch.where(counts > 0, sums / counts.clamp_min(1), everywhere).contiguous()

    return Usual(mean(total.features), None if total.image is None else mean(total.image), count)
