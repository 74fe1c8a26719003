"""Slow, obvious versions of what the package computes, to compare with."""

import itertools
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor


def exact_pixel_metrics(
    anomaly_maps: list[np.ndarray], masks: list[np.ndarray]
) -> dict[str, float]:
    """Every pixel kept, every distinct score a threshold; names as in `PixelResult`."""
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map in anomaly_maps])
    is_anomalous = np.concatenate([mask.ravel() for mask in masks])
    thresholds = np.unique(scores)[::-1]
    true_positives = count_at_least(scores[is_anomalous], thresholds)
    flagged = count_at_least(scores, thresholds)
    return {
        "auroc": float(roc_auc_score(is_anomalous, scores)),
        "ap": float(average_precision_score(is_anomalous, scores)),
        "f1max": float((2 * true_positives / (flagged + is_anomalous.sum())).max()),
        "aupro": exact_aupro(anomaly_maps, masks, limit=0.3),
        "aupro_005": exact_aupro(anomaly_maps, masks, limit=0.05),
    }


def exact_aupro(anomaly_maps: list[np.ndarray], masks: list[np.ndarray], *, limit: float) -> float:
    """Area under FPR → mean overlap per region up to the limit, one trapezoid after another."""
    pairs = list(zip(anomaly_maps, masks, strict=True))
    normal = np.concatenate([anomaly_map[~mask] for anomaly_map, mask in pairs])
    regions = [
        np.array([anomaly_map[position] for position in region])
        for anomaly_map, mask in pairs
        for region in connected_regions(mask)
    ]
    thresholds = np.unique(np.concatenate([normal, *regions]))[::-1]
    rates = count_at_least(normal, thresholds) / len(normal)
    overlaps = np.mean([count_at_least(r, thresholds) / len(r) for r in regions], axis=0)
    area, last_rate, last_overlap = 0.0, 0.0, 0.0
    for rate, overlap in zip(rates, overlaps, strict=True):
        if rate > limit:
            overlap_at_limit = last_overlap + (overlap - last_overlap) * (limit - last_rate) / (
                rate - last_rate
            )
            area += (limit - last_rate) * (last_overlap + overlap_at_limit) / 2
            break
        area += (rate - last_rate) * (last_overlap + overlap) / 2
        last_rate, last_overlap = rate, overlap
    return float(area / limit)


