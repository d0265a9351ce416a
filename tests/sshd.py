"""An SSH server of our own on loopback: its own host key, one key that may log in, nothing else.

The client is told of it by an ssh configuration in the same folder, so that neither the keys nor
the known hosts of whoever runs the tests are read or written.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

#: Seconds that the server may take until it listens.
_PATIENCE = 10.0


@dataclass
class Server:
    """``url`` is what --on takes, ``options`` what EDGEOPT_SSH_OPTIONS is to be, ``home`` the
    folder with the configuration and ``space`` the one where the files are put."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def options(self) -> str:
        return f"-F '{self.folder / 'config'}'"

    @property
    def space(self) -> Path:
        return self.folder / "space"

    @property
    def url(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.space}"

    def know(self, key: str | None) -> None:
        """Let the client know ``key`` (a file of ours) as the host's; none at all with None."""
        known = ""
        if key is not None:
            kind, value, *_ = (self.folder / f"{key}.pub").read_text().split()
            known = f"[127.0.0.1]:{self.port} {kind} {value}\n"
        (self.folder / "known_hosts").write_text(known)

    def is_inside(self, process: Path) -> bool:
        """Whether a process (its folder in /proc) works where the files are put."""
        try:
            return str((process / "cwd").readlink()).startswith(str(self.space))
        except OSError:  # ended meanwhile
            return False


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """A server that keeps everything in ``folder``. Skips where there is no sshd."""
    server = _start(folder)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def _start(folder: Path) -> Server:
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if sshd is None or shutil.which("ssh") is None:
        reason = "no sshd here: install openssh-server and openssh-client"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    for name in ("host", "other", "user", "stranger"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name],
            check=True,
        )
    (folder / "space").mkdir()
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    if os.geteuid() == 0:  # where sshd, as root, wants to shut its unprivileged half in
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\n"
        f"HostKey {folder / 'host'}\n"
        f"AuthorizedKeysFile {folder / 'authorized'}\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPubkeyAuthentication yes\n"
        "X11Forwarding no\nAllowTcpForwarding no\nPrintMotd no\nMaxStartups 100\n"
    )
    (folder / "config").write_text(
        "Host *\n"
        f"  IdentityFile {folder / 'user'}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {folder / 'known_hosts'}\n  GlobalKnownHostsFile /dev/null\n"
    )
    log = (folder / "sshd.log").open("wb")
    with log:
        process = subprocess.Popen(
            [sshd, "-D", "-e", "-f", folder / "sshd_config"], stderr=log, stdin=subprocess.DEVNULL
        )
    server = Server(folder, port, process)
    server.know("host")
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise AssertionError((folder / "sshd.log").read_text())
