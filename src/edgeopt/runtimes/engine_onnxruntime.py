"""ONNX Runtime as an engine: one session, one feed, inference after inference.

Needs numpy and onnxruntime, nothing else: it is shipped to other machines.

On CUDA the inputs are copied once, the outputs stay on the device, and every inference is
synchronised. That path has been checked with a stand-in for the runtime only: it raises wherever
the runtime does not say what it is expected to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeopt.core import InputSpec
from edgeopt.errors import UsageError
from edgeopt.runtimes.engine import Case, Feed
from edgeopt.runtimes.onnxruntime import OnnxSession, preload
from edgeopt.runtimes.smaps import mapped_files

__all__ = ["OnnxRuntimeEngine"]

_CPU = "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """An ONNX file in ONNX Runtime. Options: none."""

    repeats = True

    def __init__(self, case: Case) -> None:
        self._case = case
        self._version = ""
        self._session: OnnxSession | None = None
        self._infer: Callable[[], None] | None = None

    @property
    def session(self) -> OnnxSession:
        """The session of :meth:`load`."""
        assert self._session is not None, "load() comes first"
        return self._session

    @property
    def path(self) -> Path:
        return self._case.path

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return self.session.inputs

    @property
    def outputs(self) -> tuple[InputSpec, ...]:
        return self.session.outputs

    def imports(self) -> None:
        try:
            self._version = preload(self._case.device)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"this Python cannot run ONNX files ({error}); pip install onnxruntime there"
            ) from error

    def load(self) -> None:
        case = self._case
        self._session = OnnxSession.open(case.path, threads=case.threads, device=case.device)

    def prepare(self, feed: Feed) -> None:
        self._infer = self.session.repeat(self.session.fit(feed))

    def run(self) -> None:
        assert self._infer is not None, "prepare() comes first"
        self._infer()

    def answer(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Every output by name, in memory of the host."""
        return self.session.run(self.session.fit(feed))

    def info(self) -> dict[str, Any]:
        """Versions, the providers taken, which nodes stayed on the CPU, which files are mapped.

        ``fallback`` lists [name, operator] of the nodes that went to the CPU though another
        device was asked for, None where the runtime does not say; on the CPU it is empty.
        ``mapped`` says of each file, by its path from the model's folder, whether it is mapped
        now; None where the system does not say.
        """
        case, session = self._case, self.session
        nodes = session.nodes()
        return {
            "runtime": "onnxruntime",
            "version": self._version,
            "device": case.device,
            "providers": list(session.placement),
            "fallback": _fallback(case.device, nodes),
            "nodes": {name: len(found) for name, found in nodes.items()} if nodes else None,
            "threads": case.threads,
            "inter_op_threads": 1,
            "spinning": False,
            "outputs": "host" if case.device == "cpu" else "device",
            "mapped": mapped_files(case.files, case.path.parent),
        }


def _fallback(
    device: str, nodes: dict[str, tuple[tuple[str, str], ...]] | None
) -> list[list[str]] | None:
    if device == "cpu":
        return []
    return [list(node) for node in nodes.get(_CPU, ())] if nodes is not None else None
