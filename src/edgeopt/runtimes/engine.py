"""An artifact in a runtime, driven one step at a time by the worker that measures it.

The worker does the timing; an engine only does what it is told, and returns when the work is
done: on a device that computes behind the caller's back, synchronising is the engine's duty.
Making an engine loads nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from numpy.typing import NDArray

from edgeopt.core import InputSpec
from edgeopt.errors import UsageError

__all__ = ["ENGINES", "Answering", "Case", "Engine", "Feed", "GraphEngine", "make_engine"]

Feed: TypeAlias = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """What is to be measured: one artifact under one set of conditions.

    ``files`` are the model file and everything that it maps. ``workload`` is ``inference``, ``pp``
    or ``tg`` (llama.cpp: prompt processing and token generation, of ``tokens`` tokens), or
    ``open`` and ``read`` (weights files: mapping them, and reading every byte). ``options`` are
    the runtime's own, as ``model`` and ``trust_pickle`` for torch.
    """

    path: Path
    files: tuple[Path, ...]
    runtime: str
    device: str = "cpu"
    threads: int = 1
    workload: str = "inference"
    tokens: int = 0
    options: Mapping[str, Any] | None = None


class Engine(Protocol):
    """One case, step by step, in this order; every step raises EdgeoptErrors only.

    ``repeats`` is whether :meth:`run` can be called again and again; False for weights files,
    where loading is all there is.
    """

    repeats: bool

    def imports(self) -> None:
        """Load the runtime's library."""

    def load(self) -> None:
        """Open the artifact, ready to run."""

    def prepare(self, feed: Feed) -> None:
        """Take the inputs of the inferences to come (copied to the device where it has one)."""

    def run(self) -> None:
        """One inference, outputs included, done when this returns. ``pp``: all its tokens;
        ``tg``: one token, beginning again after ``tokens`` of them."""

    def info(self) -> dict[str, Any]:
        """What the runtime did, JSON-ready: providers, nodes that fell back to the CPU,
        mapping, repacking, versions. After :meth:`run`."""


@runtime_checkable
class Answering(Engine, Protocol):
    """An engine of a model that takes arrays and gives arrays: onnxruntime, torch."""

    def answer(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Every output by name, in memory of the host, for one feed. After :meth:`load`."""


class GraphEngine(Answering, Protocol):
    """An engine of a file that says itself what it takes and gives: onnxruntime."""

    @property
    def path(self) -> Path:
        """The model file."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What it takes. After :meth:`load`."""

    @property
    def outputs(self) -> tuple[InputSpec, ...]:
        """What it gives. After :meth:`load`."""


#: Where the engine of each runtime is. One file a runtime; a class that takes the Case.
ENGINES: Mapping[str, str] = {
    "onnxruntime": "edgeopt.runtimes.engine_onnxruntime:OnnxRuntimeEngine",
    "torch": "edgeopt.runtimes.engine_torch:TorchEngine",
    "llama.cpp": "edgeopt.runtimes.engine_llamacpp:LlamaCppEngine",
    "weights": "edgeopt.runtimes.engine_weights:WeightsEngine",
}


def make_engine(case: Case) -> Engine:
    """The engine of ``case.runtime``. Raises UsageError for a runtime that there is none of."""
    if case.runtime not in ENGINES:
        raise UsageError(f"runtime {case.runtime}; use {', '.join(ENGINES)}")
    module, _, name = ENGINES[case.runtime].partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)(case)
    return engine
