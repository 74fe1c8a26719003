"""From pixels to score, p-value and map, composed once.

Held-out images, predictions and exports all run this one module.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haloae.config import DetectionConfig
from haloae.data.views import WHITE, Size
from haloae.detection.heads import Head, Seen
from haloae.detection.maps import image_score, smoothed
from haloae.network.haloae import HaloAE


class Scored(NamedTuple):
    """What is said of a batch of images."""

    score: Tensor
    """(B,) float32, at least 0; higher is more anomalous."""
    p_value: Tensor
    """(B,) float32: share of good images that score at least as high, see `Calibration.p_value`."""
    anomaly_map: Tensor
    """(B, h, w) float32 on the feature grid."""


class Scorer(nn.Module):
    """Pixels → score, p-value, map.

    Args:
        network: as it is used, see `haloae.network.lean`.
        head: fitted.
        config: how maps and scores are made.
        grid: (h, w) of what the head has learned place by place; None: it is the same anywhere.
        good_scores: of held-out good images; of none, every p-value is 1.
    """

    good_scores: Tensor

    def __init__(
        self,
        network: HaloAE,
        head: Head,
        config: DetectionConfig,
        good_scores: Sequence[float] = (),
        *,
        grid: Size | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.config = config
        self.grid = grid
        self.register_buffer("good_scores", torch.tensor(good_scores))

    def forward(self, pixels: Tensor) -> Scored:
        """Score a batch.

        Args:
            pixels: (B, 3, H, W) RGB, float32 in [0, 1] or uint8.
        """
        unusual = unusual_of(self.head, see(self.network, pixels), self.grid)
        score, anomaly = judge(unusual, self.config)
        # A count, as `Calibration.p_value` finds by bisection: the scores are few.
        at_least = (self.good_scores[None, :] >= score[:, None]).sum(1)
        p_value = (1 + at_least) / (len(self.good_scores) + 1)
        return Scored(score, p_value.float(), anomaly)


def see(network: HaloAE, pixels: Tensor) -> Seen:
    """What a network makes of a batch of pixels, in the precision of its weights.

    Args:
        network: any, trained or as it is used.
        pixels: (B, 3, H, W) RGB, float32 in [0, 1] or uint8.
    """
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / WHITE
    image = network.normalise(pixels)
    return Seen(network(image.to(next(network.parameters()).dtype)), image)


def on_grid(seen: Seen, grid: Size) -> Seen:
    """The same on all of a grid: past the end of a smaller one its last cells, again and again.

    So places that an image does not reach know of its nearest ones.
    """
    height, width = seen.output.features.shape[-2:]
    if (height, width) == grid:
        return seen
    more = grid[0] - height, grid[1] - width

    def extended(x: Tensor) -> Tensor:
        cell = x.shape[-1] // width
        return F.pad(x, (0, cell * more[1], 0, cell * more[0]), mode="replicate")

    output = seen.output
    wider = output._replace(
        features=extended(output.features),
        rebuilt=extended(output.rebuilt),
        image=None if output.image is None else extended(output.image),
    )
    return Seen(wider, extended(seen.image))


def unusual_of(head: Head, seen: Seen, grid: Size | None) -> Tensor:
    """What a head says of a batch, on the batch's own grid; `grid` as in `Scorer`."""
    if grid is None:
        return cast("Tensor", head(*seen))
    height, width = seen.output.features.shape[-2:]
    unusual: Tensor = head(*on_grid(seen, grid))
    return unusual if (height, width) == grid else unusual[:, :height, :width]


def judge(unusual: Tensor, config: DetectionConfig) -> tuple[Tensor, Tensor]:
    """Scores (B,) and smoothed maps (B, h, w) of a head's output, (B, h, w)."""
    anomaly = smoothed(unusual, config)
    return image_score(anomaly, config.top_share), anomaly
