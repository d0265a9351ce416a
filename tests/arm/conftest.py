"""The suite of ``make test-arm``: marked, and left out where its emulator was not fetched."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.arm.emulated import CPUS, Cpu, have

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = pytest.mark.skip(reason="no aarch64 sysroot; `make test-arm` fetches one")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.arm)
            item.add_marker(pytest.mark.timeout(1800))  # emulation: it is never about time
            if not have():
                item.add_marker(absent)


@pytest.fixture(params=CPUS, ids=lambda cpu: cpu.name)
def cpu(request: pytest.FixtureRequest) -> Cpu:
    found: Cpu = request.param
    return found
