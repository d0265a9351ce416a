"""adb, as far as it goes without a device: a stand-in on PATH takes the same arguments."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeopt.errors import HostError, UsageError
from edgeopt.measure.remote.host import connect
from edgeopt.measure.remote.target import parse_target

ADB = """#!/bin/sh
[ "$1 $3 $4" = "-s shell -T" ] || exit 9
case "$2" in
  emulator-5554) exec sh -c "$5" ;;
  locked) echo "error: device unauthorized." >&2 ;;
  away) echo "error: device offline" >&2 ;;
  *) echo "adb: device '$2' not found" >&2 ;;
esac
exit 1
"""


@pytest.fixture(autouse=True)
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "adb"
    program.parent.mkdir()
    program.write_text(ADB)
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_files_arrive_and_go(tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(range(256)) * 4096)
    target = parse_target(f"adb://emulator-5554{tmp_path / 'device'}")
    with connect(target, python=sys.executable, runtimes=["onnxruntime"]) as host:
        there = host.put({"m/model.onnx": path})["m/model.onnx"]
        assert Path(there).read_bytes() == path.read_bytes()
        assert host.environment()["threads"] == 1
    assert list((tmp_path / "device").iterdir()) == []


@pytest.mark.parametrize(
    ("serial", "said"),
    [
        ("locked", "has not allowed this computer"),
        ("away", "the device is offline"),
        ("emulator-1", "no device of that serial"),
    ],
)
def test_why_not(serial: str, said: str) -> None:
    with pytest.raises(HostError, match=said), connect(parse_target(f"adb://{serial}")):
        pass


def test_no_python_on_the_device() -> None:
    with (
        pytest.raises(HostError, match="no python9 there"),
        connect(parse_target("adb://emulator-5554"), python="python9"),
    ):
        pass


def test_no_adb_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="adb: not found"), connect(parse_target("adb://x")):
        pass
