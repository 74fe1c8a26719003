"""A trained student → the file that is shipped: batch norm folded, taps of mean 1, float16."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from haloae.network.trunks import TRUNKS
from haloae.network.trunks.resnet18 import ResNet
from haloae.network.trunks.vgg19 import Vgg
from pretrain.train import ConvNorm, with_batch_norm, with_weights


@torch.no_grad()
def finished(trunk: nn.Module, name: str, inputs: list[Tensor]) -> dict[str, Tensor]:
    """The tensors that are shipped, of a trunk with batch norm.

    Args:
        trunk: of `with_batch_norm`; its statistics are taken anew.
        name: in `TRUNKS`.
        inputs: of `normalised_crops`.
    """
    _settle(trunk, inputs)
    trunk.eval()
    layers = TRUNKS[name].build()
    layers.load_state_dict(folded(trunk), assign=True)
    rescale(layers, inputs)
    return {
        key: tensor.to("cpu", torch.float16).contiguous()
        for key, tensor in layers.state_dict().items()
    }


def mixed(
    name: str,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    start_share: float,
    inputs: list[Tensor],
) -> nn.Module:
    """A trunk with batch norm whose weights lie between those before and after a refinement.

    On that line features lose little of what either end can do (Wortsman et al., "Robust
    fine-tuning of zero-shot models", CVPR 2022, section 3).

    Args:
        name: of the trunk, in `TRUNKS`.
        start: its tensors before, without batch norm.
        end: those after.
        start_share: 0 is the end, 1 the start.
        inputs: of `normalised_crops`.
    """
    torch.manual_seed(0)  # of the filters that are replaced, which give the scale
    trunk = with_batch_norm(TRUNKS[name].build())
    states = []
    for tensors in (start, end):
        with_weights(trunk, tensors, inputs)
        states.append({key: tensor.clone() for key, tensor in trunk.state_dict().items()})
    before, after = states
    trunk.load_state_dict(
        {
            key: after[key].lerp(before[key], start_share)
            for key in before
            if before[key].is_floating_point()
        },
        strict=False,  # batch norm's counters, which nothing reads, stay
    )
    return trunk


def _settle(trunk: nn.Module, inputs: list[Tensor]) -> None:
    """Batch norm's statistics anew, at the size of images that detectors see."""
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    trunk.train()
    for batch in inputs:
        for _ in trunk(batch):
            pass


def folded(trunk: nn.Module) -> dict[str, Tensor]:
    """The trunk's tensors by the names they have without batch norm."""
    tensors = {}
    for name, module in trunk.named_modules():
        if isinstance(module, ConvNorm):
            norm = module.norm
            assert norm.running_mean is not None  # noqa: S101 - it keeps running statistics
            assert norm.running_var is not None  # noqa: S101
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
            _scale(block.get_submodule("conv1"), before, 1.0)
            _scale(block.get_submodule("conv2"), 1.0, after)
            if not isinstance(block.get_submodule("downsample"), nn.Identity):
                _scale(block.get_submodule("downsample.0"), before, after)
            before = after


def _scale(conv: nn.Module, before: float, after: float) -> None:
    """Expect inputs scaled by `before`, give outputs scaled by `after`."""
    assert isinstance(conv, nn.Conv2d)  # noqa: S101
    conv.weight.mul_(after / before)
    assert conv.bias is not None  # noqa: S101 - every layer of a trunk has one
    conv.bias.mul_(after)
