"""The few frozen types that every room shares. numpy and the standard library only.

The path of every verb is *open -> plan -> transform -> write -> prove -> report*, and these types
are what travels along it: a :class:`Source` describes what was handed over, a :class:`Plan` says
what will happen to every tensor, a :class:`Change` what did happen, a :class:`Proof` what it was
worth, measured.
"""

from __future__ import annotations

from edgeopt.core.dtypes import (
    DTYPE_BITS,
    FLOAT_DTYPES,
    Array,
    Progress,
    format_bytes,
    tensor_nbytes,
)
from edgeopt.core.ggml import Ggml
from edgeopt.core.plan import PLAN_VERSION, Change, Choice, Decision, Plan
from edgeopt.core.proof import (
    PROOF_VERSION,
    Basis,
    Check,
    Fidelity,
    Measurement,
    OfKind,
    Proof,
    TensorFidelity,
    Verdict,
)
from edgeopt.core.results import (
    METRICS,
    RESULTS_VERSION,
    Layer,
    Metric,
    Quality,
    Results,
    Subject,
    Unavailable,
)
from edgeopt.core.schemes import Affine, Codes, Scheme, Sparse
from edgeopt.core.source import (
    InputSpec,
    Source,
    Storage,
    Weight,
    file_sha256,
    shown_shape,
    symbolic,
    unnamed,
)

__all__ = [
    "DTYPE_BITS",
    "FLOAT_DTYPES",
    "METRICS",
    "PLAN_VERSION",
    "PROOF_VERSION",
    "RESULTS_VERSION",
    "Affine",
    "Array",
    "Basis",
    "Change",
    "Check",
    "Choice",
    "Codes",
    "Decision",
    "Fidelity",
    "Ggml",
    "InputSpec",
    "Layer",
    "Measurement",
    "Metric",
    "OfKind",
    "Plan",
    "Progress",
    "Proof",
    "Quality",
    "Results",
    "Scheme",
    "Source",
    "Sparse",
    "Storage",
    "Subject",
    "TensorFidelity",
    "Unavailable",
    "Verdict",
    "Weight",
    "file_sha256",
    "format_bytes",
    "shown_shape",
    "symbolic",
    "tensor_nbytes",
    "unnamed",
]