def count_at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """For each threshold, how many scores reach it."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")


def connected_regions(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """8-connected regions by flood fill, each a list of (row, column)."""
    unseen = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True)}
    regions = []
    while unseen:
        region = [unseen.pop()]
        for row, column in region:  # grows while it is walked
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & unseen
            unseen -= around
            region.extend(around)
        regions.append(region)
    return regions


def best_f1(scores: np.ndarray, is_anomalous: np.ndarray) -> float:
    """The best F1 over every threshold that is one of the scores."""
    results = []
    for threshold in scores:
        is_flagged = scores >= threshold
        hits = np.sum(is_flagged & is_anomalous)
        results.append(2 * hits / (is_flagged.sum() + is_anomalous.sum()))
    return float(max(results))


def area_resize_by_loops(mask: np.ndarray, size: int) -> np.ndarray:
    """Area-average resize and > 1/2, in fractions, one source pixel at a time."""
    height, width = mask.shape
    row_step, column_step = Fraction(height, size), Fraction(width, size)
    result = np.zeros((size, size), dtype=bool)
    for row, column in np.ndindex(size, size):
        covered = Fraction(0)
        for i, j in np.ndindex(height, width):
            tall = min((row + 1) * row_step, i + 1) - max(row * row_step, i)
            wide = min((column + 1) * column_step, j + 1) - max(column * column_step, j)
            if mask[i, j] and tall > 0 and wide > 0:
                covered += tall * wide
        result[row, column] = covered / (row_step * column_step) > Fraction(1, 2)
    return result


def halo_attention_by_loops(
    x: Tensor,
    weights: Mapping[str, Tensor],
    *,
    block: int,
    halo: int,
    heads: int,
) -> Tensor:
    """Halo attention in float64, one query after another, one key after another."""
    array = {name: tensor.detach().double().numpy() for name, tensor in weights.items()}
    x_BHWC = x.detach().double().permute(0, 2, 3, 1).numpy()
    batch, height, width, channels = x_BHWC.shape
    head_dim, window = array["rel_height"].shape[1], block + 2 * halo
    shape = (batch, height, width, heads, head_dim)
    q = (x_BHWC @ array["to_q.weight"].T).reshape(shape) * head_dim**-0.5
    k, v = (t.reshape(shape) for t in np.split(x_BHWC @ array["to_kv.weight"].T, 2, axis=-1))
    out = np.zeros((batch, height, width, channels))
    for image, row, column in np.ndindex(batch, height, width):
        top, left = row // block * block - halo, column // block * block - halo
        logits, values = [], []
        for i in range(top, top + window):
            for j in range(left, left + window):
                if not (0 <= i < height and 0 <= j < width):
                    continue
                position = (
                    array["rel_height"][i - row + halo + window - 1]
                    + array["rel_width"][j - column + halo + window - 1]
                )
                logits.append((q[image, row, column] * (k[image, i, j] + position)).sum(-1))
                values.append(v[image, i, j])
        shares = np.exp(np.array(logits) - np.max(logits, axis=0))
        shares /= shares.sum(0)
        mixed = (shares[..., None] * np.array(values)).sum(0)
        out[image, row, column] = array["to_out.weight"] @ mixed.ravel() + array["to_out.bias"]
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def mean_of_values_by_loops(
    x: Tensor, weights: Mapping[str, Tensor], *, block: int, halo: int
) -> Tensor:
    """The mean of V over the real positions of each window, through the output projection."""
    v = F.linear(x.movedim(1, -1), weights["to_kv.weight"]).chunk(2, dim=-1)[1]
    out = torch.zeros_like(x)
    for row in range(0, x.shape[2], block):
        for column in range(0, x.shape[3], block):
            window = v[
                :,
                max(row - halo, 0) : row + block + halo,
                max(column - halo, 0) : column + block + halo,
            ]
            mixed = F.linear(window.mean((1, 2)), weights["to_out.weight"], weights["to_out.bias"])
            out[:, :, row : row + block, column : column + block] = mixed[:, :, None, None]
    return out


def unfolded_attention(
    x: Tensor,
    weights: Mapping[str, Tensor],
    *,
    block: int,
    halo: int,
    heads: int,
    masked: Literal["padding", "inside"] = "padding",
) -> Tensor:
    """Halo attention on a grid of whole blocks; windows are cut out before they are projected.

    With ``inside`` masked it is what the published code computes: real positions are masked, the
    zeros around the grid are attended, and where there are none the softmax is uniform.
    """
    channels, height, width = x.shape[1:]
    window = block + 2 * halo
    head_dim = weights["rel_height"].shape[1]

    def windows(grid: Tensor) -> Tensor:
        """(B, C, H, W) → (B, blocks, window², C)."""
        columns = F.unfold(grid, window, stride=block, padding=halo)
        cut: Tensor = columns.unflatten(1, (grid.shape[1], window**2)).permute(0, 3, 2, 1)
        return cut

    def per_head(cells: Tensor) -> Tensor:
        """(B, blocks, cells, heads·head_dim) → (B, blocks, heads, cells, head_dim)."""
        split: Tensor = cells.unflatten(-1, (heads, head_dim)).transpose(2, 3)
        return split

    queried = F.unfold(x, block, stride=block).unflatten(1, (channels, block**2))
    q = per_head(F.linear(queried.permute(0, 3, 2, 1), weights["to_q.weight"])) * head_dim**-0.5
    k, v = (per_head(t) for t in F.linear(windows(x), weights["to_kv.weight"]).chunk(2, dim=-1))
    query, key = torch.arange(block**2)[:, None], torch.arange(window**2)
    row = key // window - query // block + window - 1
    column = key % window - query % block + window - 1
    positions = weights["rel_height"][row] + weights["rel_width"][column]
    logits = q @ k.transpose(-1, -2) + torch.einsum("bnhpd,pkd->bnhpk", q, positions)
    is_inside = windows(torch.ones(1, 1, height, width))[..., 0].bool()
    is_masked = is_inside if masked == "inside" else ~is_inside
    logits = logits.masked_fill(is_masked[:, :, None, None], -torch.finfo(logits.dtype).max)
    mixed = (logits.softmax(-1) @ v).transpose(2, 3).flatten(-2)
    out = F.linear(mixed, weights["to_out.weight"], weights["to_out.bias"])
    return F.fold(out.permute(0, 3, 2, 1).flatten(1, 2), (height, width), block, stride=block)


def vgg_taps(image: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Activations relu1_1 to relu3_4 of VGG19, every convolution reflect-padded by one."""
    taps, x, layer = {}, image, 0
    for stage, convolutions in enumerate((2, 2, 4), start=1):
        for number in range(1, convolutions + 1):
            x = F.pad(x, (1, 1, 1, 1), mode="reflect")
            x = F.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"]).clamp_min(0)
            taps[f"relu{stage}_{number}"] = x
            layer += 2
        x = F.max_pool2d(x, 2)
        layer += 1
    return taps


