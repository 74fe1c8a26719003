"""What heads that look at features alone share: moments, a place or of all, and distances."""

from collections.abc import Iterable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from haloae.config import Config
from haloae.detection.heads.base import features_of
from haloae.errors import ConfigError

MOST = 10**8
"""Numbers in the covariances of all places: 800 MB while they are summed up."""

NEAR = 0.1
"""Squared distance to what is as good as the same. A square is what is left of others a thousand
times as large: below this it is their rounding, which differs from runtime to runtime."""


FEWEST = 4
"""Good images that a place is told from: one that fewer show is taken for a mean of all places."""


class Cells(NamedTuple):
    """Values of a good image's cells."""

    values: Tensor
    """(1, C, h, w) float32."""
    counts: Tensor | None = None
    """(1, h, w) bool: True where a cell counts; None: all do."""

    @property
    def rows(self) -> Tensor:
        """(n, C): those that count, wherever they are."""
        rows = self.values.movedim(1, -1)
        return rows.flatten(0, 2) if self.counts is None else rows[self.counts]


class Moments(NamedTuple):
    """Of the features of good images, for each place of the grid."""

    mean: Tensor
    """(P, C) float32."""
    covariance: Tensor
    """(P, C, C) float32, over n - 1."""
    images: int
    seen: Tensor
    """(P,) float64: how many of the images count at the place."""

    @property
    def everywhere(self) -> Tensor:
        """(C, C): the mean covariance of the places that there are enough images of."""
        known = self.seen >= min(FEWEST, self.images)
        mean: Tensor = (self.covariance if known.all() else self.covariance[known]).mean(0)
        return mean


def check_size(config: Config) -> None:
    """Refuse covariances that memory does not hold.

    Raises:
        ConfigError: there are too many channels and places.
    """
    (height, width), channels = features_of(config)
    if height * width * channels**2 > MOST:
        raise ConfigError(
            f"a covariance for each of {height}×{width} places and {channels} channels is too "
            f"much: set network.reduced_channels lower, or network.stride to 8."
        )


def moments(maps: Iterable[Cells]) -> Moments:
    """Mean and covariance of every place, summed up image by image.

    Args:
        maps: of the good images, two at least.

    Raises:
        ValueError: there is no image, or of no place enough.
    """
    first: Tensor | None = None
    total = products = seen = torch.empty(0)
    count = 0
    for each, counts in maps:
        rows = by_place(each)[:, 0]
        if first is None:
            places, channels = rows.shape
            # Near the mean, so that products do not cancel.
            first = rows.clone()
            total = torch.zeros(places, channels, dtype=torch.float64, device=rows.device)
            products = total[:, :, None] * total[:, None, :]
            seen = total.new_zeros(places)
        centred = (rows - first).double()
        if counts is None:
            seen += 1
        else:
            centred *= counts.flatten()[:, None]
            seen += counts.flatten()
        total += centred
        products.baddbmm_(centred[:, :, None], centred[:, None, :])
        count += 1
    if first is None:
        raise ValueError("a head is fitted to one image at least")
    mean = total / seen.clamp_min(1)[:, None]
    products -= seen[:, None, None] * mean[:, :, None] * mean[:, None, :]
    products /= (seen - 1).clamp_min(1)[:, None, None]
    found = Moments((mean + first).float(), products.float(), count, seen)
    return _completed(found)


def _completed(found: Moments) -> Moments:
    """The same, with the mean and the covariance of all cells where too few images count."""
    few = found.seen < min(FEWEST, found.images)
    if few.all():
        raise ValueError("a head is fitted to images that count at one place at least")
    if few.any():
        known = ~few
        shares = (found.seen[known] / found.seen[known].sum()).float()
        mean = shares @ found.mean[known]
        apart = found.mean[known] - mean
        within = (shares[:, None, None] * found.covariance[known]).sum(0)
        found.mean[few] = mean
        found.covariance[few] = within + apart.T @ (shares[:, None] * apart)
    return found


def by_place(x: Tensor) -> Tensor:
    """(B, C, h, w) → (h·w, B, C)."""
    return x.flatten(2).permute(2, 0, 1)


def mapped(x: Tensor, matrix: Tensor) -> Tensor:
    """A linear map of each cell: (B, C, h, w) by (D, C) → (B, D, h, w).

    A product of matrices rather than a convolution: int8 exports keep these in float32.
    """
    cells: Tensor = matrix @ x.flatten(2)
    grid: Tensor = cells.unflatten(2, x.shape[2:])
    return grid


def softened(x: Tensor) -> Tensor:
    """Mean over 3×3 places with weights 1, 4, 1 each way, the border repeated: the same shape."""
    weights = torch.tensor([1.0, 4.0, 1.0], device=x.device) / 6
    kernel = (weights[:, None] * weights).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])


def averaged(features: Tensor) -> Tensor:
    """Mean over the 3×3 places around each that exist: (B, C, h, w) → the same."""
    return F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)


def distance(squared: Tensor) -> Tensor:
    """Of squared distances between cells, none nearer than rounding can tell; the same shape."""
    return squared.clamp_min(NEAR).sqrt()


def inverse_root(covariance: Tensor) -> Tensor:
    """(…, C, C) positive definite S → lower triangular W with WᵀW = S⁻¹."""
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(covariance.shape[-1], device=covariance.device)
    root: Tensor = torch.linalg.solve_triangular(
        factor, identity.expand_as(covariance), upper=False
    )
    return root


class Sums(NamedTuple):
    """Of the cells of good images, float64."""

    cells: int
    total: Tensor
    """(C,)."""
    products: Tensor
    """(C, C)."""

    @classmethod
    def of(cls, cells: Cells) -> Self:
        """Of those of an image."""
        rows = cells.rows.double()
        return cls(len(rows), rows.sum(0), rows.T @ rows)

    def combined(self, other: "Sums", sign: int = 1) -> "Sums":
        """With others' added, or taken away."""
        return Sums(
            self.cells + sign * other.cells,
            self.total + sign * other.total,
            self.products + sign * other.products,
        )

    def mean_and_root(self, ridge: float) -> tuple[Tensor, Tensor]:
        """(C,) and (C, C), a root of the inverse covariance with a ridge; float32."""
        mean = self.total / self.cells
        covariance = self.products / self.cells - mean[:, None] * mean
        covariance.diagonal().add_(ridge)
        return mean.float(), inverse_root(covariance).float()


def summed(maps: Iterable[Cells]) -> tuple[Sums, int]:
    """Those of all images, and how many images there are."""
    total: Sums | None = None
    count = 0
    for each in maps:
        sums = Sums.of(each)
        total = sums if total is None else total.combined(sums)
        count += 1
    if total is None:
        raise ValueError("a head is fitted to one image at least")
    return total, count
