"""What --on takes, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import UsageError
from edgeopt.measure.remote.target import RemoteTarget, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ssh://pi@board", RemoteTarget("ssh", "board", "pi")),
        ("ssh://board", RemoteTarget("ssh", "board")),
        ("ssh://pi@10.0.0.7:2222", RemoteTarget("ssh", "10.0.0.7", "pi", 2222)),
        (
            "ssh://pi@[fe80::1%eth0]:22/srv/x",
            RemoteTarget("ssh", "fe80::1%eth0", "pi", 22, "/srv/x"),
        ),
        ("ssh://board/", RemoteTarget("ssh", "board")),
        ("adb://emulator-5554", RemoteTarget("adb", "emulator-5554")),
        ("adb://10.0.0.7:5555/sdcard", RemoteTarget("adb", "10.0.0.7:5555", folder="/sdcard")),
    ],
)
def test_reads(text: str, target: RemoteTarget) -> None:
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text",
    [
        "", "board", "pi@board", "ssh:board", "http://board", "ssh://", "ssh://@board",
        "ssh://-oProxyCommand=x", "ssh://-l@board", "ssh://pi@-board", "ssh://a b", "ssh://a;b",
        "ssh://pi:secret@board", "ssh://board:port", "ssh://board:", "ssh://board:123456",
        "ssh://board\n", "adb://", "adb://-d", "adb://a b", "ssh://pi@board$(x)", "ssh://board?q",
    ],
)  # fmt: skip
def test_refuses_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"ssh://pi@raspberrypi\.local"):
        parse_target(text)


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_a_port_has_limits(port: int) -> None:
    with pytest.raises(UsageError, match=f"port {port}"):
        parse_target(f"ssh://board:{port}")


@given(st.text(max_size=30))
def test_nothing_gets_past_as_an_option(text: str) -> None:
    try:
        target = parse_target(f"ssh://{text}")
    except UsageError:
        return
    assert not target.host.startswith("-")
    assert not (target.user or "").startswith("-")
    assert parse_target(str(target)) == target
