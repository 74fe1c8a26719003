"""A trunk with batch norm learns to tell pictures apart and to see defects; resumable."""

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haloae.detection.held_out import normalise
from haloae.network.trunks import TRUNKS, Trunk
from pretrain.pictures import Batch, make_batch

CELL = 4
"""Image pixels per cell of the defect map, in each direction."""
DEFECT_SHARE = 0.2
"""Least share of a cell's pixels that must be changed for it to count as defective."""


EARLY_SHARE = 0.8


class Recipe(NamedTuple):
    """All that decides the result, besides the pictures."""

    trunk: str
    steps: int
    size: int
    """Side of the crops, in pixels."""
    late_size: int
    """That in the last fifth of the steps: detectors see larger images."""
    photo_stride: int
    """Every how many-th photograph is used: as many classes as the steps can teach."""
    textures: int
    batch: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 5e-5
    smoothing: float = 0.1
    defect_weight: float = 1.0
    seed: int = 0

    def size_at(self, step: int) -> int:
        """Side of the crops of a step."""
        return self.size if step < EARLY_SHARE * self.steps else self.late_size


class ConvNorm(nn.Module):
    """A convolution of the trunk and the batch norm that is folded into it later."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            padding_mode=conv.padding_mode,
            bias=False,
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution."""
        return self.norm(self.conv(x))


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

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S), normalised → logits of pictures (B, N) and of defects (B, S/4, S/4)."""
        grid = images.shape[-1] // CELL
        defects: Tensor | float = 0.0
        x = images
        heads = zip(self.strides, self.norms, self.seen, self.trunk(images), strict=True)
        for stride, norm, seen, x in heads:
            at = F.avg_pool2d(x, CELL // stride) if stride < CELL else x
            logit = seen(norm(at))
            if stride > CELL:
                logit = F.interpolate(logit, size=(grid, grid), mode="bilinear")
            defects = defects + logit[:, 0]
        assert isinstance(defects, Tensor)  # noqa: S101 - there is a tap at least
        return self.names(self.neck(x)), defects


def with_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every convolution, in place, by one with batch norm."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(module, name, ConvNorm(child))
        else:
            with_batch_norm(child)
    return module


def losses(student: nn.Module, batch: Batch, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy over pictures, over cells with and without defects, and the accuracy."""
    pictures, defects = student(
        normalise(batch.images).contiguous(memory_format=torch.channels_last)
    )
    naming = F.cross_entropy(pictures.float(), batch.classes, label_smoothing=recipe.smoothing)
    share = F.avg_pool2d(batch.changed.float().unsqueeze(1), CELL)[:, 0]
    is_defect = (share >= DEFECT_SHARE).float()
    # Cells that a defect only touches are left out.
    counts = ((share == 0) | (is_defect > 0)).float() * (1 + 2 * is_defect)
    seeing = F.binary_cross_entropy_with_logits(defects.float(), is_defect, counts)
    return naming, seeing, (pictures.argmax(1) == batch.classes).float().mean()


def train(
    pictures: Tensor, recipe: Recipe, out: Path, *, device: torch.device, minutes: float
) -> tuple[Student, dict[str, Any]]:
    """Go on from the checkpoint in `out`, if there is one, for so many minutes or to the end.

    Returns:
        The student, and its state: `step`, `seconds`.
    """
    torch.manual_seed(recipe.seed)
    pictures = pictures.to(device)
    student = Student(TRUNKS[recipe.trunk], len(pictures)).to(
        device, memory_format=torch.channels_last
    )
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
    compiled = torch.compile(student) if device.type == "cuda" else student
    start, before = time.monotonic(), state["seconds"]
    sums = torch.zeros(3)
    student.train()
    while state["step"] < recipe.steps and time.monotonic() - start < 60 * minutes:
        step = state["step"]
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step / recipe.steps)
        generator = torch.Generator(device).manual_seed(recipe.seed * 10**9 + step)
        batch = make_batch(pictures, recipe.size_at(step), recipe.batch, generator)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            naming, seeing, accuracy = losses(compiled, batch, recipe)
        optimizer.zero_grad()
        (naming + recipe.defect_weight * seeing).backward()
        optimizer.step()
        sums += torch.stack([naming, seeing, accuracy]).detach().cpu()
        state["step"] += 1
        state["seconds"] = before + time.monotonic() - start
        if state["step"] % 200 == 0 or state["step"] == recipe.steps:
            naming_mean, seeing_mean, accuracy_mean = (sums / 200).tolist()
            row = {**state, "naming": naming_mean, "seeing": seeing_mean, "accuracy": accuracy_mean}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(" ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
            sums.zero_()
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
