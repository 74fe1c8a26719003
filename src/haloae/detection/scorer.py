"""From pixels to score, p-value and map, composed once.

Held-out images, predictions and exports all run this one module.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haloae.config import DetectionConfig
from haloae.data.regions import FILL, Region
from haloae.data.views import WHITE, Size, View
from haloae.detection.calibration import Unit
from haloae.detection.heads import Head, Seen
from haloae.detection.maps import image_score, part_scores, smoothed, smoothed_inside
from haloae.detection.parts import PLAIN, inside_of, members_of, units_of_cells
from haloae.network.haloae import HaloAE


class Scored(NamedTuple):
    """What is said of a batch of images."""

    score: Tensor
    """(B,) float32, at least 0; higher is more anomalous."""
    p_value: Tensor
    """(B,) float32: share of good images that score at least as high, see `Calibration.p_value`."""
    anomaly_map: Tensor
    """(B, h, w) float32 on the feature grid; 0 where a cell does not count."""


class Parts(nn.Module):
    """The parts of an image that are judged, each by itself; what is in none does not count.

    Args:
        inside: (H, W) bool, True where one of the pixels that the network sees counts.
        members: (R, h, w) bool, True where a cell is in the part.
        units: of each part's scores and map.
    """

    inside: Tensor
    members: Tensor
    score_units: Tensor
    map_units: Tensor

    def __init__(self, inside: Tensor, members: Tensor, units: Sequence[Unit]) -> None:
        super().__init__()
        self.register_buffer("inside", inside[None])
        self.register_buffer("members", members[None].float())
        self.register_buffer("score_units", torch.tensor([unit.score for unit in units]))
        of_cells = units_of_cells(members.numpy(), units)
        self.register_buffer("map_units", torch.from_numpy(of_cells)[None])

    @classmethod
    def of(cls, region: Region, view: View, units: Sequence[Unit]) -> Self:
        """From a stored region.

        Args:
            region: of images.
            view: what the network sees of them.
            units: of each part; of none, 1.
        """
        inside = torch.from_numpy(inside_of(region, view))
        members = torch.from_numpy(members_of(region, view))
        return cls(inside, members, units or [PLAIN] * region.parts)


class Scorer(nn.Module):
    """Pixels → score, p-value, map.

    Args:
        network: as it is used, see `haloae.network.lean`.
        head: fitted.
        config: how maps and scores are made.
        grid: (h, w) of what the head has learned place by place; None: it is the same anywhere.
        good_scores: of held-out good images; of none, every p-value is 1.
        parts: what counts of every image; None: all of it.
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
        parts: Parts | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.config = config
        self.grid = grid
        self.parts = parts
        self.register_buffer("good_scores", torch.tensor(good_scores))

    def forward(self, pixels: Tensor, inside: Tensor | None = None) -> Scored:
        """Score a batch.

        Args:
            pixels: (B, 3, H, W) RGB, float32 in [0, 1] or uint8.
            inside: (B, H, W) bool, True where a pixel counts, in the place of parts; None: all do,
                or where the parts say so.
        """
        parts = self.parts
        seen = see(self.network, pixels, inside if parts is None else parts.inside)
        unusual = unusual_of(self.head, seen, self.grid)
        members = members_in(seen, None) if parts is None else parts.members
        score, anomaly = judge(unusual, self.config, members, parts)
        # A count, as `Calibration.p_value` finds by bisection: the scores are few.
        at_least = (self.good_scores[None, :] >= score[:, None]).sum(1)
        p_value = (1 + at_least) / (len(self.good_scores) + 1)
        return Scored(score, p_value.float(), anomaly)


def members_in(seen: Seen, parts: Parts | None) -> Tensor | None:
    """(B, R, h, w) float32: which cells are in which part of an image; None: all in the one."""
    if seen.cells is None:
        return None
    cells = seen.cells[:, None].float()
    return cells if parts is None else cells * parts.members


def see(network: HaloAE, pixels: Tensor, inside: Tensor | None = None) -> Seen:
    """What a network makes of a batch of pixels, in the precision of its weights.

    Args:
        network: any, trained or as it is used.
        pixels: (B, 3, H, W) RGB, float32 in [0, 1] or uint8.
        inside: (B or 1, H, W) bool, True where a pixel counts; any other is set to `FILL`. None:
            all count.
    """
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / WHITE
    if inside is not None:
        pixels = torch.where(inside[:, None], pixels, FILL / WHITE)
    image = network.normalise(pixels)
    output = network(image.to(next(network.parameters()).dtype))
    if inside is None:
        return Seen(output, image)
    # A cell counts where any of its pixels does, so that each pixel that counts is in one.
    cells = F.max_pool2d(inside[:, None].float(), image.shape[-1] // output.features.shape[-1])
    return Seen(output, image, cells[:, 0] > 0)


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
    cells = None if seen.cells is None else extended(seen.cells[:, None].float())[:, 0] > 0
    return Seen(wider, extended(seen.image), cells)


def unusual_of(head: Head, seen: Seen, grid: Size | None) -> Tensor:
    """What a head says of a batch, on the batch's own grid; `grid` as in `Scorer`."""
    if grid is None:
        return cast("Tensor", head(seen.output, seen.image))
    height, width = seen.output.features.shape[-2:]
    whole = on_grid(seen, grid)
    unusual: Tensor = head(whole.output, whole.image)
    return unusual if (height, width) == grid else unusual[:, :height, :width]


def judge(
    unusual: Tensor,
    config: DetectionConfig,
    members: Tensor | None = None,
    parts: Parts | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores (B,) and smoothed maps (B, h, w) of a head's output, (B, h, w).

    Args:
        unusual: how unusual each cell is.
        config: how maps and scores are made.
        members: (B or 1, R, h, w) float32, 1 where a cell is in the part, else 0; None: all are, in
            the one part.
        parts: whose units scores and maps have; the score is that of the highest part.
    """
    scores, anomaly = judge_parts(unusual, config, members)
    if parts is None:
        return scores[:, 0], anomaly
    return (scores / parts.score_units).amax(1), anomaly / parts.map_units


def judge_parts(
    unusual: Tensor, config: DetectionConfig, members: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scores (B, R) of each part and smoothed maps (B, h, w), in no units yet; see `judge`."""
    if members is None:
        anomaly = smoothed(unusual, config)
        return image_score(anomaly, config.top_share)[:, None], anomaly
    anomaly = smoothed_inside(unusual, members.amax(1), config)
    return part_scores(anomaly, members, config.top_share), anomaly


def peaks_of(anomaly: Tensor, members: Tensor | None) -> Tensor:
    """(B, R): the highest value of maps (B, h, w) in each part; `members` as in `judge`."""
    if members is None:
        return anomaly.amax((1, 2))[:, None]
    return (anomaly[:, None] * members).amax((2, 3))
