"""The backend that computes with torch, from the weights themselves."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from haloae.config import Config, Precision
from haloae.data.regions import Mask, Region
from haloae.data.views import Size, View
from haloae.detection.backend import Measured
from haloae.detection.calibration import Unit
from haloae.detection.heads import Head, head_of
from haloae.detection.model_file import Header
from haloae.detection.scorer import Parts, Scorer
from haloae.errors import ModelFileError
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean

NETWORK = "network."
"""What the network's tensors are called in a model file begins so."""
DRAWS = ("uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_")
"""Functions that fill a tensor with initial values."""


class Native:
    """A fitted network and head.

    Args:
        config: of the detector.
        network: trained.
        head: fitted to good images.
        precision: of the network's arithmetic; the head's is float32.
        source: see `Backend.source`.
        parts: what counts of every image; None: all of it.
    """

    def __init__(
        self,
        config: Config,
        network: HaloAE,
        head: Head,
        precision: Precision = "float32",
        source: str = "the detector",
        *,
        parts: Parts | None = None,
    ) -> None:
        self.config = config
        self.network = network.eval()
        self.head = head.eval()
        self.precision = precision
        self.source = source
        self.parts = parts
        self.takes: Size | None = None

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
        grid = None if self.config.is_anywhere else self.config.grid
        # Of an image in tiles, the parts are those of the whole, which no tile knows.
        parts = None if self.config.view.kind == "tiles" else self.parts
        scorer = Scorer(used, self.head, detection, good_scores, grid=grid, parts=parts)
        return scorer.eval().to(device)

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self.network.to(device)
        self.head.to(device)
        self.__dict__.pop("scorer", None)

    def measure(self, images: NDArray[np.float32], inside: Mask | None = None) -> Measured:
        """See `Backend.measure`.

        Raises:
            MemoryError: the device has too little.
            ModelFileError: torch cannot compute it, or not on this device.
        """
        device = next(self.network.parameters()).device
        try:
            with torch.inference_mode():
                masks = None if inside is None else torch.from_numpy(inside).to(device)
                scored = self.scorer(torch.from_numpy(images).to(device), masks)
            return Measured(scored.score.cpu().numpy(), scored.anomaly_map.cpu().numpy())
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".: ")
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in reason:
                raise MemoryError(reason) from error
            raise ModelFileError(f"{self.source}: cannot be run ({reason}): train anew.") from error

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All tensors by the names that a model file has for them."""
        tensors = {f"{NETWORK}{name}": t for name, t in self.network.state_dict().items()}
        tensors |= {f"{self.head.prefix}{name}": t for name, t in self.head.state_dict().items()}
        return {name: t.detach().cpu().contiguous().numpy() for name, t in tensors.items()}


def restore(
    header: Header, arrays: Mapping[str, NDArray[Any]], precision: Precision, source: str
) -> Native:
    """Network and head of a model file, on the CPU.

    Args:
        header: of the file.
        arrays: its tensors, whose values are finite.
        precision: of the network's arithmetic.
        source: what the file is called.

    Raises:
        ConfigError: the config names what there is not.
        RuntimeError, LookupError, ValueError, TypeError: the tensors do not fit the config.
    """
    config = header.config
    kind = head_of(config)
    _check_tensors(config, kind, arrays)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    network = HaloAE(config.network, image_size=config.canvas, weights=None)
    network.load_state_dict(_under(NETWORK, tensors))
    head = kind.restore(config, _under(kind.prefix, tensors), header.usual_images)
    parts = parts_of(header.region, config, header.calibration.units)
    return Native(config, network, head, precision, source, parts=parts)


def parts_of(
    region: Region | str | None, config: Config, units: Sequence[Unit] = ()
) -> Parts | None:
    """What counts of every image, as the scorer has it; None: all, or each image says it itself."""
    if not isinstance(region, Region):
        return None
    return Parts.of(region, View.of(config), units)


def _check_tensors(config: Config, kind: type[Head], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Compare the tensors with those of the config's network before that takes any memory.

    Shapes of a head's are left to the head, which alone knows what may vary.

    Raises:
        ValueError: says which does not fit.
    """
    with torch.device("meta"), _Blank():
        network = HaloAE(config.network, image_size=config.canvas, weights=None)
    wanted = {
        f"{NETWORK}{name}": f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        for name, tensor in network.state_dict().items()
    }
    found = {name: f"{array.dtype} {array.shape}" for name, array in arrays.items()}
    for name in sorted(wanted.keys() | {name for name in found if name.startswith(NETWORK)}):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"tensor {name} is {found.get(name, 'missing')}, and {wanted.get(name, 'none')} is "
                f"expected"
            )
    if not kind.__module__.startswith("haloae."):
        return  # one from outside may learn integers
    for name in sorted(name for name in found if name.startswith(kind.prefix)):
        if arrays[name].dtype not in (np.float16, np.float32):
            raise ValueError(f"tensor {name} is {found[name]}, and floating point is expected")


class _Blank(TorchFunctionMode):
    """Leaves out initial values, which are about to be loaded.

    Without memory, on the meta device, some would take torch seconds to start up.
    """

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - torch gives it no type
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
