"""A trunk with batch norm learns in two phases, resumable.

First to tell pictures apart and to see defects; then, besides, that defects are far from what is
good (`pretrain.distance`).
"""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haloae.machine import has_bfloat16
from haloae.network.trunks import TRUNKS, Trunk, normalise
from pretrain.distance import distance_losses, log_distances
from pretrain.pictures import Batch, make_batch, make_pairs, normalised_crops

CELL = 4
"""Image pixels per cell of the defect map, in each direction."""
DEFECT_SHARE = 0.2
"""Least share of a cell's pixels that must be changed for it to count as defective."""
EARLY_SHARE = 0.8


class Recipe(NamedTuple):
    """All that decides the result, besides the pictures."""

    trunk: str
    steps: int
    """Of the first phase."""
    size: int
    """Side of the crops, in pixels."""
    late_size: int
    """That in the last fifth of the first phase: detectors see larger images."""
    tuning_steps: int
    """Of the second phase; 0 leaves it out."""
    photo_stride: int
    """Every how many-th photograph is used: as many classes as the steps can teach."""
    textures: int
    batch: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 5e-5
    smoothing: float = 0.1
    defect_weight: float = 1.0
    tuning_rate: float = 0.05
    """Learning rate of the second phase."""
    longest_gradient: float = 0.0
    """Longer ones of the second phase are shortened to it; 0 leaves them."""
    naming_weight: float = 0.2
    """That of telling pictures apart, in the second phase."""
    distance_weight: float = 3.0
    """That of each of the two losses of distances."""
    floor: float = 0.1
    """See `log_distances`."""
    dim_share: float = 0.0
    """Share of the pairs that are dim, and of those that are flat."""
    start_share: float = 0.0
    """Share of the weights that a refinement started from in those it ends with."""
    seed: int = 0
    start: str = ""
    """Digest of the weights that the trunk starts from; of none, its filters are random."""

    @property
    def all_steps(self) -> int:
        """Steps of both phases."""
        return self.steps + self.tuning_steps

    def is_tuning(self, step: int) -> bool:
        """Whether a step is one of the second phase."""
        return step >= self.steps

    def size_at(self, step: int) -> int:
        """Side of the crops of a step."""
        is_late = EARLY_SHARE * self.steps <= step < self.steps
        return self.late_size if is_late else self.size

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        if self.is_tuning(step):
            return self.tuning_rate * _schedule((step - self.steps) / self.tuning_steps)
        return self.learning_rate * _schedule(step / self.steps)


def geometry(conv: nn.Conv2d) -> list[tuple[int, int]]:
    """Kernel, stride and padding of a trunk's convolution, as pairs."""
    assert not isinstance(conv.padding, str)  # noqa: S101 - no trunk pads by name
    return [(rows, columns) for rows, columns in (conv.kernel_size, conv.stride, conv.padding)]


class ConvNorm(nn.Module):
    """A convolution of the trunk and the batch norm that is folded into it later."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        kernel, stride, padding = geometry(conv)
        self.conv = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            kernel,
            stride,
            padding,
            groups=conv.groups,
            padding_mode=conv.padding_mode,
            bias=False,
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution."""
        normed: Tensor = self.norm(self.conv(x))
        return normed


