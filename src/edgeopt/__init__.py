"""edgeopt: a smaller, faster model file, with the proof.

Verbs: :func:`inspect`, :func:`quantize`, :func:`prune`, :func:`distill`, :func:`export`,
:func:`verify`, :func:`imatrix`, :func:`bench`, :func:`compare`; weights through a map:
:func:`load_weights`, :func:`load_into`; a program (``.pt2``) that torch may load safely:
:func:`plain_program`. Importing this package costs nothing you don't use: every public name is
loaded when it is first touched.
"""

from __future__ import annotations

import sys

if getattr(sys, "orig_argv", [])[1:3] == ["-m", "edgeopt"] and not sys.flags.safe_path:
    # ``python -m`` puts the current folder first. It holds a model from somewhere, perhaps, with a
    # json.py beside it: nothing is imported from there unless an option names code in it.
    del sys.path[0]

import importlib
from typing import TYPE_CHECKING, Any

from edgeopt.version import VERSION

if TYPE_CHECKING:
    from edgeopt.core import Plan, Proof, Results, Source
    from edgeopt.errors import EdgeoptError
    from edgeopt.files.torch_repack import plain_program
    from edgeopt.files.weights import load_weights
    from edgeopt.targets.written import Integrity
    from edgeopt.verbs.bench import bench
    from edgeopt.verbs.compare import compare
    from edgeopt.verbs.distill import distill
    from edgeopt.verbs.export import export
    from edgeopt.verbs.imatrix import imatrix
    from edgeopt.verbs.inspect import inspect
    from edgeopt.verbs.load_into import load_into
    from edgeopt.verbs.prune import prune
    from edgeopt.verbs.quantize import quantize
    from edgeopt.verbs.verify import verify

__version__ = VERSION

__all__ = [
    "EdgeoptError",
    "Integrity",
    "Plan",
    "Proof",
    "Results",
    "Source",
    "__version__",
    "bench",
    "compare",
    "distill",
    "export",
    "imatrix",
    "inspect",
    "load_into",
    "load_weights",
    "plain_program",
    "prune",
    "quantize",
    "verify",
]

_WHERE = {
    "EdgeoptError": "edgeopt.errors",
    "Integrity": "edgeopt.targets.written",
    "Plan": "edgeopt.core",
    "Proof": "edgeopt.core",
    "Results": "edgeopt.core",
    "Source": "edgeopt.core",
    "bench": "edgeopt.verbs.bench",
    "compare": "edgeopt.verbs.compare",
    "distill": "edgeopt.verbs.distill",
    "export": "edgeopt.verbs.export",
    "imatrix": "edgeopt.verbs.imatrix",
    "inspect": "edgeopt.verbs.inspect",
    "load_into": "edgeopt.verbs.load_into",
    "load_weights": "edgeopt.files.weights",
    "plain_program": "edgeopt.files.torch_repack",
    "prune": "edgeopt.verbs.prune",
    "quantize": "edgeopt.verbs.quantize",
    "verify": "edgeopt.verbs.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
