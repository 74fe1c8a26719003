"""The network in the form it is used in: the same map from less work.

What the map does not need is left out, batch norm is folded into the convolutions before it,
transposed convolutions of stride 1 become the ordinary ones they equal, and attention moves less
data. Every part gives its own form by a method `lean`, of the tools here. Never trained, never
saved.
"""

import copy
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from haloae.network.trunks import Conv2d

if TYPE_CHECKING:
    from haloae.network.haloae import HaloAE

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def lean(network: "HaloAE", *, image: bool, dtype: torch.dtype | None = None) -> "HaloAE":
    """A lean copy of a trained network, in eval mode.

    Args:
        network: as trained; only copied from, and what it learns later is not followed.
        image: True: keep the image decoder, where there is one.
        dtype: of weights and arithmetic; None keeps the network's, and shares the trunk.

    Returns:
        A network whose features, rebuilt features and image are the same up to rounding, and whose
        logits are None.
    """
    made = network.lean(image=image)
    if dtype not in (None, next(made.parameters()).dtype):
        made = copy.deepcopy(made).to(dtype)
    return made.eval()


def with_parts(module: M, **parts: nn.Module | None) -> M:
    """A module like another, but for some of its parts; it shares the others, and all else."""
    made = copy.copy(module)
    # Its own tables of parts, parameters and hooks, of the same entries.
    tables = {k: copy.copy(v) for k, v in vars(module).items() if isinstance(v, dict | set)}
    vars(made).update(tables)
    made._modules.update(parts)
    return made


def frozen(module: M) -> M:
    """The module itself, ready for use: no gradient, and laid out as convolutions like it."""
    return module.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def lean_each(blocks: nn.Sequential) -> nn.Sequential:
    """The same blocks, each in its lean form."""
    return nn.Sequential(*(cast("Any", block).lean() for block in blocks))


def folded(conv: Any, norm: Any) -> nn.Conv2d:  # noqa: ANN401 - a Sequential's parts have no type
    """One ordinary convolution that does what the two do in eval mode.

    Args:
        conv: `nn.Conv2d`, or `nn.ConvTranspose2d` of stride 1 that keeps the size.
        norm: the `nn.BatchNorm2d` after it.
    """
    is_transposed = isinstance(conv, nn.ConvTranspose2d)
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias, transpose=is_transposed,
    )  # fmt: skip
    # A transposed one of stride 1 is correlation with the kernel turned by 180°, padded to the same
    # size.
    one = Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        padding="same" if is_transposed else conv.padding,
    )
    one.weight = nn.Parameter(weight.transpose(0, 1).flip(2, 3) if is_transposed else weight)
    one.bias = bias
    return one
