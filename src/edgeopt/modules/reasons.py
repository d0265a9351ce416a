"""One line out of torch's pages: why an export fell."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

__all__ = ["DATA_DEPENDENT", "attempt", "is_data_dependent", "one_line"]

T = TypeVar("T")

#: Marks of an exporter's refusal to trace Python control flow that depends on tensor values.
DATA_DEPENDENT = (
    "data-dependent",
    "GuardOnDataDependentSymNode",
    "Dynamic control flow is not supported",
    "unbacked symint",
)

_NOISE = (
    "Traceback",
    "  File",
    "During handling",
    "The above exception",
    "⬆️",
    "<class",
    "(Refer to",
    "## ",
    "- Please",
    "The error above occurred",
    "For more information",
)

_KEY = re.compile(
    r"(data-dependent|control flow|Constraints violated|not support|unsupported|Unsupported|"
    r"No ONNX function|No decompositions|Could not|Cannot|cannot|must|expected|Expected)"
)


def attempt(call: Callable[[], T]) -> tuple[T, None] | tuple[None, Exception]:
    """(what ``call`` gives, None), or (None, what it raised).

    The one place where any exception is taken: for the user's own code, for exporters (whose bugs
    are reasons to try the next one) and for native loaders, which promise no class of error.
    MemoryError and interrupts pass.
    """
    try:
        return call(), None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - see above
        return None, error


#: What ONNX Runtime puts before its reason: its own codes and the path, which is known.
_RUNTIME = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : (?:Load model from .*? failed: *)?"
    r"(?:Fatal error: |This is an invalid model\. )?"
)

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def is_data_dependent(error: BaseException) -> bool:
    """Whether an exporter fell because Python control flow depends on a tensor's values.

    A tracer would then bake in whichever branch the example took: its file is not to be trusted.
    """
    chain: BaseException | None = error
    for _ in range(8):
        if chain is None:
            return False
        text = f"{type(chain).__name__}: {chain}"
        if any(mark in text for mark in DATA_DEPENDENT):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def one_line(error: BaseException, limit: int = 220) -> str:
    """The line of an error that carries its reason, with the error's class before it.

    The deepest cause is asked, since exporters wrap it in advice; of its lines the first that
    names a reason, else the first that is not noise.
    """
    deepest = error
    for _ in range(8):
        if deepest.__cause__ is None or not str(deepest.__cause__).strip():
            break
        deepest = deepest.__cause__
    text = _ANSI.sub("", str(deepest)).strip() or str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(tuple(n.strip() for n in _NOISE))]
    chosen = next((line for line in lines if _KEY.search(line)), lines[0] if lines else "")
    where = re.search(r"(?:caused by|User code|user code)[^\n]*\n?.*", text)
    if where and "(" in where.group(0):
        spot = re.search(r"\(([\w./-]+:\d+) in (\w+)\)", where.group(0))
        if spot:
            chosen = f"{chosen} [{spot.group(1).rsplit('/', 1)[-1]} in {spot.group(2)}]"
    said, native = _RUNTIME.subn("", chosen)
    message = f"{type(deepest).__name__}: {chosen}" if chosen else type(deepest).__name__
    if native and said.strip():
        message = said
    message = " ".join(message.split())
    return message if len(message) <= limit else message[: limit - 1] + "…"