def nearest(x: Tensor, height: int, width: int) -> Tensor:
    """Resize by picking the cell at or before each target's place."""
    rows = torch.arange(height) * x.shape[2] // height
    columns = torch.arange(width) * x.shape[3] // width
    return x[:, :, rows][..., columns]


def features_from(image: Tensor, weights: Mapping[str, Tensor], *, padded: bool) -> Tensor:
    """Section B: nearest to the image's size, then the mean of 4×4.

    True for `padded` is the published code: all taps but the last carry the next convolution's
    reflected pixel.
    """
    taps = vgg_taps(image, weights)
    on_grid = []
    for name in ("relu1_1", "relu2_1", "relu3_1", "relu3_4"):
        tap = taps[name]
        if padded and name != "relu3_4":
            tap = F.pad(tap, (1, 1, 1, 1), mode="reflect")
        on_grid.append(F.avg_pool2d(nearest(tap, *image.shape[2:]), 4, stride=4))
    return torch.cat(on_grid, dim=1)


def averaged_by_loops(features: Tensor) -> Tensor:
    """The mean of the 3×3 places around each, of those that exist: (B, C, h, w) → the same."""
    out = torch.zeros_like(features)
    for row, column in np.ndindex(*features.shape[2:]):
        rows = slice(max(0, row - 1), row + 2)
        columns = slice(max(0, column - 1), column + 2)
        out[:, :, row, column] = features[:, :, rows, columns].mean((2, 3))
    return out


def gaussian_map_by_loops(
    features: Tensor, good: Tensor, *, ridge: float, denominator: int
) -> Tensor:
    """Mahalanobis distance to the good images' features, one place after another, in float64.

    Of (B, C, h, w) and (N, C, h, w) it makes (B, h, w); squares are divided by the denominator.
    """
    queries, good = averaged_by_loops(features.double()), averaged_by_loops(good.double())
    out = torch.zeros(len(queries), *queries.shape[2:], dtype=torch.float64)
    for row, column in np.ndindex(*queries.shape[2:]):
        cells = good[:, :, row, column]
        centred = cells - cells.mean(0)
        covariance = centred.T @ centred / denominator + ridge * torch.eye(cells.shape[1])
        inverse = torch.linalg.inv(covariance)
        for image, query in enumerate(queries[:, :, row, column]):
            off = query - cells.mean(0)
            out[image, row, column] = (off @ inverse @ off).sqrt()
    return out


def nearest_map_by_loops(features: Tensor, good: Tensor) -> Tensor:
    """Distance to the nearest cell of the good images, anywhere, one cell after another."""
    queries, good = averaged_by_loops(features.double()), averaged_by_loops(good.double())
    cells = good.movedim(1, -1).flatten(0, 2)
    out = torch.zeros(len(queries), *queries.shape[2:], dtype=torch.float64)
    for image, row, column in np.ndindex(*out.shape):
        out[image, row, column] = (cells - queries[image, :, row, column]).norm(dim=1).min()
    return out


