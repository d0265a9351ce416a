"""What holds for every test."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# Timing is never asserted: not by hypothesis' deadlines either, nor by how long data takes to make.
settings.register_profile("edgeopt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgeopt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The contract suites first: a file goes to one process, and theirs take longest."""
    items.sort(key=lambda item: "contract" not in item.path.parts)
