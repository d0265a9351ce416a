"""edgeopt's bench worker, whose ONNX Runtime can be told to take longer by a known share.

The option ``slowdown`` of a Case (1.05: 5% longer) is honoured here only: the engine computes, then
spins until that share more has passed. At 1, or without it, it looks at the clock as often and
does not spin: looking costs about 1% of a millisecond's inference, and is not to count as slower.
"""

from __future__ import annotations

import importlib
import runpy
import sys
import time

from edgeopt.runtimes import engine
from edgeopt.runtimes.engine import Case, Engine

_USUAL = engine.ENGINES["onnxruntime"]


def slowed(case: Case) -> Engine:
    """The engine of ``case``, slower where it says so."""
    module, _, name = _USUAL.partition(":")
    found: Engine = getattr(importlib.import_module(module), name)(case)
    share = float((case.options or {}).get("slowdown", 1.0))
    usual, clock = found.run, time.perf_counter

    def run() -> None:
        start = clock()
        usual()
        end = start + (clock() - start) * share
        while clock() < end:
            pass

    found.run = run  # type: ignore[method-assign]
    return found


if __name__ == "__main__":
    import benchmarks._slowed_worker as self

    engine.ENGINES = {**engine.ENGINES, "onnxruntime": f"{self.__name__}:slowed"}
    sys.modules["benchmarks._slowed_worker"] = self
    runpy.run_module("edgeopt.measure.bench_worker", run_name="__main__", alter_sys=False)
