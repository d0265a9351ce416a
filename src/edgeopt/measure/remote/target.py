"""What ``--on`` names: ``ssh://[user@]host[:port][/folder]`` or ``adb://serial[/folder]``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeopt.errors import UsageError

__all__ = ["RemoteTarget", "parse_target"]

_EXAMPLE = "write ssh://user@host[:port][/folder], as ssh://pi@raspberrypi.local, or adb://serial"

#: A name that neither ssh nor a shell can take for an option: it begins with a letter or a digit.
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"

_SSH = re.compile(
    rf"ssh://(?:(?P<user>{_NAME})@)?"
    rf"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]|(?P<host>{_NAME}))"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<folder>/[^\0\n]*)?"
)
_ADB = re.compile(rf"adb://(?P<host>{_NAME}(?::[0-9]{{1,5}})?)(?P<folder>/[^\0\n]*)?")


@dataclass(frozen=True)
class RemoteTarget:
    """Another machine. ``host`` is what ssh resolves (its own configuration included), or adb's
    serial; ``folder``, where given, is where the files are put, in a new folder of their own."""

    scheme: str
    host: str
    user: str | None = None
    port: int | None = None
    folder: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.scheme == "ssh" and ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme}://{user}{host}{port}{self.folder or ''}"


def parse_target(text: str) -> RemoteTarget:
    """The machine that ``text`` names. Raises UsageError with an example where it names none."""
    scheme = text.partition("://")[0]
    pattern = {"ssh": _SSH, "adb": _ADB}.get(scheme) if "://" in text else None
    found = pattern.fullmatch(text) if pattern else None
    if found is None:
        raise UsageError(f"--on {text}: no machine; {_EXAMPLE}")
    parts = found.groupdict()
    folder = (parts["folder"] or "").rstrip("/") or None
    if scheme == "adb":
        return RemoteTarget("adb", parts["host"], folder=folder)
    port = int(parts["port"]) if parts["port"] else None
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"--on {text}: port {port}; ports go from 1 to 65535")
    return RemoteTarget("ssh", parts["six"] or parts["host"], parts["user"], port, folder)
