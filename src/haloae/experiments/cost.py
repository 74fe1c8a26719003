"""What one image costs: multiply-adds, parameters and bytes, block by block.

The network and the detector head are run once, on tensors without memory (`meta`), and each
operation is counted as it is called. So there is no second description of the architecture to keep
right, and a pass at 1024² pixels is counted as fast as one at 32².
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from haloae.config import Config
from haloae.detection.heads import Head, head_of
from haloae.network.branches import RGB
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean
from haloae.outputs.tables import terminal

aten = torch.ops.aten
Operation = torch._ops.OpOverload
KEPT_WHOLE = ("aten::batch_norm", "aten::upsample")
"""Torch would take these apart into operations that no device runs."""


class BlockCost(NamedTuple):
    """What one block costs for one image, in float32 and as the network runs it.

    Multiply-adds are those of convolutions, matrix products and attention. Softmax, norms, ReLU,
    pooling, resizing and biases are not among them: they cost bytes.

    Bytes are what would cross the memory bus if nothing were fused or cached: each operation reads
    its inputs and writes its outputs once, a view moves nothing. Attention from q, k, v to its
    output is one operation, whose pairs are never written.
    """

    name: str
    multiply_adds: int
    parameters: int
    """Those the pass reads, trained or frozen; as in torch, without the norms' running statistics
    and without the reducer's matrix, which is fitted."""
    weight_bytes: int
    """Parameters, running statistics, the reducer's matrix, and what the detector head has learned:
    read once for a whole batch."""
    activation_bytes: int
    """Read and written, for each image of a batch."""
    is_needed: bool
    """False: only training needs it, the anomaly map does not."""

    @property
    def intensity(self) -> float:
        """Multiply-adds for each byte that is read or written, one image at a time."""
        return self.multiply_adds / max(1, self.weight_bytes + self.activation_bytes)


def count_cost(
    config: Config,
    *,
    image_size: int | None = None,
    in_use: bool = False,
    head: Head | None = None,
) -> list[BlockCost]:
    """Count one pass over one image.

    Args:
        config: of the network, and of what its map needs.
        image_size: side of the image in pixels; None: the config's.
        in_use: True: the network as a detector runs it, see `haloae.network.lean`;
            False: all of it, as it is trained.
        head: fitted, of this config and image size; None: one as large as of many images.

    Returns:
        The blocks in the order of the figure: the trunk up to each of its taps; "features", which
        brings the taps to the grid, joins and reduces them; head, "encoder 1" and on, "decoder 1"
        and on, "resize", image decoder, classifier; without those that this network lacks; at the
        end the "detector head".

    Raises:
        ConfigError: network or detector head cannot take an image of this size.
    """
    if image_size is not None:
        config = config.replace(image_size=image_size, view={"canvas": None})
    kind = head_of(config)
    kind.check(config)
    with torch.device("meta"):
        head = copy.deepcopy(head).to("meta") if head else kind.sized(config)
    needed = _Counter(_build(config, in_use=True), head)
    counter = needed if in_use else _Counter(_build(config, in_use=False), head)
    image = torch.empty(1, RGB, *config.canvas, device="meta")
    # Without autograd, operations arrive whole: attention is seen before it is taken apart.
    with torch.inference_mode(), counter:
        output = counter.network(image)
        if head is not None:
            head(output, image)
    return [
        tally.cost(name, is_needed=name in needed.tallies)
        for name, tally in counter.tallies.items()
        if tally.activation_bytes
    ]


def _build(config: Config, *, in_use: bool) -> HaloAE:
    with torch.device("meta"):
        network = HaloAE(config.network, image_size=config.canvas, weights=None)
        network.to("meta").eval()
        return lean(network, image=config.detection.image_weight > 0) if in_use else network


def total_cost(blocks: Iterable[BlockCost], name: str = "total") -> BlockCost:
    """Sum of blocks; needed if any of them is."""
    blocks = list(blocks)
    return BlockCost(
        name,
        multiply_adds=sum(block.multiply_adds for block in blocks),
        parameters=sum(block.parameters for block in blocks),
        weight_bytes=sum(block.weight_bytes for block in blocks),
        activation_bytes=sum(block.activation_bytes for block in blocks),
        is_needed=any(block.is_needed for block in blocks),
    )


def cost_of(
    config: Config, *, image_size: int | None = None, head: Head | None = None
) -> dict[str, Any]:
    """What one image costs, as trained and in use, as plain values for a script.

    A fitted head is of one image size: at another, one as large as of many images is counted.
    """
    if image_size not in (None, config.image_size):
        head = None

    def counted(*, in_use: bool) -> dict[str, Any]:
        blocks = count_cost(config, image_size=image_size, in_use=in_use, head=head)
        return {
            "blocks": [block._asdict() for block in blocks],
            "total": total_cost(blocks)._asdict(),
        }

    return {
        "image_size": image_size or config.image_size,
        **counted(in_use=False),
        "in_use": counted(in_use=True),
    }


def cost_table(cost: Mapping[str, Any]) -> str:
    """The same for people, a line for each block."""
    in_use = cost["in_use"]
    rows = [
        ["", "", "", "weights", "activations", "in use", "activations"],
        ["", "MMAC", "parameters", "MB", "MB", "MMAC", "MB"],
    ]
    needed = {block["name"]: block for block in (*in_use["blocks"], in_use["total"])}
    for block in (*cost["blocks"], cost["total"]):
        used = needed.get(block["name"])
        rows.append(
            [
                block["name"],
                f"{block['multiply_adds'] / 1e6:,.1f}",
                f"{block['parameters']:,}",
                f"{block['weight_bytes'] / 1e6:,.2f}",
                f"{block['activation_bytes'] / 1e6:,.1f}",
                f"{used['multiply_adds'] / 1e6:,.1f}" if used else "not needed",
                f"{used['activation_bytes'] / 1e6:,.1f}" if used else "",
            ]
        )
    return (
        f"one image of {cost['image_size']}² pixels in float32, as trained and in use\n"
        "  MMAC: million multiply-adds; MB: weights once, activations read and written\n"
        f"{terminal(rows, indent=True)}"
    )


