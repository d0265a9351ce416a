"""What holds for every test."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

# Timing is never asserted: not by hypothesis' deadlines either, nor by how long data takes to make.
# A gate draws the same examples every time, so that a failure is the change's own; runs by hand
# draw new ones, and find what the gate does not.
settings.register_profile(
    "edgeopt",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("edgeopt")


def _required(name: str, *asked: object, **more: object) -> ModuleType:
    return importlib.import_module(name)


if os.environ.get("CI"):
    # Where a person may lack an extra and skips, a gate may not: what it lacks is a broken install.
    pytest.importorskip = _required


#: What test files import between them, and what takes long to import under coverage's tracer.
_HEAVY = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "sklearn", "scipy.stats")


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Each process of a run in several collects every file: imports first, without the tracer."""
    tracer = sys.gettrace()
    if tracer is None or "PYTEST_XDIST_WORKER" not in os.environ:
        return
    sys.settrace(None)
    for name in _HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.settrace(tracer)


def pytest_collection_finish() -> None:
    """What is imported stays: no later collection of garbage has to go through it again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The contract suites first: a file goes to one process, and theirs take longest."""
    items.sort(key=lambda item: "contract" not in item.path.parts)
