"""torch as an engine: a module in evaluation and inference mode, as its file has it.

Weights keep the dtype that they are stored in, nothing is compiled or fused that the file does not
bring so. On CUDA the module and its inputs are copied there, outputs stay there, and every
inference is synchronised; that path has been checked without a GPU, by its decisions alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgeopt.errors import MissingExtraError, SourceError, UsageError, WorkerError
from edgeopt.modules.reasons import attempt, one_line
from edgeopt.runtimes.engine import Case, Feed
from edgeopt.runtimes.smaps import mapped_files

if TYPE_CHECKING:
    from edgeopt.modules.callee import Callee

__all__ = ["TorchEngine"]


class TorchEngine:
    """A torch file or a Hugging Face folder in torch. Options:

    ``kind``, that of the file (``torch-state-dict``, ``torch-checkpoint``, ``torch-module``,
    ``torchscript``, ``torch-exported``, ``hf-folder``; with ``model`` also others that hold
    weights), ``model`` ("package.module:callable": code for a file of weights) and
    ``trust_pickle`` (True: the file's own code may run).
    """

    repeats = True

    def __init__(self, case: Case) -> None:
        if case.workload != "inference":
            raise UsageError(f"{case.path}: workload {case.workload}; torch does inference")
        self._case = case
        self._options: Mapping[str, Any] = dict(case.options or {})
        self._torch: Any = None
        self._load: Callable[..., Callee] | None = None
        self._callee: Callee | None = None
        self._infer: Callable[[], object] | None = None

    @property
    def callee(self) -> Callee:
        """What :meth:`load` made: the module, and how it is called."""
        assert self._callee is not None, "load() comes first"
        return self._callee

    def imports(self) -> None:
        """Load torch (and transformers for a folder), and give it its threads."""
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
        try:
            import torch

            if self._options.get("kind") == "hf-folder":
                import transformers  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                str(error.name), "torch", f"running {self._case.path}"
            ) from error
        from edgeopt.modules.callee import load

        self._load = load
        self._torch = torch
        if self._case.device != "cpu" and not torch.cuda.is_available():
            raise UsageError(
                f"device {self._case.device} is not one that this torch ({torch.__version__}) has "
                "here; use cpu"
            )
        torch.set_num_threads(self._case.threads)
        # Only a process that has not computed yet can choose this; info() tells what holds.
        attempt(lambda: torch.set_num_interop_threads(1))

    def load(self) -> None:
        case = self._case
        assert self._load is not None, "imports() comes first"
        callee = self._load(
            case.path,
            str(self._options.get("kind") or ""),
            model=self._options.get("model"),
            trust=bool(self._options.get("trust_pickle")),
        )
        if case.device != "cpu":
            _, error = attempt(lambda: callee.module.to(case.device))
            if error is not None:
                raise SourceError(
                    f"{case.path}: cannot be put on device {case.device}: {one_line(error)}"
                )
            self._torch.cuda.synchronize()
        self._callee = callee

    def prepare(self, feed: Feed) -> None:
        device = self._case.device
        call = self.callee.bound(feed, device)
        mode, wait = self._torch.inference_mode, self._torch.cuda.synchronize

        def on_cpu() -> None:
            with mode():
                call()

        def on_gpu() -> None:
            with mode():
                call()
                wait()

        self._infer = on_cpu if device == "cpu" else on_gpu

    def run(self) -> None:
        assert self._infer is not None, "prepare() comes first"
        _, error = attempt(self._infer)
        if error is not None:
            raise WorkerError(f"{self._case.path}: fails while running: {one_line(error)}")

    def answer(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Every output by name (``output`` where it has none), in memory of the host. What numpy
        has no dtype for comes as float32."""
        from edgeopt.modules.outputs import flatten

        call = self.callee.bound(feed, self._case.device)

        def run() -> dict[str, NDArray[Any]]:
            with self._torch.inference_mode():
                return {name: self._array(tensor) for name, tensor in flatten(call())}

        found, error = attempt(run)
        if error is not None or found is None:
            reason = one_line(error) if error is not None else "no output"
            raise WorkerError(f"{self._case.path}: fails while running: {reason}")
        return found

    def _array(self, tensor: Any) -> NDArray[Any]:
        if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
            tensor = tensor.float()
        array: NDArray[Any] = tensor.cpu().numpy()
        return array

    def info(self) -> dict[str, Any]:
        """torch's build and choices, who read the weights, their dtypes, which files are mapped.

        ``compiled`` says whether the file's module is one of ``torch.compile``; the engine compiles
        nothing. ``tf32`` is None on the CPU, where there is none.
        """
        torch, case, callee = self._torch, self._case, self.callee
        on_gpu = case.device != "cpu"
        return {
            "runtime": "torch",
            "version": str(torch.__version__),
            "device": case.device,
            "device_name": torch.cuda.get_device_name() if on_gpu else None,
            "cuda": torch.version.cuda if on_gpu else None,
            "tf32": bool(torch.backends.cuda.matmul.allow_tf32) if on_gpu else None,
            "threads": torch.get_num_threads(),
            "inter_op_threads": torch.get_num_interop_threads(),
            "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
            "backend": _backend(torch.__config__.parallel_info()),
            "mkldnn": bool(torch.backends.mkldnn.is_available()),
            "openmp": bool(torch.backends.openmp.is_available()),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "compiled": hasattr(callee.module, "_orig_mod"),
            "kind": self._options.get("kind"),
            "weights_by": callee.weights_by,
            "dtypes": sorted(str(d).removeprefix("torch.") for d in callee.float_dtypes),
            "outputs": "device" if on_gpu else "host",
            "notes": list(callee.notes),
            "mapped": mapped_files(case.files, case.path.parent),
        }


def _backend(info: str) -> str:
    """The pool that splits operators, out of torch's own description: ``OpenMP``, ``native``."""
    lines = [line.strip() for line in info.splitlines()]
    mark = "ATen parallel backend:"
    return next((line[len(mark) :].strip() for line in lines if line.startswith(mark)), "")
