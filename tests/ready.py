"""Imported once by the process that commands are forked from: after this they import nothing."""

from __future__ import annotations

import contextlib
import importlib

from tests.in_process import ready_to_export

with contextlib.suppress(ImportError):
    ready_to_export()
for _name in ("onnxruntime", "sklearn.datasets", "transformers", "torch_pruning", "accelerate"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_name)
