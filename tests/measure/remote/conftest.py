"""A server on loopback, once for all the tests here, and a connection once for each module."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from tests import sshd

from edgeopt.measure.remote.host import Host, connect
from edgeopt.measure.remote.target import parse_target


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


@pytest.fixture(scope="module")
def host(running: sshd.Server) -> Iterator[Host]:
    """A connection for tests that leave it as it was, in a folder of its own."""
    folder = running.folder / "shared"
    folder.mkdir(exist_ok=True)
    running.know("host")
    url = running.url.removesuffix(str(running.space)) + str(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEOPT_SSH_OPTIONS", running.options)
        with connect(parse_target(url), python=sys.executable) as host:
            yield host
    assert list(folder.iterdir()) == []