class _Tally:
    """What was counted in one block so far."""

    def __init__(self) -> None:
        self.multiply_adds = 0
        self.activation_bytes = 0
        self.weights: set[Tensor] = set()
        """Parameters and buffers that were read; tensors are told apart by identity."""

    def cost(self, name: str, *, is_needed: bool) -> BlockCost:
        return BlockCost(
            name,
            multiply_adds=self.multiply_adds,
            parameters=sum(w.numel() for w in self.weights if isinstance(w, nn.Parameter)),
            weight_bytes=sum(w.nbytes for w in self.weights),
            activation_bytes=self.activation_bytes,
            is_needed=is_needed,
        )


class _Counter(TorchDispatchMode):
    """Counts every operation towards the block that the network is in."""

    def __init__(self, network: HaloAE, head: Head | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.network = network
        self.tallies: dict[str, _Tally] = {}
        self._inside: list[str] = []
        parts = nn.ModuleList([network, *([head] if head else [])])
        self._weights = {tensor: tensor for tensor in (*parts.parameters(), *parts.buffers())}
        """Weights and views of weights → the weight itself."""
        self._watch_trunk(network)
        self._watch(network.extractor, "features")
        self._watch(network.reducer, "features")
        if network.encoder is not None and network.decoder is not None:
            self._watch(network.encoder.head, "head")
            for number, block in enumerate(network.encoder.blocks, 1):
                self._watch(block, f"encoder {number}")
            for number, block in enumerate(network.decoder.blocks, 1):
                self._watch(block, f"decoder {number}")
            self._watch(network.decoder, "resize")
        if network.image_decoder is not None:
            self._watch(network.image_decoder, "image decoder")
        if network.classifier is not None:
            self._watch(network.classifier, "classifier")
        if head is not None:
            self._watch(head, "detector head")

    def _watch(self, module: nn.Module, name: str) -> None:
        """Count what a module does, but for what modules inside it are watched for."""

        def leave(*_: object) -> None:
            self._inside.pop()

        self.tallies.setdefault(name, _Tally())
        module.register_forward_pre_hook(lambda *_: self._inside.append(name))
        module.register_forward_hook(leave)

    def _watch_trunk(self, network: HaloAE) -> None:
        """The trunk runs on from tap to tap, each time that the next activation is asked for."""
        names = [f"trunk {tap.name}" for tap in network.extractor.taps]
        self.tallies.update({name: _Tally() for name in names})

        def stages(_: object, __: object, activations: Iterator[Tensor]) -> Iterator[Tensor]:
            for name in names:
                self._inside.append(name)
                activation = next(activations)
                self._inside.pop()
                yield activation

        network.extractor.layers.register_forward_hook(stages)

    def __torch_dispatch__(
        self,
        func: Operation,
        types: Any,  # noqa: ANN401 - torch gives it no type
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operation returns
        kwargs = kwargs or {}
        multiply_adds = MULTIPLY_ADDS.get(func.overloadpacket)
        if multiply_adds is None and not func.name().startswith(KEPT_WHOLE):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        read, written = list(_tensors((args, kwargs.values()))), list(_tensors(result))
        if func.is_view or func.overloadpacket is aten._unsafe_view:
            for view in written:
                if read[0] in self._weights:
                    self._weights[view] = self._weights[read[0]]
            return result
        tally = self.tallies[self._inside[-1]]
        tally.weights.update(self._weights[tensor] for tensor in read if tensor in self._weights)
        activations = [tensor for tensor in read if tensor not in self._weights]
        tally.activation_bytes += sum(map(_bytes, activations + written))
        if multiply_adds is not None:
            tally.multiply_adds += multiply_adds(result, *args)
        return result


def _tensors(values: Any) -> Iterator[Tensor]:  # noqa: ANN401 - any nest of arguments
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Iterable) and not isinstance(values, str):
        for value in values:
            yield from _tensors(value)


def _bytes(tensor: Tensor) -> int:
    """Of a tensor's elements, those that an expansion repeats counted once."""
    elements = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return elements


def _convolution(result: Tensor, x: Tensor, weight: Tensor, *options: object) -> int:
    """Each weight meets every output position, or every input position where it is transposed."""
    is_transposed = options[4]
    grid = x if is_transposed else result
    return len(grid) * grid[0, 0].numel() * weight.numel()


def _product(result: Tensor, left: Tensor, *_: object) -> int:
    return result.numel() * left.shape[-1]


def _added_product(result: Tensor, _: Tensor, left: Tensor, *__: object) -> int:
    return _product(result, left)


def _attention(_: Tensor, query: Tensor, key: Tensor, value: Tensor) -> int:
    """A logit for each pair of query and key, then the mix of values."""
    pairs = query[..., 0].numel() * key.shape[-2]
    return pairs * (query.shape[-1] + value.shape[-1])


MULTIPLY_ADDS: Mapping[Any, Callable[..., int]] = {
    aten.convolution: _convolution,
    aten.linear: _product,
    aten.mm: _product,
    aten.bmm: _product,
    aten.baddbmm: _added_product,
    aten.scaled_dot_product_attention: _attention,
}
"""The operations that multiply and add, and how often, from their result and arguments."""
