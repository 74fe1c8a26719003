"""The loop: batch, forward, losses, backward, step, row of the log, and a checkpoint on the way.

A straight one (docs/adr/0001). A run that was stopped at any moment goes on, bit for bit on a CPU.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from haloae.config import EPOCHS, Config
from haloae.errors import TrainingError
from haloae.machine import has_bfloat16
from haloae.network.haloae import HaloAE
from haloae.training.batches import seed_of
from haloae.training.losses import SCHEDULES, loss_terms, loss_weights, total_loss, weights_of
from haloae.training.run_folder import CHECKPOINT, Checkpoint, loss_log, save_checkpoint

CHECKPOINT_SECONDS = 30.0
WARMUP_SHARE = 0.05


@dataclass(slots=True)
class Training:
    """Training under way."""

    network: HaloAE
    optimizer: torch.optim.Optimizer
    step: int
    """How many were taken."""
    backbone: tuple[str, str]
    """Name and hash of the backbone's weights."""
    config: Config
    images: str
    """What changes when the images do."""

    @classmethod
    def start(
        cls, network: HaloAE, config: Config, *, images: str, backbone: tuple[str, str]
    ) -> "Training":
        """Before the first step."""
        return cls(network, _optimizer(network, config), 0, backbone, config, images)

    @classmethod
    def restore(
        cls, saved: Checkpoint, config: Config, where: torch.device, run: Path
    ) -> "Training":
        """As a run's checkpoint has it.

        Raises:
            TrainingError: its tensors do not fit the config.
        """
        network = HaloAE(config.network, image_size=config.canvas, weights=None).to(where)
        optimizer = _optimizer(network, config)
        try:
            network.load_state_dict(saved.network)
            optimizer.load_state_dict(saved.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise TrainingError(
                f"{run / CHECKPOINT}: damaged, or not a checkpoint: start anew with --overwrite."
            ) from error
        return cls(network, optimizer, saved.step, saved.backbone, config, saved.images)

    def checkpoint(self) -> Checkpoint:
        """What `restore` goes on from."""
        return Checkpoint(
            step=self.step,
            config=self.config,
            images=self.images,
            backbone=self.backbone,
            network=self.network.state_dict(),
            optimizer=self.optimizer.state_dict(),
        )


def _optimizer(network: HaloAE, config: Config) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        [p for p in network.parameters() if p.requires_grad],
        lr=config.training.learning_rate,
        weight_decay=config.training.weight_decay,
    )


def train(
    state: Training,
    loader: Iterable[Tensor],
    *,
    deadline: float,
    run: Path | None,
    progress: bool,
) -> None:
    """Take a step for each batch, until the deadline, checkpointing on the way.

    Args:
        state: where it starts, and then stands.
        loader: a batch a step.
        deadline: of `time.monotonic`.
        run: folder for checkpoint and loss log; None keeps neither.
        progress: True: show a bar on stderr.

    Raises:
        TrainingError: a loss is not finite.
        OutputError: the run's folder cannot be written to.
        KeyboardInterrupt: after the checkpoint was saved.
    """
    config = state.config
    state.network.train()
    optimizer = state.optimizer
    last_saved = time.monotonic()
    with (
        loss_log(run, state.step) as log_row,
        _deferred_interrupt() as interrupted,
        tqdm(
            total=config.training.steps, initial=state.step, desc="training", disable=not progress
        ) as bar,
    ):
        for views in loader:
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(state.step, config)
            terms, weights = _step(views, state)
            state.step += 1
            row = _row(state.step, terms, weights, optimizer.param_groups[0]["lr"])
            log_row(row)
            bar.set_postfix({k: f"{v:.3g}" for k, v in row.items() if k in SCHEDULES})
            bar.update()
            if interrupted() or time.monotonic() >= deadline:
                break
            if run and time.monotonic() - last_saved >= CHECKPOINT_SECONDS:
                save_checkpoint(run, state.checkpoint())
                last_saved = time.monotonic()
        if run:
            save_checkpoint(run, state.checkpoint())
        if interrupted():
            raise KeyboardInterrupt


def _step(views: Tensor, state: Training) -> tuple[dict[str, Tensor], dict[str, float]]:
    training, network = state.config.training, state.network
    device = next(network.parameters()).device
    views = network.normalise(views.to(device))
    noise = torch.Generator().manual_seed(seed_of(state.config.seed, state.step, 1))
    is_mixed = training.precision == "bfloat16" and has_bfloat16(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
        output = network(views.flatten(0, 1), generator=noise)
    terms = loss_terms(output, views, state.config.loss)
    weights = loss_weights(state.step * EPOCHS // training.steps, state.config.loss)
    for name, term in terms.items():
        if not torch.isfinite(term):
            raise TrainingError(
                f"the {name} loss is {term.item()} at step {state.step}: lower "
                f"training.learning_rate."
            )
    state.optimizer.zero_grad()
    total_loss(terms, weights).backward()
    state.optimizer.step()
    return terms, weights


def _learning_rate(step: int, config: Config) -> float:
    training = config.training
    if training.schedule == "constant":
        return training.learning_rate
    warmup = max(1.0, WARMUP_SHARE * training.steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1.0, training.steps - warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _row(
    step: int, terms: dict[str, Tensor], weights: dict[str, float], learning_rate: float
) -> dict[str, float]:
    row: dict[str, float] = {"step": step}
    for name, weight in weights_of(terms, weights).items():
        row |= {name: terms[name].item(), f"{name}_weight": weight}
    return {**row, "learning_rate": learning_rate}


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C wait for the end of a step; a second one does not wait."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def handler(number: int, frame: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
