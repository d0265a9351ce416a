"""The contract that every architecture of the table is held to, at 8 and at 4 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from tests.contract.architectures import Architecture, Feed

import edgeopt
from edgeopt.core import Proof

__all__ = ["hold"]


def hold(architecture: Architecture, bits: int, folder: Path) -> None:
    """Quantize with the default gate on; the file must run at other sizes, and be covered."""
    source = folder / "source"
    source.mkdir()
    case = architecture.build(source)
    out = folder / "quantized.onnx"

    proof = edgeopt.quantize(case.path, out, bits=bits, **case.options)

    assert proof.proven, _why(proof)
    assert proof.coverage["share"] >= 0.95, proof.coverage["kept"][:5]
    if bits == 8:
        assert min(f.sqnr_db for f in proof.fidelity) >= 20
    assert out.stat().st_size < proof.source["nbytes"]
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    first, second = (_run(session, feed) for feed in case.feeds)
    for name in first:
        assert np.isfinite(first[name]).all() and np.isfinite(second[name]).all(), name
        assert first[name].shape[0] == _batch(case.feeds[0]), name
        assert second[name].shape[0] == _batch(case.feeds[1]), name


def _run(session: onnxruntime.InferenceSession, feed: Feed) -> dict[str, np.ndarray]:
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name: np.asarray(feed[value.name]) for value in session.get_inputs()}
    return dict(zip(names, session.run(None, wanted), strict=True))


def _batch(feed: Feed) -> int:
    return next(iter(feed.values())).shape[0]


def _why(proof: Proof) -> str:
    return "; ".join(f"{c.name}: {c.found}" for c in proof.verdict.checks if not c.passed)
