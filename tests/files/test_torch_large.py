"""Torch files larger than memory: described in little of it, mapped where they lie."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.files import torch_zip


def tensor(key: str, numel: int) -> bytes:
    """The opcodes of one float32 vector, as torch writes them."""
    name = struct.pack("<I", len(key)) + key.encode()
    size = struct.pack("<i", numel)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
        b"X" + name + b"X\3\0\0\0cpuJ" + size + b"tQK\0J" + size + b"\x85K\1\x85"
        b"\x89ccollections\nOrderedDict\n)RtR"
    )


def sparse_checkpoint(path: Path, count: int, nbytes: int) -> None:
    """A torch file of ``count`` tensors of ``nbytes`` each, all holes, as zip64."""
    keys = [str(i) for i in range(count)]
    parts = b"".join(
        b"X\4\0\0\0" + f"{i:04}".encode()
        + tensor(key, nbytes // 4) for i, key in enumerate(keys)
    )  # fmt: skip
    members = {"a/data.pkl": b"\x80\2}(" + parts + b"u.", "a/version": b"3\n"}
    directory = b""
    with path.open("wb") as out:
        for name in [*members, *(f"a/data/{key}" for key in keys)]:
            data = members.get(name, b"")
            length, crc = (len(data), zlib.crc32(data)) if data else (nbytes, 0)
            at, raw = out.tell(), name.encode()
            out.write(struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, crc, length, length,
                                  len(raw), 0) + raw)  # fmt: skip
            out.write(data)
            out.seek(at + 30 + len(raw) + length)
            extra = struct.pack("<HHQ", 1, 8, at)
            entry_fields = (45, 45, 0, 0, 0, 0, crc, length, length, len(raw), len(extra))
            directory += struct.pack(
                "<4s6H3I5H2I", b"PK\1\2", *entry_fields, 0, 0, 0, 0, 0xFFFFFFFF
            )
            directory += raw + extra
        begin, total = out.tell(), count + len(members)
        out.write(directory)
        end64 = out.tell()
        out.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, total, total,
                              len(directory), begin))  # fmt: skip
        out.write(struct.pack("<4sIQI", b"PK\6\7", 0, end64, 1))
        out.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, min(total, 0xFFFF), min(total, 0xFFFF),
                              0xFFFFFFFF, 0xFFFFFFFF, 0))  # fmt: skip


LARGE = """
import sys
from pathlib import Path
from edgeopt.files import torch_zip
path = Path(sys.argv[1])
assert torch_zip.matches(path, path.open("rb").read(64))
source = torch_zip.describe(path)
tail = source.weights[-1].rows(source.weights[-1].shape[0] - 3, source.weights[-1].shape[0])
peak = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(len(source.weights), source.nbytes, tail.tolist(), peak)
"""


def test_ten_gigabytes_in_a_hundred_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    sparse_checkpoint(path, 1000, 10_000_000)
    if path.stat().st_blocks * 512 > 100_000_000:
        path.unlink()
        pytest.skip("this file system has no sparse files")
    done = subprocess.run(
        [sys.executable, "-c", LARGE, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    count, nbytes, *tail, peak = done.stdout.replace("[", "").replace("]", "").split()
    assert (int(count), int(nbytes)) == (1000, path.stat().st_size)
    assert len(tail) == 3 and int(peak) < 100_000  # kB


def test_zip64_equals_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "large.pt"
    sparse_checkpoint(path, 5, 1_200_000_000)
    if path.stat().st_blocks * 512 > 100_000_000:
        path.unlink()
        pytest.skip("this file system has no sparse files")
    head = path.open("rb").read(64)
    assert torch_zip.matches(path, head)
    last = torch_zip.describe(path).weights[-1]
    with path.open("r+b") as stream:  # mark the last tensor's last numbers
        reader: Any = last.reader
        stream.seek(reader.stretch.start + reader.stretch.nbytes - 12)
        stream.write(np.array([1, 2, 3], "<f4").tobytes())
    last = torch_zip.describe(path).weights[-1]
    got = last.rows(last.shape[0] - 3, last.shape[0])
    loaded = torch.load(path, mmap=True, weights_only=True)
    assert list(loaded) == [w.name for w in torch_zip.describe(path).weights]
    assert got.tolist() == loaded[last.name][-3:].tolist() == [1, 2, 3]
