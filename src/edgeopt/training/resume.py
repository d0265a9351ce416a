"""A training into its checkpoint, and out of it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgeopt.errors import SourceError
from edgeopt.training import checkpoint
from edgeopt.training.distributed import from_main, synchronized
from edgeopt.training.evaluation import broadcast_buffers
from edgeopt.training.objective import Objective
from edgeopt.training.state import TrainingState

__all__ = ["resume", "save"]


def save(
    folder: Path,
    state: TrainingState,
    objective: Objective,
    optimizer: Any,
    accelerator: Any,
    fingerprint: Mapping[str, str],
) -> None:
    """Write where the training stands; one process does. Raises OutputError in all of them."""
    broadcast_buffers(accelerator, objective)
    if not accelerator.is_main_process:
        synchronized(accelerator, lambda: None)
        return
    scaler = accelerator.scaler
    saved = checkpoint.Checkpoint(
        {
            "student": objective.module.state_dict(),
            "losses": objective.losses.state_dict(),
            "best": state.best,
            "optimizer": checkpoint.optimizer_state(_inner(optimizer)),
        },
        {
            "course": state.to_json(),
            "processes": accelerator.num_processes,
            "scaler": None if scaler is None else scaler.state_dict(),
        },
    )
    synchronized(accelerator, lambda: checkpoint.save(folder, saved, fingerprint))


def resume(
    folder: Path,
    objective: Objective,
    optimizer: Any,
    accelerator: Any,
    fingerprint: Mapping[str, str],
) -> tuple[TrainingState, list[str]] | None:
    """Go on from the folder's checkpoint, if it has one: where the training stood, and notes.

    One process reads it. Raises SourceError in all of them for one that is truncated or of another
    run.
    """
    saved = from_main(accelerator, lambda: checkpoint.load(folder, fingerprint))
    if saved is None:
        return None
    path = folder / checkpoint.NAME
    checkpoint.fill(objective.module, saved.tensors.get("student", {}), path)
    checkpoint.fill(objective.losses, saved.tensors.get("losses", {}), path)
    checkpoint.fill_optimizer(_inner(optimizer), saved.tensors.get("optimizer", {}), path)
    try:
        state = TrainingState.from_json(saved.state["course"], saved.tensors.get("best", {}))
        processes = int(saved.state["processes"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(saved.state["scaler"])
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{path}: does not say where the training stood ({str(error)[:120]}); remove it to "
            "begin anew, or give another folder"
        ) from error
    notes = [f"went on from {path} after {state.step} updates"]
    if processes != accelerator.num_processes:
        notes.append(
            f"begun by {processes} processes, continued by {accelerator.num_processes}: the "
            "same training up to rounding"
        )
    return state, notes


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer itself, out of what accelerate wraps around it."""
    return getattr(optimizer, "optimizer", optimizer)
