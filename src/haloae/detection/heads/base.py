"""What every detector head is, and the table they stand in."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from torch import Tensor, nn

from haloae.config import Config
from haloae.errors import ConfigError
from haloae.network.haloae import HaloAEOutput
from haloae.network.trunks import trunk_named

MANY = 200
"""Good images that a head is sized for."""


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """A good image, and what the network made of it."""

    output: HaloAEOutput
    """Of a batch of one."""
    image: Tensor
    """(1, 3, H, W), normalised as the trunk wants it."""
    cells: Tensor | None = None
    """(1, h, w) bool: True where a cell counts; None: all do. A head learns from no other."""

    def __iter__(self) -> Iterator[Any]:
        """What a head is called with: ``head(*seen)``."""
        yield from (self.output, self.image)


class Head(nn.Module, ABC):
    """What good images look like to a fitted network, and how unusual others are.

    Its buffers are all it has learned; a model file keeps them under `prefix`.
    """

    prefix: ClassVar[str] = "head."
    needs_autoencoder: ClassVar[bool] = False
    """True: it looks at reconstructions, and needs a network with an auto-encoder."""
    refits: ClassVar[bool] = False
    """True: good images that come later replace those it was fitted to, see `Detector.calibrated`;
    False: they are new to it, and only scored."""
    leaves_out: ClassVar[bool] = True
    """False: `without` leaves something of the image in, which tells where images are few."""
    reach: ClassVar[int | None] = None
    """Cells beyond its own that one is judged by, in any direction; None: no end is known."""
    images: int
    """Good images behind its statistics."""

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse a config that it cannot be fitted with, before anything is read or written.

        Raises:
            ConfigError: says why.
        """
        if cls.needs_autoencoder and not config.network.autoencoder:
            raise ConfigError(
                f"detection.head {config.detection.head!r} looks at reconstructions: set "
                f"network.autoencoder = true."
            )

    @classmethod
    @abstractmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """Fit to good images.

        Args:
            config: of the detector.
            seen: gives the good images anew at every call, at least one.

        Raises:
            ValueError: there is none.
        """

    @classmethod
    @abstractmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        """A fitted head from the tensors of its `state_dict`.

        Raises:
            ValueError: they do not fit the config.
        """

    @classmethod
    def sized(cls, config: Config) -> Self | None:
        """One as large as of many images, of whatever values, to count what it costs.

        Returns:
            The head on torch's default device; None: this kind is not counted.
        """
        return None

    @abstractmethod
    def without(self, seen: Seen, index: int) -> "Head":
        """The head as it would be, had one of its good images not been there, to score that one.

        Args:
            seen: the image, of a batch of one.
            index: its place among the good images that `fit` was given.
        """

    @abstractmethod
    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """How unusual each cell is, before smoothing.

        Args:
            output: of the network, for a batch.
            image: (B, 3, H, W), what it was given.

        Returns:
            (B, h, w) float32 on the feature grid, at least 0.
        """


H = TypeVar("H", bound=Head)
HEADS: dict[str, type[Head]] = {}
"""By the name that `detection.head` has."""
ANYWHERE: dict[str, type[Head]] = {}
"""By the same names: those whose statistics are of all places together. They take grids of any
size, and batches of several, which count as one image."""


def register_head(name: str, *, anywhere: bool = False) -> Callable[[type[H]], type[H]]:
    """Put a head into the table, under a name of its own.

    Args:
        name: of the head.
        anywhere: True: this is the form that it has where `view.place` is ``anywhere``.
    """

    def register(head: type[H]) -> type[H]:
        (ANYWHERE if anywhere else HEADS)[name] = head
        return head

    return register


def head_of(config: Config) -> type[Head]:
    """The head of a config, in the form that its `view.place` asks for.

    Raises:
        ConfigError: there is none.
    """
    name = config.detection.head
    kind = head_named(name)
    if not config.is_anywhere:
        return kind
    if name not in ANYWHERE:
        raise ConfigError(
            f"detection.head {name!r} learns what is good place by place: set view.place to "
            f"aligned, or choose one of {', '.join(ANYWHERE)}."
        )
    return ANYWHERE[name]


def head_named(name: str) -> type[Head]:
    """The head of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in HEADS:
        raise ConfigError(f"no detector head is called {name!r}: choose one of {', '.join(HEADS)}.")
    return HEADS[name]


def features_of(config: Config) -> tuple[tuple[int, int], int]:
    """Grid (h, w), and channels, of the features of a config's canvas."""
    network = config.network
    return config.grid, network.reduced_channels or trunk_named(network.trunk).channels
