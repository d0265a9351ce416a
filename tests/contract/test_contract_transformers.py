"""Every architecture of this half of the table, from the file that a user would have."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.contract.architectures import ARCHITECTURES, Architecture
from tests.contract.quantized import hold

#: Little of ours runs here that other tests do not run, and a tracer slows down all of torch.
pytestmark = pytest.mark.no_cover

HALF = [a for a in ARCHITECTURES if not a.plain]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("architecture", HALF, ids=str)
def test_architecture(
    architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(architecture, tmp_path, monkeypatch)
