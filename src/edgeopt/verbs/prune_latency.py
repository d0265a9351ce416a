"""The latency of a model that is being pruned, beside the original's, in the runtime."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.core import Progress
from edgeopt.errors import EdgeoptError, WorkerError
from edgeopt.files.open import open_source
from edgeopt.numerics.statistics import BLOCKS_PER_ROUND, median, round_ratios

if TYPE_CHECKING:
    from edgeopt.modules.model import TorchModel
    from edgeopt.pruning.size_search import Reading
    from edgeopt.targets.program.module import Opened

__all__ = ["latency_meter"]


def latency_meter(
    opened: Opened,
    workdir: Path,
    progress: Progress | None = None,
    *,
    threads: int = 1,
    seconds: float = 2.0,
) -> Callable[[TorchModel], Reading]:
    """A measure for :func:`edgeopt.pruning.size_search.search_target`: seconds, batch of 1.

    Both models go the same way to ONNX, and are timed by ONNX Runtime in one fresh process, in
    blocks that alternate. The share is the median over rounds of the ratio of the two; ``seconds``
    bounds the timing of one pair. The original is exported at the first call, as it is then.
    """
    room = workdir / "latency"
    numbers = itertools.count()
    original: list[Path] = []

    def exported(model: TorchModel) -> Path:
        here = room / str(next(numbers))
        here.mkdir(parents=True)
        return _onnx(model, here, progress).resolve()

    def measure(model: TorchModel) -> Reading:
        from edgeopt.measure.process import workplace
        from edgeopt.modules.counting import one_sample
        from edgeopt.pruning.size_search import Reading

        if not original:
            original.append(exported(opened.model))
        job = {
            "kind": "pair",
            "source": str(original[0]),
            "artifact": str(exported(model)),
            "threads": threads,
            "seconds": seconds,
            "output_map": None,
            "compare": False,
        }
        feed, _ = one_sample(opened.model)
        with workplace([feed]) as place:
            outcome = place.run(job, progress=progress)
        if outcome.result is None:
            raise _error(outcome.error)
        times = outcome.result["latency"]
        share = median(round_ratios(times["source"], times["artifact"], BLOCKS_PER_ROUND).tolist())
        return Reading(share * median(times["source"]), share)

    return measure


def _onnx(model: TorchModel, folder: Path, progress: Progress | None) -> Path:
    from edgeopt.graphs.capture.parent import capture
    from edgeopt.modules.program import write_program

    program = folder / "model.pt"
    write_program(model, program)
    return capture(open_source(program), folder / "onnx", progress=progress).model


def _error(error: EdgeoptError | None) -> EdgeoptError:
    return error if error is not None else WorkerError("the worker gave no latency")
