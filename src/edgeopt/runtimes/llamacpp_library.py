"""llama.cpp's shared library: loaded once and quietly, what it says caught, its structs filled.

Built on the ctypes layer of llama-cpp-python. Struct layouts drift between versions: parameters
start from the library's defaults, and only fields that this version has are set.
"""

from __future__ import annotations

import ctypes
import re
from collections import deque
from functools import cache
from typing import Any

from edgeopt.errors import MissingExtraError, WorkerError

__all__ = ["LOG", "Log", "filled", "library", "listen", "metadata"]

#: Levels of llama.cpp's log, and how many lines of errors are remembered.
_INFO, _ERROR = 2, 4
_REMEMBERED = 8

_BUFFER_SIZE = re.compile(r"(\S+) model buffer size\s*=\s*([\d.]+) MiB")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")


class Log:
    """What llama.cpp said: its last errors, the sizes of a model's buffers, and (layers on the
    GPU, all layers)."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=_REMEMBERED)
        self.buffers: dict[str, int] = {}
        self.offloaded = (0, 0)

    def clear(self) -> None:
        self.offloaded = (0, 0)
        self.errors.clear()
        self.buffers.clear()

    def take(self, level: int, text: bytes | None, data: object) -> None:
        line = (text or b"").decode(errors="replace").strip()
        if level == _ERROR and line:
            self.errors.append(line)
        if level == _INFO and (found := _BUFFER_SIZE.search(line)):
            name, size = found.groups()
            self.buffers[name] = self.buffers.get(name, 0) + round(float(size) * (1 << 20))
        if level == _INFO and (found := _OFFLOADED.search(line)):
            self.offloaded = (int(found[1]), int(found[2]))

    def reason(self) -> str:
        """``: the first error``, without the function's name; it is the cause of the rest."""
        if not self.errors:
            return ""
        text = " ".join(self.errors[0].split())
        text = re.sub(r"^\w+: (error loading model: )?", "", text)
        return f": {text[:300]}"


LOG = Log()


@cache
def library() -> Any:
    """llama.cpp's functions, quiet. MissingExtraError where the package is not installed,
    WorkerError where its library does not load."""
    try:
        import llama_cpp
    except ModuleNotFoundError as error:
        raise MissingExtraError("llama-cpp-python", "llama", "running a GGUF file") from error
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WorkerError(
            f"llama-cpp-python is installed and does not load: {reason}; install it again"
        ) from error
    llama_cpp.llama_backend_init()
    return llama_cpp


def metadata(model: Any, key: str) -> str:
    """The file's value of ``key`` as text, empty where it has none."""
    buffer = ctypes.create_string_buffer(256)
    size = library().llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode(errors="replace") if size >= 0 else ""


@cache
def _listener() -> Any:
    # Kept: llama.cpp calls it as long as the process lives.
    return library().llama_log_callback(LOG.take)


def listen() -> None:
    """Take what llama.cpp says from here on. There is one listener a process, so whoever else
    uses the library (its ``Llama`` class does) may have put its own in place since."""
    library().llama_log_set(_listener(), None)


def filled(parameters: Any, **values: object) -> Any:
    """The library's defaults with the fields set that this version has."""
    known = {name for name, *_ in parameters._fields_}
    for name, value in values.items():
        if name in known:
            setattr(parameters, name, value)
    return parameters
