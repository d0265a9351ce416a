"""A transport's own program, started with its pipes."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import IO

from edgeopt.errors import HostError, UsageError

__all__ = ["spawn"]


def spawn(
    arguments: list[str], stderr: IO[bytes], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a transport's program, its pipes unbuffered, in a session of its own: Ctrl-C reaches
    us alone, and we close the connection in order."""
    try:
        return subprocess.Popen(
            arguments,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=dict(environment),
            start_new_session=True,
        )
    except FileNotFoundError:
        raise UsageError(f"{arguments[0]}: not found; install it, or put it on PATH") from None
    except OSError as error:
        raise HostError(f"cannot start {arguments[0]}: {error.strerror}; try again") from error