def nearest_halo_map_by_loops(
    features: Tensor, memory: Tensor, covariance: Tensor, *, block: int, halo: int
) -> Tensor:
    """Distance to the nearest cell in a window of the memory, one key after another.

    Args:
        features: (B, C, h, w).
        memory: (N, C, h, w), good images.
        covariance: (C, C), under which distances are taken.
        block: side of the square of cells that share a window.
        halo: how many cells wider than that it is, on each side.
    """
    inverse = torch.linalg.inv(covariance.double())
    queries, memory = features.double(), memory.double()
    height, width = queries.shape[2:]
    out = torch.full((len(queries), height, width), torch.inf, dtype=torch.float64)
    for image, row, column in np.ndindex(*out.shape):
        top, left = row // block * block - halo, column // block * block - halo
        for i in range(max(0, top), min(height, top + block + 2 * halo)):
            for j in range(max(0, left), min(width, left + block + 2 * halo)):
                off = memory[:, :, i, j] - queries[image, :, row, column]
                distance = ((off @ inverse) * off).sum(1).sqrt().min()
                out[image, row, column] = min(out[image, row, column], distance)
    return out


def attended_by_loops(
    features: Tensor,
    memory: Tensor,
    covariance: Tensor,
    *,
    block: int,
    groups: int,
    nearest: int,
    left_out: int | None,
) -> Tensor:
    """Mean of the nearest good cells in a window, one query after another, as they come.

    Candidates are the nearest cell of each group of images in each of the window's nine blocks.

    Args:
        features: (B, C, h, w).
        memory: (N, C, h, w), good images, of which the first fill the first group.
        covariance: (C, C), under which distances are taken.
        block: side of a block.
        groups: of images, all as large but the last.
        nearest: how many candidates.
        left_out: which of the good images is not looked at.

    Returns:
        (B, C, h, w).
    """
    inverse = torch.linalg.inv(covariance.double())
    queries, memory = features.double(), memory.double()
    size = -(-len(memory) // groups)
    height, width = queries.shape[2:]
    out = torch.zeros_like(queries)
    for image, row, column in np.ndindex(len(queries), height, width):
        found: dict[tuple[int, int, int], tuple[float, Tensor]] = {}
        for (i, j), each in itertools.product(np.ndindex(height, width), range(len(memory))):
            down, right = i // block - row // block, j // block - column // block
            if max(abs(down), abs(right)) > 1 or each == left_out:
                continue
            off = memory[each, :, i, j] - queries[image, :, row, column]
            squared = float(off @ inverse @ off)
            key = (down, right, each // size)
            if key not in found or squared < found[key][0]:
                found[key] = squared, memory[each, :, i, j]
        best = sorted(found.values(), key=lambda candidate: candidate[0])[:nearest]
        out[image, :, row, column] = torch.stack([cell for _, cell in best]).mean(0)
    return out


def rebuilding_map_by_loops(
    features: Tensor,
    attended: Tensor,
    good: Tensor,
    attended_good: Tensor,
    *,
    penalty: float,
    shrinkage: float,
    ridge: float,
) -> Tensor:
    """Mahalanobis distance of what a linear map of attended cells leaves, place after place.

    Of (B, C, h, w) twice and of (N, C, h, w) twice it makes (B, h, w), in float64.
    """
    given = (attended_good - attended_good.mean(0)).double().movedim(1, -1).flatten(0, 2)
    wanted = (good - good.mean(0)).double().movedim(1, -1).flatten(0, 2)
    squares = given.T @ given
    squares += penalty * squares.diagonal().mean() * torch.eye(len(squares))
    rebuilding = torch.linalg.solve(squares, given.T @ wanted)

    def residual(cells: Tensor, values: Tensor) -> Tensor:
        left = cells.double() - torch.einsum("nchw,cd->ndhw", values.double(), rebuilding)
        padded = F.pad(left, (1, 1, 1, 1), mode="replicate")
        height, width = left.shape[2:]
        soft = torch.zeros_like(left)
        for i, j in np.ndindex(3, 3):
            weight = (1, 4, 1)[i] * (1, 4, 1)[j] / 36
            soft += weight * padded[..., i : i + height, j : j + width]
        return soft

    known, queries = residual(good, attended_good), residual(features, attended)
    centred = known - known.mean(0)
    covariances = torch.einsum("nchw,ndhw->hwcd", centred, centred) / (len(known) - 1)
    everywhere = covariances.mean((0, 1))
    out = torch.zeros(len(queries), *queries.shape[2:], dtype=torch.float64)
    for row, column in np.ndindex(*queries.shape[2:]):
        covariance = (1 - shrinkage) * covariances[row, column] + shrinkage * everywhere
        inverse = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance)))
        off = queries[:, :, row, column] - known.mean(0)[:, row, column]
        out[:, row, column] = ((off @ inverse) * off).sum(1).sqrt()
    return out


