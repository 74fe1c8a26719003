"""A trained student → the file that is shipped: batch norm folded, taps of mean 1, float16."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from haloae.network.trunks import TRUNKS, ResNet, Vgg
from haloae.network.weights import digest
from pretrain.pictures import normalised_crops
from pretrain.train import ConvNorm, Student


@torch.no_grad()
def export(student: Student, trunk: str, pictures: Tensor, path: Path, seed: int) -> str:
    """Write the weights file.

    Returns:
        The digest of its tensors, as `haloae.network.weights.digest` gives it.
    """
    device = next(student.parameters()).device

    inputs = [batch.to(device) for batch in normalised_crops(pictures, seed)]
    _settle(student, inputs)
    student.eval()
    layers = TRUNKS[trunk].build()
    layers.load_state_dict(folded(student.trunk), assign=True)
    layers.to(device)
    rescale(layers, inputs)
    tensors = {
        name: tensor.to("cpu", torch.float16).contiguous()
        for name, tensor in layers.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"trunk": trunk})
    return digest(tensors)


def _settle(student: Student, inputs: list[Tensor]) -> None:
    """Batch norm's statistics anew, at the size of images that detectors see."""
    norms = [module for module in student.trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    student.train()
    for batch in inputs:
        for _ in student.trunk(batch):
            pass


def folded(trunk: nn.Module) -> dict[str, Tensor]:
    """The trunk's tensors by the names they have without batch norm."""
    tensors = {}
    for name, module in trunk.named_modules():
        if isinstance(module, ConvNorm):
            norm = module.norm
            weight, bias = fuse_conv_bn_weights(
                module.conv.weight, None, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias,
            )  # fmt: skip
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight.detach(), bias.detach()
    return tensors


def rescale(layers: nn.Module, inputs: list[Tensor]) -> None:
    """Scale the layers so that every tap's mean activation is 1: no tap outweighs the others.

    ReLU passes a positive factor on, so what is computed stays the same up to that factor.
    """
    means = [0.0] * len(list(layers(inputs[0])))
    for batch in inputs:
        for index, tap in enumerate(layers(batch)):
            means[index] += tap.mean().item() / len(inputs)
    if isinstance(layers, Vgg):
        before = 1.0
        targets = dict(zip(layers.tapped, means, strict=True))
        for index, conv in enumerate(layers):
            if not isinstance(conv, nn.Conv2d):
                continue
            # A layer between two taps takes the scale of the later one.
            after = 1 / targets[next(tap for tap in layers.tapped if tap > index)]
            _scale(conv, before, after)
            before = after
        return
    assert isinstance(layers, ResNet)  # noqa: S101
    before = 1 / means[0]
    _scale(layers.conv1, 1.0, before)
    for stage, mean in enumerate(means, 1):
        after = 1 / mean
        for block in layers.get_submodule(f"layer{stage}").children():
            _scale(block.conv1, before, 1.0)
            _scale(block.conv2, 1.0, after)
            if not isinstance(block.downsample, nn.Identity):
                _scale(block.downsample[0], before, after)
            before = after


def _scale(conv: nn.Conv2d, before: float, after: float) -> None:
    """Expect inputs scaled by `before`, give outputs scaled by `after`."""
    conv.weight.mul_(after / before)
    assert conv.bias is not None  # noqa: S101 - every layer of a trunk has one
    conv.bias.mul_(after)
