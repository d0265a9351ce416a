"""A server on loopback, once for all the tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests import sshd


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    with sshd.running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def server(running: sshd.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[sshd.Server]:
    """The server, known to the client; whatever a test did, nothing of ours is left on it."""
    monkeypatch.setenv("EDGEOPT_SSH_OPTIONS", running.options)
    running.know("host")
    yield running
    left = sorted(path.name for path in running.space.iterdir())
    assert left == []
