"""Several processes that train as one: started by torchrun, held together by accelerate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch

from edgeopt.core.packages import is_installed
from edgeopt.errors import (
    EdgeoptError,
    InputsError,
    MissingExtraError,
    OutputError,
    SourceError,
    UsageError,
    WorkerError,
)
from edgeopt.training.settings import PRECISIONS, TrainSettings

__all__ = ["TIMEOUT", "accelerator", "from_main", "peers", "synchronized"]

T = TypeVar("T")

#: How long one process waits for the others, in what all of them take part in. A process that
#: dies is noticed at once; this is for one that hangs, and for a teacher's answers being cached.
TIMEOUT = timedelta(minutes=30)

#: Errors that travel as what they are.
_KINDS = {kind.__name__: kind for kind in (UsageError, SourceError, InputsError, OutputError)}


def accelerator(settings: TrainSettings) -> Any:
    """The accelerator for these settings: device, precision, and the other processes.

    Raises MissingExtraError without accelerate, UsageError for mixed precision without a GPU, or
    another one than a training before in this process had.
    """
    if not is_installed("accelerate"):
        raise MissingExtraError("accelerate", "train", "training")
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
    )

    asked = int(os.environ.get("WORLD_SIZE", "1"))
    cpu = settings.device == "cpu" or not torch.accelerator.is_available()
    if cpu and settings.precision != "fp32":
        raise UsageError(
            f"precision {settings.precision} needs a GPU, this training runs on the CPU; use fp32"
        )
    try:
        made = Accelerator(
            cpu=cpu,
            mixed_precision=PRECISIONS[settings.precision],
            # Said in full: an environment variable could change it otherwise.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=settings.accumulation, adjust_scheduler=False, sync_with_dataloader=False
            ),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=TIMEOUT),
                # Also keeps the order of sums the same from the first update on: what takes
                # gradients in the order they arrive changes it after the first.
                DistributedDataParallelKwargs(find_unused_parameters=True),
            ],
        )
    except ValueError as error:
        raise UsageError(
            f"a training before in this process had another device or precision than "
            f"{settings.device} and {settings.precision}; start it in a process of its own"
        ) from error
    if made.num_processes != asked:
        raise UsageError(
            f"{asked} processes were started, but {made.device.type} devices cannot train "
            "together; use device cpu"
        )
    return made


def synchronized(accelerator: Any, work: Callable[[], T]) -> T:
    """``work()`` in every process; where it raises an EdgeoptError in one, all raise it."""
    if accelerator.num_processes == 1:
        return work()
    from accelerate.utils import gather_object

    failed: EdgeoptError | None = None
    result: T
    try:
        result = work()
    except EdgeoptError as error:
        failed = error
        accelerator.set_trigger()
    if not accelerator.check_trigger():
        return result
    told = None if failed is None else (type(failed).__name__, str(failed))
    heard = [pair for pair in gather_object([told]) if pair is not None]
    if failed is not None:
        raise failed
    kind, message = heard[0]
    raise _KINDS.get(kind, EdgeoptError)(message)


def from_main(accelerator: Any, work: Callable[[], T]) -> T:
    """What ``work()`` returns in the main process, in all of them; its errors likewise."""
    from accelerate.utils import broadcast_object_list

    value = synchronized(accelerator, lambda: work() if accelerator.is_main_process else None)
    box: list[Any] = [value]
    broadcast_object_list(box)
    found: T = box[0]
    return found


@contextmanager
def peers(accelerator: Any) -> Iterator[None]:
    """Says in one line that another process is gone, where the library only says what broke.

    Raises WorkerError.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
        if accelerator.num_processes == 1 or not lost:
            raise
        raise WorkerError(
            f"process {accelerator.process_index} of {accelerator.num_processes} lost another one "
            "in the middle of the training; that one's own message says why"
        ) from error
