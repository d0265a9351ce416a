"""How another machine is reached: one command there, its input and output piped through.

Files travel over the same pipe as requests. So nothing is needed on the other side but a shell
and Python (no sftp server), there is one connection to fail, and its end is the signal on which
everything there ends too.
"""

from __future__ import annotations

import subprocess
from typing import IO, Protocol

from edgeopt.errors import EdgeoptError
from edgeopt.measure.remote.target import RemoteTarget

__all__ = ["Transport", "open_transport"]


class Transport(Protocol):
    """One way to another machine."""

    target: RemoteTarget

    def start(self, command: str, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        """Run a command in the other machine's shell, its stdin and stdout as binary pipes."""

    def explain(self, code: int, stderr: str) -> EdgeoptError | None:
        """Why the connection could not be made or was refused; None where it was not the
        connection that failed."""


def open_transport(target: RemoteTarget) -> Transport:
    """The transport of ``target``. Raises UsageError where its program is not installed."""
    if target.scheme == "adb":
        from edgeopt.measure.remote.adb import AdbTransport

        return AdbTransport(target)
    from edgeopt.measure.remote.ssh import SshTransport

    return SshTransport(target)
