"""ONNX Runtime: open a model file as a session, run it, say where it runs.

Importing this module costs numpy only; the runtime itself is loaded by the first session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import InputSpec, symbolic
from edgeopt.errors import (
    EdgeoptError,
    FormatError,
    InputsError,
    SourceError,
    UsageError,
    WorkerError,
)

__all__ = ["OnnxSession", "preload"]

#: The runtime's names for tensor types, as numpy (or ml_dtypes) names them.
_DTYPES: Mapping[str, str] = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
}

_PROVIDERS: Mapping[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

#: Makes the session remember which provider each node went to, for :meth:`OnnxSession.nodes`.
_RECORD = "session.record_ep_graph_assignment_info"

#: Only errors: a warning of the runtime is not something that the user did or can mend.
_ERRORS_ONLY = 3

#: What the runtime raises when the feed, not the model, is at fault.
_FEED_ERRORS = frozenset({"InvalidArgument", "ValueError", "TypeError"})


class OnnxSession:
    """A model file opened by plain ONNX Runtime, as whoever deploys it would open it.

    Make one with :meth:`open`. ``inputs`` and ``outputs`` describe its tensors; ``placement``
    names the execution providers that the runtime really took.
    """

    def __init__(
        self,
        path: Path,
        native: Any,
        inputs: tuple[InputSpec, ...],
        outputs: tuple[InputSpec, ...],
        placement: tuple[str, ...],
        device: str = "cpu",
    ) -> None:
        self.path = path
        self.inputs = inputs
        self.outputs = outputs
        self.placement = placement
        self.device = device
        self._native = native

    @classmethod
    def open(cls, path: str | Path, *, threads: int = 1, device: str = "cpu") -> OnnxSession:
        """Load ``path`` with ``threads`` threads inside operators and one between them.

        Spinning is off: a pool's idle threads otherwise keep running for a while after each
        inference, into the turn of whatever is measured next, and take its cores. With one thread
        there is no pool and nothing to turn off. On another device than the CPU, the session
        remembers where its nodes went.

        Raises SourceError where the file is missing or the runtime cannot run it, FormatError
        where it is no ONNX file, UsageError for a device that this build does not have, or that
        does not start: a session never falls back to the CPU as a whole.
        """
        path = Path(path)
        runtime = _runtime()
        if not path.is_file():
            raise SourceError(f"{path}: no such file; give the path of an ONNX file")
        provider = _provider(device, runtime.get_available_providers())
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        asked: dict[str, Any] = {"providers": [provider]}
        if device != "cpu":
            options.add_session_config_entry(_RECORD, "1")
            asked["enable_fallback"] = 0  # the wrapper's: to try again on the CPU
        with _open_errors(path):
            native = runtime.InferenceSession(str(path), options, **asked)
        if provider not in native.get_providers():
            raise UsageError(
                f"device {device}: ONNX Runtime has a {provider} that does not start; install the "
                "CUDA and cuDNN libraries that its release notes name, or use cpu"
            )
        return cls(
            path,
            native,
            tuple(_spec(path, value) for value in native.get_inputs()),
            tuple(_spec(path, value) for value in native.get_outputs()),
            tuple(native.get_providers()),
            device,
        )

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by name, for one feed of arrays by input name.

        Raises InputsError where the feed does not fit the model, WorkerError where the model
        fails at a feed that fits.
        """
        with _run_errors(self.path):
            values = self._native.run(None, dict(feed))
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    def repeat(self, feed: Mapping[str, NDArray[Any]]) -> Callable[[], None]:
        """An inference of ``feed`` as a function that can be called again and again.

        On the CPU it makes its outputs as arrays. Elsewhere the inputs are copied to the device
        now, the outputs stay there, and the function returns when the device has made them.
        Raises InputsError where the device cannot take the feed; the function raises as
        :meth:`run`.
        """
        path, natives = self.path, _native_errors()
        if self.device == "cpu":
            native, values = self._native, dict(feed)
            infer: Callable[[], object] = partial(native.run, None, values)
        else:
            with _run_errors(path):
                infer = self._bound(feed)

        def once() -> None:
            try:
                infer()
            except natives as error:
                raise _run_error(error, path) from None

        return once

    def _bound(self, feed: Mapping[str, NDArray[Any]]) -> Callable[[], None]:
        value_of = _runtime().OrtValue.ortvalue_from_numpy
        native, binding = self._native, self._native.io_binding()
        for spec in self.inputs:
            if spec.name in feed:
                device = "cpu" if spec.dtype == "str" else self.device
                binding.bind_ortvalue_input(spec.name, value_of(feed[spec.name], device, 0))
        for spec in self.outputs:
            binding.bind_output(spec.name, "cpu" if spec.dtype == "str" else self.device)
        binding.synchronize_inputs()

        def infer() -> None:
            native.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return infer

    def nodes(self) -> dict[str, tuple[tuple[str, str], ...]] | None:
        """(name, operator) of the nodes of each provider, as the runtime shared the graph out.

        None on the CPU, where there is nothing to share out, and where this version of the
        runtime does not say.
        """
        if self.device == "cpu" or not hasattr(self._native, "get_provider_graph_assignment_info"):
            return None
        found: dict[str, tuple[tuple[str, str], ...]] = {}
        for part in self._native.get_provider_graph_assignment_info():
            nodes = tuple((node.name, node.op_type) for node in part.get_nodes())
            found[part.ep_name] = (*found.get(part.ep_name, ()), *nodes)
        return found

    def fit(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The part of ``feed`` that this model takes, floats cast to the width it asks for.

        A half-precision artifact of a float32 source takes the same samples so.
        """
        fitted = {}
        for spec in self.inputs:
            if spec.name not in feed:
                names = ", ".join(feed) or "nothing"
                raise InputsError(f"{self.path}: input {spec.name} is missing from {names}")
            value = feed[spec.name]
            wants_float = spec.dtype in ("float16", "float32", "float64")
            if wants_float and value.dtype.kind == "f" and value.dtype.name != spec.dtype:
                value = value.astype(spec.dtype)
            fitted[spec.name] = np.ascontiguousarray(value).reshape(value.shape)
        return fitted


def preload(device: str = "cpu") -> str:
    """Load the runtime's library now, so that the next session's cost is the session's own.

    With ``device`` "cuda" also the CUDA libraries that lie in Python packages, where the system's
    loader does not look. Returns the runtime's version.
    """
    runtime = _runtime()
    if device == "cuda" and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
    return str(runtime.__version__)


def _runtime() -> ModuleType:
    import onnxruntime

    runtime: ModuleType = onnxruntime
    return runtime


def _provider(device: str, available: Sequence[str]) -> str:
    known = [name for name, provider in _PROVIDERS.items() if provider in available]
    if device not in known:
        raise UsageError(
            f"device {device} is not one that this ONNX Runtime has; use {' or '.join(known)}"
        )
    return _PROVIDERS[device]


def _spec(path: Path, value: Any) -> InputSpec:
    dtype = _DTYPES.get(value.type)
    if dtype is None:
        raise SourceError(
            f"{path}: {value.name} is {value.type}, not a tensor of numbers; "
            "edgeopt compares tensors only"
        )
    shape = value.shape if value.shape is not None else []
    dims = tuple(symbolic(dim, value.name, i) for i, dim in enumerate(shape))
    return InputSpec(value.name, dtype, dims)


def _native_errors() -> tuple[type[Exception], ...]:
    """Everything that ONNX Runtime raises: its own types share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [
        value
        for value in vars(state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    return (*own, RuntimeError, ValueError, TypeError, MemoryError)


def _one_line(error: Exception, path: Path) -> str:
    """The runtime's reason without its error codes, source positions and repeated path."""
    text = " ".join(str(error).split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    for noise in (f"Load model from {path} failed:", "Exception during initialization: "):
        text = text.replace(noise, "")
    if text.startswith("/") and " was false. " in text:  # file:line function condition was false.
        text = text.split(" was false. ", 1)[1]
    text = text.strip().rstrip(".") or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


@contextmanager
def _open_errors(path: Path) -> Iterator[None]:
    natives = _native_errors()
    try:
        yield
    except natives as error:
        reason = _one_line(error, path)
        if type(error).__name__ in ("InvalidProtobuf", "NoModel") or "No graph" in reason:
            raise FormatError(path, f"not an ONNX model: {reason}") from None
        raise SourceError(f"{path}: ONNX Runtime cannot load it: {reason}") from None


@contextmanager
def _run_errors(path: Path) -> Iterator[None]:
    natives = _native_errors()
    try:
        yield
    except natives as error:
        raise _run_error(error, path) from None


def _run_error(error: Exception, path: Path) -> EdgeoptError:
    reason = _one_line(error, path)
    if type(error).__name__ in _FEED_ERRORS:
        return InputsError(f"{path}: the inputs do not fit: {reason}")
    return WorkerError(f"{path}: fails while running: {reason}")
