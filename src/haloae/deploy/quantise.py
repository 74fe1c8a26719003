"""8-bit integers for the network inside an OpenVINO graph; all that follows it stays in float32."""

import io
import logging
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from haloae.errors import MissingExtraError

if TYPE_CHECKING:
    import openvino

PATCHES = 6
"""Patches pasted into each spoiled image."""


def quantised(model: "openvino.Model", images: NDArray[Any]) -> "openvino.Model":
    """Quantise the network's convolutions and products, after training (NNCF).

    The ranges of activations are taken from good images and from spoiled copies of them: ranges of
    good images alone would clip just what a defect does to them. The first convolution, which
    sees the pixels, what makes the features and their reconstruction, and all that compares the two
    keep float32: the score is a small difference of large numbers.

    Args:
        model: from pixels to scores.
        images: (N, 3, S, S) good images, as the model takes them.

    Raises:
        MissingExtraError: nncf is not installed.
    """
    # It reports what it is used for to its maker, unless it is told not to.
    os.environ["NNCF_CI"] = "1"
    # What it imports remarks on missing compilers.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError("nncf", "int8", error) from error

    # Not by its `set_log_level`, which turns handlers down that are not its own.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    seen = [image[None] for image in (*images, *spoiled(images))]
    with redirect_stdout(io.StringIO()):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(seen),
            subset_size=len(seen),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=_kept_exact(model), validate=False),
        )


def spoiled(images: NDArray[Any]) -> NDArray[Any]:
    """Copies with black, white, coloured and noisy patches: (N, 3, S, S) → the same, seeded."""
    rng = np.random.default_rng(0)
    copies = images.copy()
    size = images.shape[-1]
    white = 255 if images.dtype == np.uint8 else 1
    for image in copies:
        for _ in range(PATCHES):
            height, width = rng.integers(2, max(3, size // 3), 2)
            top, left = rng.integers(0, size - height), rng.integers(0, size - width)
            fills = (0, 1, rng.random((3, 1, 1)), rng.random((3, height, width)))
            fill = white * np.asarray(fills[rng.integers(len(fills))])
            image[:, top : top + height, left : left + width] = fill
    return copies


def _kept_exact(model: "openvino.Model") -> list[str]:
    """Names of the operations that stay in float32."""
    operations = model.get_ordered_ops()
    # Smoothing the map is a convolution too, of a single channel.
    convolutions = [
        operation
        for operation in operations
        if operation.get_type_name() == "Convolution"
        and operation.output(0).get_partial_shape()[1].get_length() > 1
    ]
    network = _before(convolutions)
    after = [o for o in operations if o.get_friendly_name() not in network]
    # What makes the two that are compared: the last convolutions, and the sums behind them.
    last = _before(after, until="Convolution")
    # Softmax magnifies the steps of logits, and those of padding are as low as can be.
    logits = _before([o for o in operations if o.get_type_name() == "Softmax"], until="Convolution")
    logits -= {convolution.get_friendly_name() for convolution in convolutions}
    products = [o.get_friendly_name() for o in operations if o.get_type_name() == "MatMul"]
    return sorted({convolutions[0].get_friendly_name(), *last, *logits, *products})


def _before(operations: Sequence[Any], *, until: str = "") -> set[str]:
    """Names of these and of all they are computed from, back to operations of one type."""
    names: set[str] = set()
    waiting = list(operations)
    while waiting:
        operation = waiting.pop()
        name = operation.get_friendly_name()
        if name not in names:
            names.add(name)
            if operation.get_type_name() != until:
                waiting += [value.get_node() for value in operation.input_values()]
    return names
