"""Models on disk and a way to run the child's work in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.in_process import ready_to_export, untraced
from torch.nn.modules import transformer

from edgeopt.data.inputspec import parse_inputs
from edgeopt.files.open import open_source
from edgeopt.graphs.capture import child
from edgeopt.graphs.capture.feeds_file import write_feed


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The child's settings of torch and logging must not leak into other tests."""
    fast = torch.backends.mha.get_fastpath_enabled()
    detect = transformer._detect_is_causal_mask
    yield
    transformer._detect_is_causal_mask = detect
    torch.backends.mha.set_fastpath_enabled(fast)
    logging.disable(logging.NOTSET)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """``work(path, ...)``: what the child answers, or the error it would report."""
    ready_to_export()
    # A tracer takes as long again over torch's own code, none of which is measured.
    for module, name in ((torch.export, "export"), (torch.onnx, "export")):
        monkeypatch.setattr(module, name, untraced(getattr(module, name)))

    def run(
        path: Path,
        *,
        model: str | None = None,
        trust: bool = False,
        inputs: tuple[str, ...] = (),
        example: Mapping[str, np.ndarray] | None = None,
        opset: int = 21,
    ) -> dict[str, Any]:
        room = tmp_path / "room"
        room.mkdir()
        job: dict[str, Any] = {
            "path": str(path),
            "kind": open_source(path).kind,
            "workdir": str(room),
            "model": model,
            "trust_pickle": trust,
            "inputs": [[s.name, s.dtype, list(s.shape)] for s in parse_inputs(inputs)],
            "opset": opset,
        }
        if example is not None:
            write_feed(room / "given.npz", example)
            job["example"] = str(room / "given.npz")
        return child._do(job, room, lambda step: None)

    return run