def paper_network(image: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The paper's forward pass, sections B to E: features, rebuilt, image, logits.

    Weights are named by stage: ``trunk.0.weight``, ``head.conv.weight``, ``encoder1.conv1.weight``,
    ``decoder5.attention.to_q.weight``, ``image1.bias``, ``classifier.weight`` and so on.
    """

    def part(prefix: str) -> dict[str, Tensor]:
        start = f"{prefix}."
        return {n.removeprefix(start): t for n, t in weights.items() if n.startswith(start)}

    def norm(x: Tensor, prefix: str) -> Tensor:
        scale, shift, mean, variance = (
            weights[f"{prefix}.{name}"][:, None, None]
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def convolve(x: Tensor, name: str, *, kernel: int, transposed: bool) -> Tensor:
        weight = weights[f"{name}.weight"]
        if transposed:
            weight = weight.transpose(0, 1).flip(2, 3)
        assert weight.shape[-2:] == (kernel, kernel)
        return F.conv2d(x, weight, padding=kernel // 2)

    def block(x: Tensor, name: str, *, kernel: int, heads: int, transposed: bool) -> Tensor:
        inner = convolve(x, f"{name}.conv1", kernel=1, transposed=transposed)
        inner = norm(inner, f"{name}.norm1").clamp_min(0)
        inner = unfolded_attention(inner, part(f"{name}.attention"), block=12, halo=2, heads=heads)
        out = convolve(inner.clamp_min(0), f"{name}.conv2", kernel=kernel, transposed=transposed)
        out = norm(out, f"{name}.norm2")
        if f"{name}.skip.weight" in weights:
            x = convolve(x, f"{name}.skip", kernel=1, transposed=transposed)
            x = norm(x, f"{name}.skipnorm")
        return (out + x).clamp_min(0)

    features = features_from(image, part("trunk"), padded=True)
    x = norm(F.conv2d(features, weights["head.conv.weight"]), "head.norm").clamp_min(0)
    for number, kernel, heads in ((1, 3, 4), (2, 3, 8), (3, 5, 8), (4, 5, 8)):
        x = block(x, f"encoder{number}", kernel=kernel, heads=heads, transposed=False)
    for number, kernel, heads in ((1, 3, 4), (2, 3, 8), (3, 3, 8), (4, 5, 8), (5, 1, 8)):
        x = block(x, f"decoder{number}", kernel=kernel, heads=heads, transposed=True)
    rebuilt = x = nearest(x, 64, 64)
    for number in range(1, 8):
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        x = F.conv2d(x, weights[f"image{number}.weight"], weights[f"image{number}.bias"])
        x = x.clamp_min(0)
        if number > 5:
            x = nearest(x, 2 * x.shape[2], 2 * x.shape[3])
    logits = x.flatten(1) @ weights["classifier.weight"].T + weights["classifier.bias"]
    return features, rebuilt, x, logits
