"""Over ``adb``, to an Android device with a Python of its own.

``adb shell -T`` passes bytes through untouched in both directions, and tells of the end of either
(the shell protocol of Android 7 and later).
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import IO

from edgeopt.errors import HostError
from edgeopt.measure.remote.spawning import spawn
from edgeopt.measure.remote.target import RemoteTarget

__all__ = ["AdbTransport"]

#: What adb says -> (what happened, what to do).
_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"unauthorized",
        "the device has not allowed this computer",
        "confirm the question on its screen",
    ),
    (r"device offline", "the device is offline", "plug it in again, or: adb reconnect"),
    (
        r"device .*not found|no devices|device not found",
        "no device of that serial is connected",
        "adb devices lists those that are",
    ),
    (
        r"cannot connect to daemon|failed to start daemon",
        "adb's own server does not start",
        "adb kill-server, then adb start-server",
    ),
    (r"no permissions", "this user may not talk to the device", "set up its udev rule"),
)


class AdbTransport:
    """Commands on the device of ``target``'s serial by ``adb``."""

    def __init__(self, target: RemoteTarget) -> None:
        self.target = target

    def start(self, command: str, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        return spawn(["adb", "-s", self.target.host, "shell", "-T", command], stderr, os.environ)

    def explain(self, code: int, stderr: str) -> HostError | None:
        for pattern, cause, remedy in _CAUSES:
            if code and re.search(pattern, stderr, re.IGNORECASE):
                return HostError(f"{self.target}: {cause}; {remedy}")
        return None
