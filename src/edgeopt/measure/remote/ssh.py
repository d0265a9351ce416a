"""Over the system's own OpenSSH client, with its configuration, keys and known hosts.

Host keys are always checked and an unknown one is never accepted: that is the user's to do, once,
by hand. No password is ever asked for.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from typing import IO

from edgeopt.errors import HostError, UsageError
from edgeopt.measure.remote.spawning import spawn
from edgeopt.measure.remote.target import RemoteTarget

__all__ = ["SSH_OPTIONS", "SshTransport"]

#: The environment variable with more arguments for ssh, as a shell would split them.
SSH_OPTIONS = "EDGEOPT_SSH_OPTIONS"

#: Of an option given twice, ssh takes the first. These come before the user's own, and hold.
_ALWAYS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "LogLevel=ERROR",  # less would hide why a connection failed
    "RemoteCommand=none",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
)

#: These come after the user's own, and give way to them.
_BY_DEFAULT = ("ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4")

#: The code that ssh ends with when it failed itself, or the other side was killed.
_FAILED = 255

#: What ssh says -> (what happened, what to do). The first that is found counts.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one known for it (another machine, or somebody in between)",
        "if it was set up anew: ssh-keygen -R {known}, then connect once by hand: ssh {where}",
    ),
    (
        r"Host key verification failed|host key is known|key has been revoked",
        "its host key is not known here",
        "connect once by hand and compare the fingerprint: ssh {where}",
    ),
    (
        r"Permission denied|Too many authentication failures",
        "it does not take any of your keys",
        "set one up: ssh-copy-id {where} (passwords are never asked for)",
    ),
    (
        r"UNPROTECTED PRIVATE KEY|bad permissions",
        "a private key can be read by others, so ssh does not use it",
        "chmod 600 the key",
    ),
    (
        r"Could not resolve|Name or service not known|nodename nor servname",
        "no machine of that name can be found",
        "check the name, or give its address",
    ),
    (
        r"Connection refused",
        "it answers, but no SSH server listens there",
        "start sshd on it, or give its port: ssh://user@host:PORT",
    ),
    (
        r"timed out|No route to host|Network is unreachable|Host is down",
        "it cannot be reached",
        "check that it is on and on this network",
    ),
    (
        r"Connection (?:closed|reset)|kex_exchange_identification|Broken pipe",
        "the connection was closed",
        "try ssh {where} by hand; its log says more",
    ),
    (
        r"Bad configuration option|terminating, \d+ bad|Bad owner or permissions|"
        r"Can't open user config|unknown option|illegal option|usage: ssh",
        "ssh does not accept its configuration",
        "check ~/.ssh/config and EDGEOPT_SSH_OPTIONS",
    ),
)


class SshTransport:
    """Commands on ``target`` by ``ssh``."""

    def __init__(self, target: RemoteTarget) -> None:
        self.target = target
        try:
            self._options = shlex.split(os.environ.get(SSH_OPTIONS, ""))
        except ValueError as error:
            raise UsageError(f"{SSH_OPTIONS}: {error}; quote it as for a shell") from None

    def start(self, command: str, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        return spawn([*self.arguments(), command], stderr, {**os.environ, "LC_ALL": "C"})

    def arguments(self) -> list[str]:
        """The command line up to the remote command."""
        arguments = ["ssh", "-T", "-a", "-x"]
        for option in _ALWAYS:
            arguments += ["-o", option]
        arguments += self._options
        for option in _BY_DEFAULT:
            arguments += ["-o", option]
        if self.target.user:
            arguments += ["-l", self.target.user]
        if self.target.port:
            arguments += ["-p", str(self.target.port)]
        return [*arguments, "--", self.target.host]

    def explain(self, code: int, stderr: str) -> HostError | None:
        if code != _FAILED:
            return None
        for pattern, cause, remedy in _CAUSES:
            if re.search(pattern, stderr, re.IGNORECASE):
                return HostError(f"{self.target}: {cause}; {remedy.format_map(self._names())}")
        said = [line for line in stderr.splitlines() if line.strip()]
        if not said:
            return None
        return HostError(f"{self.target}: ssh failed ({said[-1].strip()}); try it by hand")

    def _names(self) -> dict[str, str]:
        target = self.target
        where = f"{target.user}@{target.host}" if target.user else target.host
        if target.port:
            return {
                "where": f"-p {target.port} {where}",
                "known": f"'[{target.host}]:{target.port}'",
            }
        return {"where": where, "known": target.host}
