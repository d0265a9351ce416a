"""Which device a runtime computes on: what was asked for, what this machine and build have.

The GPU is asked for through the driver's own library, which costs no runtime; a runtime is loaded
only where a GPU answers. What is here has been checked on machines without one: where CUDA is
there, the engines find out whether it works, and none of them falls back in silence.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping

from edgeopt.core.packages import is_installed
from edgeopt.errors import UsageError

__all__ = ["DEVICES", "gpu_problem", "offered", "problem", "resolve"]

DEVICES = ("cpu", "cuda")

_DRIVERS: Mapping[str, str] = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}


def resolve(asked: str, runtime: str) -> str:
    """``cpu`` or ``cuda``: the device that ``runtime`` shall take where ``asked`` was asked for.

    ``auto`` is cuda where the runtime can have it and a GPU answers. Raises UsageError for cuda
    where something is missing, naming it, and for a device that there is none of.
    """
    if asked == "auto":
        return offered(runtime)[-1]
    if asked not in DEVICES:
        raise UsageError(f"device {asked}; use {', '.join(DEVICES)} or auto")
    if asked == "cuda" and (missing := problem(runtime)):
        raise UsageError(f"device cuda: {missing}; use cpu")
    return asked


def offered(runtime: str) -> tuple[str, ...]:
    """The devices that ``runtime`` can take on this machine, the fastest last."""
    return ("cpu",) if problem(runtime) else ("cpu", "cuda")


def problem(runtime: str) -> str:
    """What ``runtime`` lacks to compute on a GPU of this machine; empty where it lacks nothing."""
    if runtime not in _RUNTIMES:
        return f"{runtime} computes on the CPU alone"
    package, without = _RUNTIMES[runtime]
    if answer := gpu_problem():
        return answer
    if not is_installed(package):
        return f"{package} is not installed"
    return without()


def gpu_problem() -> str:
    """Why no GPU answers here; empty where one does. CUDA_VISIBLE_DEVICES counts."""
    name = _DRIVERS.get(sys.platform)
    if name is None:
        return f"no GPU answers: CUDA has no driver for {sys.platform}"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"no GPU answers: the NVIDIA driver's {name} is not there"
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return f"no GPU answers: the NVIDIA driver gives error {code}"
    if count.value < 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = f" (CUDA_VISIBLE_DEVICES is {visible!r})" if visible is not None else ""
        return f"no GPU answers: the NVIDIA driver sees none{hidden}"
    return ""


def _without_onnxruntime() -> str:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return ""
    return (
        f"this ONNX Runtime ({onnxruntime.__version__}) has no CUDAExecutionProvider; "
        "onnxruntime-gpu in its place has one"
    )


def _without_torch() -> str:
    import torch

    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return f"this torch ({torch.__version__}) does not get on with the driver"
    return ""


def _without_llama_cpp() -> str:
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        return ""
    return f"this llama-cpp-python ({llama_cpp.__version__}) is built without CUDA"


#: By runtime: its package, and what asks its build.
_RUNTIMES: Mapping[str, tuple[str, Callable[[], str]]] = {
    "onnxruntime": ("onnxruntime", _without_onnxruntime),
    "torch": ("torch", _without_torch),
    "llama.cpp": ("llama_cpp", _without_llama_cpp),
}
