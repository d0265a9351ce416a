"""Every architecture of the table at 4 bits, from the file that a user would have."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.contract.architectures import ARCHITECTURES, Architecture
from tests.contract.quantized import hold


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_quantizes_at_(architecture: Architecture, tmp_path: Path) -> None:
    hold(architecture, 4, tmp_path)