class Student(nn.Module):
    """A trunk in training: its taps, a head that names the picture, one that maps defects.

    Args:
        trunk: which.
        classes: pictures there are.
    """

    def __init__(self, trunk: Trunk, classes: int) -> None:
        super().__init__()
        self.trunk = with_batch_norm(trunk.build())
        self.strides = [tap.stride for tap in trunk.taps]
        self.norms = nn.ModuleList(nn.BatchNorm2d(tap.channels) for tap in trunk.taps)
        self.seen = nn.ModuleList(nn.Conv2d(tap.channels, 1, 1) for tap in trunk.taps)
        self.neck = nn.Sequential(
            nn.Conv2d(trunk.taps[-1].channels, 512, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(512),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.names = nn.Linear(512, classes)
        # From the log of a squared distance to the logit of a defect.
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.offset = nn.Parameter(torch.tensor(-1.0))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(B, 3, S, S), normalised → logits of pictures (B, N), of defects (B, S/4, S/4), taps."""
        grid = images.shape[-1] // CELL
        defects: Tensor | float = 0.0
        taps = []
        heads = zip(self.strides, self.norms, self.seen, self.trunk(images), strict=True)
        for stride, norm, seen, x in heads:
            taps.append(x)
            at = F.avg_pool2d(x, CELL // stride) if stride < CELL else x
            logit = seen(norm(at))
            if stride > CELL:
                logit = F.interpolate(logit, size=(grid, grid), mode="bilinear")
            defects = defects + logit[:, 0]
        assert isinstance(defects, Tensor)  # noqa: S101 - there is a tap at least
        return self.names(self.neck(taps[-1])), defects, taps

    def features(self, taps: list[Tensor], grid: int) -> Tensor:
        """Taps → (B, C, grid, grid) float32: all on one grid, as a detector sees them."""
        on_grid = []
        for stride, tap in zip(self.strides, taps, strict=True):
            x = tap.float()
            if stride < CELL:
                x = F.avg_pool2d(x, CELL // stride)
            elif stride > CELL:
                x = F.interpolate(x, size=(grid, grid), mode="bilinear")
            on_grid.append(x)
        return torch.cat(on_grid, dim=1)


def with_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every convolution, in place, by one with batch norm."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(module, name, ConvNorm(child))
        else:
            with_batch_norm(child)
    return module


@torch.no_grad()
def with_weights(trunk: nn.Module, tensors: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> None:
    """Give a trunk with batch norm the weights of one without: what it computes is the same.

    Args:
        trunk: of `with_batch_norm`.
        tensors: by the names they have without batch norm, as `pretrain.export.folded` gives them.
        inputs: normalised images, over which the mean and variance of each filter are taken.
    """
    layers = {n: m for n, m in trunk.named_modules() if isinstance(m, ConvNorm)}
    moments: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = []
    for name, layer in layers.items():
        # Filters of the length that random ones have: batch norm undoes it, the optimiser feels it.
        usual = layer.conv.weight.flatten(1).norm(dim=1).mean()
        weight = tensors[f"{name}.weight"].to(layer.conv.weight)
        length = weight.flatten(1).norm(dim=1).clamp_min(1e-6) / usual
        layer.conv.weight.copy_(weight / length.view(-1, 1, 1, 1))
        layer.norm.reset_running_stats()
        layer.norm.weight.copy_(length * (1 + layer.norm.eps) ** 0.5)
        layer.norm.bias.copy_(tensors[f"{name}.bias"])

        def measure(
            module: nn.Module, given: tuple[Tensor, ...], x: Tensor, name: str = name
        ) -> None:
            moments[name].append(torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))]))

        hooks.append(layer.conv.register_forward_hook(measure))
    trunk.eval()
    device = next(trunk.parameters()).device
    for batch in inputs:
        list(trunk(batch.to(device)))
    for name, layer in layers.items():
        mean, square = torch.stack(moments[name]).mean(0)
        layer.norm.running_mean = mean
        layer.norm.running_var = (square - mean.square()).clamp_min(0)
        layer.norm.bias.add_(layer.norm.weight / (1 + layer.norm.eps) ** 0.5 * mean)
        layer.norm.weight.mul_(
            ((layer.norm.running_var + layer.norm.eps) / (1 + layer.norm.eps)).sqrt()
        )
    for hook in hooks:
        hook.remove()


def losses(
    student: Student,
    network: nn.Module,
    batch: Batch,
    recipe: Recipe,
    pairs: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a step descends, and its parts for the log.

    Args:
        student: whose features and scale of distances are taken.
        network: the same, or compiled.
        batch: of pairs if `pairs` is given.
        recipe: gives the weights.
        pairs: draws the banks; None leaves distances out, as the first phase does.
    """
    images = normalise(batch.images).contiguous(memory_format=torch.channels_last)
    mixed = has_bfloat16(images.device)
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=mixed):
        pictures, defects, taps = network(images)
    naming = F.cross_entropy(pictures.float(), batch.classes, label_smoothing=recipe.smoothing)
    share = F.avg_pool2d(batch.changed.float().unsqueeze(1), CELL)[:, 0]
    is_defect = (share >= DEFECT_SHARE).float()
    # Cells that a defect only touches are left out.
    counts = ((share == 0) | (is_defect > 0)).float()
    seeing = F.binary_cross_entropy_with_logits(
        defects.float(), is_defect, counts * (1 + 2 * is_defect)
    )
    accuracy = (pictures.argmax(1) == batch.classes).float().mean()
    parts = {"naming": naming, "seeing": seeing, "accuracy": accuracy}
    if pairs is None:
        return naming + recipe.defect_weight * seeing, parts
    logs = log_distances(student.features(taps, share.shape[-1]), pairs, recipe.floor)
    second = len(logs)
    distance, ranking = distance_losses(
        student.scale * logs + student.offset, is_defect[second:], counts[second:]
    )
    loss = (
        recipe.naming_weight * naming
        + recipe.defect_weight * seeing
        + recipe.distance_weight * (distance + ranking)
    )
    return loss, {**parts, "distance": distance, "ranking": ranking}


def train(
    pictures: Tensor,
    recipe: Recipe,
    out: Path,
    *,
    device: torch.device,
    minutes: float,
    start: Mapping[str, Tensor] | None = None,
) -> tuple[Student, dict[str, Any]]:
    """Go on from the checkpoint in `out`, if there is one, for so many minutes or to the end.

    Args:
        pictures: (N, 3, S, S) uint8, a class each.
        recipe: what to do.
        out: folder of the checkpoint and the log.
        device: where.
        minutes: after which it stops.
        start: the trunk's tensors, without batch norm, that `recipe.start` is the digest of.

    Returns:
        The student, and its state: `step`, `seconds`.
    """
    torch.manual_seed(recipe.seed)
    pictures = pictures.to(device)
    student = Student(TRUNKS[recipe.trunk], len(pictures)).to(device)
    student.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        student.parameters(), recipe.learning_rate, momentum=0.9, nesterov=True,
        weight_decay=recipe.weight_decay,
    )  # fmt: skip
    state: dict[str, Any] = {"step": 0, "seconds": 0.0}
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        if saved["recipe"] != recipe._asdict():
            raise SystemExit(f"{checkpoint}: is of another recipe: choose another --out.")
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    elif start is not None:
        with_weights(student.trunk, start, normalised_crops(pictures, recipe.seed))
    compiled: Any = torch.compile(student) if device.type == "cuda" else student
    began, before = time.monotonic(), state["seconds"]
    logged, sums = state["step"], Counter[str]()
    student.train()
    while state["step"] < recipe.all_steps and time.monotonic() - began < 60 * minutes:
        step = state["step"]
        if step == recipe.steps:
            optimizer.state.clear()  # no momentum from the first phase
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        generator = torch.Generator(device).manual_seed(recipe.seed * 10**9 + step)
        size, count = recipe.size_at(step), recipe.batch
        pairs = generator if recipe.is_tuning(step) else None
        if pairs:
            batch = make_pairs(pictures, size, count, pairs, recipe.dim_share)
        else:
            batch = make_batch(pictures, size, count, generator)
        loss, parts = losses(student, compiled, batch, recipe, pairs)
        optimizer.zero_grad()
        loss.backward()
        if recipe.is_tuning(step) and recipe.longest_gradient:
            nn.utils.clip_grad_norm_(student.parameters(), recipe.longest_gradient)
        optimizer.step()
        sums.update({name: part.item() for name, part in parts.items()})
        state["step"] += 1
        state["seconds"] = before + time.monotonic() - began
        if state["step"] % 200 == 0 or state["step"] in (recipe.steps, recipe.all_steps):
            count = state["step"] - logged
            row = {**state, **{name: total / count for name, total in sums.items()}}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(" ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
            logged, sums = state["step"], Counter[str]()
            _save(checkpoint, student, optimizer, recipe, state)
    _save(checkpoint, student, optimizer, recipe, state)
    return student, state


def _schedule(share: float) -> float:
    """Warm up over a fiftieth, then a cosine to zero."""
    return min(1.0, share * 50 + 0.01) * 0.5 * (1 + math.cos(math.pi * share))


def _save(
    path: Path,
    student: Student,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    state: dict[str, Any],
) -> None:
    part = path.with_suffix(".part")
    torch.save(
        {
            "student": student.state_dict(),
            "optimizer": optimizer.state_dict(),
            "recipe": recipe._asdict(),
            "state": state,
        },
        part,
    )
    part.replace(path)
