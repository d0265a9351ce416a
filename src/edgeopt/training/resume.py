"""A run into its checkpoint, and out of it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgeopt.errors import SourceError
from edgeopt.training import checkpoint
from edgeopt.training.distributed import from_main, together
from edgeopt.training.evaluation import share_buffers
from edgeopt.training.progress import Course

if TYPE_CHECKING:
    from edgeopt.training.run import Run

__all__ = ["resume", "save"]


def save(run: Run, folder: Path) -> None:
    """Write where the run stands; one process does. Raises OutputError in all of them."""
    share_buffers(run.accelerator, run.objective)
    if not run.accelerator.is_main_process:
        together(run.accelerator, lambda: None)
        return
    scaler = run.accelerator.scaler
    saved = checkpoint.Saved(
        {
            "student": run.objective.module.state_dict(),
            "losses": run.objective.losses.state_dict(),
            "best": run.course.best,
            "optimizer": checkpoint.optimizer_state(_inner(run.optimizer)),
        },
        {
            "course": run.course.to_json(),
            "processes": run.accelerator.num_processes,
            "scaler": None if scaler is None else scaler.state_dict(),
        },
    )
    together(run.accelerator, lambda: checkpoint.save(folder, saved, run.fingerprint))


def resume(run: Run, folder: Path) -> None:
    """Go on from the folder's checkpoint, if it has one; one process reads it.

    Raises SourceError in all of them for one that is truncated or of another run.
    """
    saved = from_main(run.accelerator, lambda: checkpoint.load(folder, run.fingerprint))
    if saved is None:
        return
    path = folder / checkpoint.NAME
    checkpoint.fill(run.objective.module, saved.tensors.get("student", {}), path)
    checkpoint.fill(run.objective.losses, saved.tensors.get("losses", {}), path)
    optimizer = _inner(run.optimizer)
    checkpoint.fill_optimizer(optimizer, saved.tensors.get("optimizer", {}), path)
    try:
        run.course = Course.from_json(saved.state["course"], saved.tensors.get("best", {}))
        processes = int(saved.state["processes"])
        if run.accelerator.scaler is not None:
            run.accelerator.scaler.load_state_dict(saved.state["scaler"])
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{path}: does not say where the training stood ({str(error)[:120]}); remove it to "
            "begin anew, or give another folder"
        ) from error
    run.notes.append(f"went on from {path} after {run.course.step} updates")
    if processes != run.accelerator.num_processes:
        run.notes.append(
            f"begun by {processes} processes, continued by {run.accelerator.num_processes}: the "
            "same training up to rounding"
        )


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer itself, out of what accelerate wraps around it."""
    return getattr(optimizer, "optimizer", optimizer)
