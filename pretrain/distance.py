"""The second phase's objective: a defect is far from every good cell, as a memory bank sees it."""

import torch
import torch.nn.functional as F
from torch import Tensor

BANK_SHARE = 0.25
"""Share of a good crop's cells in the bank of its pair: a bank never holds all that is good."""
BANK_OTHERS = 256
"""Cells of any good crop that stand in every bank."""
SMALLEST = 1e-3
"""Added to squared distances before the logarithm."""


def log_distances(features: Tensor, generator: torch.Generator, floor: float) -> Tensor:
    """Log of the squared distance, per channel, of each cell to the nearest in a bank.

    Args:
        features: (2n, C, h, w) of pairs: n good crops, then n that are measured.
        generator: of the banks' cells.
        floor: part of a channel's variance over all good crops that is added to that over one of
            them. With little of it a dull crop is measured by a finer scale than a vivid one; a
            detector has one scale for all images of a product.

    Returns:
        (n, h, w), of the second crops, each against the bank of its pair's first.
    """
    smoothed = F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)
    good, measured = smoothed.flatten(2).movedim(1, 2).chunk(2)
    everything = good.flatten(0, 1)
    mean = good.mean(1, keepdim=True)
    scale = (good.var(1, keepdim=True) + floor * everything.var(0) + 1e-6).rsqrt()

    def some(count: int, of: int) -> Tensor:
        return torch.randperm(of, generator=generator, device=features.device)[:count]

    size = int(BANK_SHARE * good.shape[1])
    own = good[:, some(size, good.shape[1])]
    others = everything[some(BANK_OTHERS, len(everything))].expand(len(good), -1, -1)
    bank = (torch.cat([own, others], dim=1) - mean) * scale
    cells = (measured - mean) * scale
    nearest = (bank.square().sum(2).unsqueeze(1) - 2 * cells @ bank.mT).amin(2)
    squared = (cells.square().sum(2) + nearest).clamp_min(0) / features.shape[1]
    distances: Tensor = (squared + SMALLEST).log().unflatten(1, features.shape[2:])
    return distances


def distance_losses(scores: Tensor, is_defect: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of cells, and of where in an image with a defect the defect is.

    The second asks that the farthest cells are defective ones: it is they that decide an image.

    Args:
        scores: (n, h, w) logits.
        is_defect: (n, h, w), 1 where a cell is defective, else 0.
        counts: (n, h, w), 0 for cells that are left out, else 1.
    """
    cells = F.binary_cross_entropy_with_logits(scores, is_defect, counts * (1 + 4 * is_defect))
    spoiled = is_defect.flatten(1).any(1)
    if not spoiled.any():
        return cells, torch.zeros_like(cells)
    logits = scores[spoiled].flatten(1)
    wrong = is_defect[spoiled].flatten(1) > 0
    right = (counts[spoiled].flatten(1) > 0) & ~wrong
    farthest = [logits.masked_fill(~mask, -1e4).logsumexp(1) for mask in (right, wrong)]
    return cells, F.softplus(farthest[0] - farthest[1]).mean()
