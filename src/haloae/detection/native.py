"""The backend that computes with torch, from the weights themselves."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haloae.config import Config, Precision
from haloae.detection.heads import Head, head_named
from haloae.detection.model_file import Header
from haloae.detection.predictor import Measured
from haloae.detection.scorer import Scorer
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean

NETWORK = "network."
"""What the network's tensors are called in a model file begins so."""


class Native:
    """A fitted network and head.

    Args:
        config: of the detector.
        network: trained.
        head: fitted to good images.
        precision: of the network's arithmetic; the head's is float32.
    """

    def __init__(
        self, config: Config, network: HaloAE, head: Head, precision: Precision = "float32"
    ) -> None:
        self.config = config
        self.network = network.eval()
        self.head = head.eval()
        self.precision = precision

    @property
    def name(self) -> str:
        """See `Backend.name`."""
        return f"torch {torch.__version__}, {self.precision}"

    @cached_property
    def scorer(self) -> Scorer:
        """Network and head as they are used; made once, of the network as it then is."""
        return self.scorer_for(getattr(torch, self.precision))

    def scorer_for(self, dtype: torch.dtype, good_scores: Sequence[float] = ()) -> Scorer:
        """A scorer whose network computes in a precision, with the scores of good images."""
        detection = self.config.detection
        used = lean(self.network, image=detection.image_weight > 0, dtype=dtype)
        device = next(self.network.parameters()).device
        return Scorer(used, self.head, detection, good_scores).eval().to(device)

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self.network.to(device)
        self.head.to(device)
        self.__dict__.pop("scorer", None)

    def measure(self, images: NDArray[np.float32]) -> Measured:
        """See `Backend.measure`."""
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            scored = self.scorer(torch.from_numpy(images).to(device))
        return Measured(scored.score.cpu().numpy(), scored.anomaly_map.cpu().numpy())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All tensors by the names that a model file has for them."""
        tensors = {f"{NETWORK}{name}": t for name, t in self.network.state_dict().items()}
        tensors |= {f"{self.head.prefix}{name}": t for name, t in self.head.state_dict().items()}
        return {name: t.detach().cpu().contiguous().numpy() for name, t in tensors.items()}


def restore(header: Header, arrays: Mapping[str, NDArray[Any]], precision: Precision) -> Native:
    """Network and head of a model file, on the CPU.

    Raises:
        RuntimeError, KeyError, ValueError: the tensors do not fit the config.
    """
    config = header.config
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    network = HaloAE(config.network, image_size=config.image_size, weights=None)
    network.load_state_dict(_under(NETWORK, tensors))
    kind = head_named(config.detection.head)
    head = kind.restore(config, _under(kind.prefix, tensors), header.usual_images)
    return Native(config, network, head, precision)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
