"""Torch files made to do harm: one typed error each, or a description. No code, no crash."""

from __future__ import annotations

import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.core import Source
from edgeopt.errors import EdgeoptError, FormatError, SourceError
from edgeopt.files import torch_legacy, torch_zip

MAGIC = 0x1950A86A20F9469CFC6C


def describe(path: Path) -> Source:
    """Describe the file and read all of it."""
    head = path.read_bytes()[:64]
    module = torch_legacy if torch_legacy.matches(path, head) else torch_zip
    source = module.describe(path)
    for weight in (*source.weights, *source.extras):
        array = weight.array()
        assert array.shape == weight.shape
    return source


def archive(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("a/data.pkl", pickled)
        out.writestr("a/byteorder", "little")
        for key, data in (storages or {}).items():
            out.writestr(f"a/data/{key}", data)
    return path


def tensor(key: str = "0", numel: int = 4, shape: bytes = b"K\4\x85", stride: bytes = b"K\1\x85",
           offset: bytes = b"K\0", kind: str = "FloatStorage") -> bytes:  # fmt: skip
    """The opcodes of one tensor, as torch writes them."""
    name = key.encode()
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\n" + kind.encode() + b"\n"
        b"X" + struct.pack("<I", len(name)) + name + b"X\3\0\0\0cpuJ" + struct.pack("<i", numel)
        + b"tQ" + offset + shape + stride + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def state_dict(*tensors: bytes) -> bytes:
    body = b"".join(b"X\1\0\0\0" + bytes([97 + i]) + t for i, t in enumerate(tensors))
    return b"\x80\2}(" + body + b"u."


DATA = np.arange(4, dtype="<f4").tobytes()


def legacy(path: Path, pickled: bytes, keys: Any = (), storages: bytes = b"") -> Path:
    parts = [pickle.dumps(obj, 2) for obj in (MAGIC, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(parts) + pickled + pickle.dumps(list(keys), 2) + storages)
    return path


def test_the_samples_here_are_sound(tmp_path: Path) -> None:
    source = describe(archive(tmp_path / "x.pt", state_dict(tensor()), {"0": DATA}))
    np.testing.assert_array_equal(source.weights[0].array(), np.arange(4))
    body = struct.pack("<q", 4) + DATA
    source = describe(legacy(tmp_path / "y.pt", state_dict(tensor()), ["0"], body))
    np.testing.assert_array_equal(source.weights[0].array(), np.arange(4))


# ------------------------------------------------------------------------------------ gadgets


def gadgets(canary: Path) -> dict[str, bytes]:
    """Opcodes that leave an object on the stack; unpickled, they would create the canary."""
    command = f"touch {canary}".encode()
    python = f"open({str(canary)!r}, 'w').close()".encode()

    def text(raw: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(raw)) + raw

    def call(module: str, name: str, *args: bytes) -> bytes:
        return f"c{module}\n{name}\n(".encode() + b"".join(args) + b"tR"

    inner = b"\x80\2" + call("posix", "system", text(command)) + b"."
    made = {
        "posix.system": call("posix", "system", text(command)),
        "nt.system": call("nt", "system", text(command)),
        "os.system": call("os", "system", text(command)),
        "builtins.eval": call("builtins", "eval", text(python)),
        "builtins.exec": call("__builtin__", "exec", text(python)),
        "subprocess.Popen": call("subprocess", "Popen", text(command), b"NNNNNN\x89\x88"),
        "runpy._run_code": call("runpy", "_run_code", text(python), b"}"),
        "numpy.testing._private.utils.runstring": call(
            "numpy.testing._private.utils", "runstring", text(python), b"}"
        ),
        "torch.storage._load_from_bytes": call(
            "torch.storage",
            "_load_from_bytes",
            b"B" + struct.pack("<I", len(inner)) + inner,
        ),
    }  # fmt: skip
    # old-style instances, __newobj__, and what BUILD would call
    made["INST"] = b"(" + text(command) + b"iposix\nsystem\n"
    made["OBJ"] = b"(cposix\nsystem\n" + text(command) + b"o"
    made["NEWOBJ"] = b"cposix\nsystem\n" + text(command) + b"\x85\x81"
    made["STACK_GLOBAL"] = b"X\5\0\0\0posixX\6\0\0\0system\x93" + text(command) + b"\x85R"
    made["getattr"] = (
        b"cbuiltins\ngetattr\n(cos\n__dict__\nX\6\0\0\0systemtR" + text(command) + b"\x85R"
    )
    made["tensor subclass"] = (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nctorch\nTensor\n"
        + text(command) + b"\x85}tR"
    )  # fmt: skip
    return made


GADGETS = list(gadgets(Path("x")))


@pytest.mark.parametrize("name", GADGETS)
def test_gadgets_are_named_and_never_called(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    gadget = gadgets(canary)[name]
    if name in ("posix.system", "builtins.exec", "OBJ", "STACK_GLOBAL"):
        pickle.loads(b"\x80\2" + gadget + b".")  # the same bytes do work
        assert canary.exists()
        canary.unlink()
    both = state_dict(tensor(), gadget)
    one = archive(tmp_path / "x.pt", both, {"0": DATA})
    other = legacy(tmp_path / "y.pt", both, ["0"], struct.pack("<q", 4) + DATA)
    for path in (one, other):
        before = path.read_bytes()
        source = describe(path)
        assert [w.name for w in source.weights] == ["a"]
        assert source.details["foreign_globals"]
        assert path.read_bytes() == before
    alone = archive(tmp_path / "z.pt", b"\x80\2" + gadget + b".")
    with pytest.raises(SourceError, match="holds no tensors"):
        describe(alone)
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore")
def test_gadget_inside_an_exported_program(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    canary = tmp_path / "canary"
    plain, doctored = tmp_path / "x.pt2", tmp_path / "y.pt2"
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, plain)
    evil = archive(tmp_path / "evil.pt", b"\x80\2" + gadgets(canary)["posix.system"] + b".")
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(doctored, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if "sample_inputs" in name:
                data = evil.read_bytes()
            if name.endswith("model.json"):
                data = data.replace(b'"guards_code": []', b'"guards_code": ["__import__"]')
            new.writestr(name, data)
    source = describe(doctored)
    assert [w.name for w in source.weights] == ["weight", "bias"]
    assert source.needs_trust and not canary.exists()


# -------------------------------------------------------------------------------- zip archives


def patched(path: Path, at: Callable[[bytes], int], form: str, value: Any) -> Path:
    raw = bytearray(path.read_bytes())
    struct.pack_into(form, raw, at(bytes(raw)), value)
    path.write_bytes(raw)
    return path


def entry(raw: bytes, name: bytes) -> int:
    """Where the directory's entry for a member begins."""
    return raw.rindex(name) - 46


ENTRY_FIELDS = {
    "flags": ("encrypted", "<H", 8, 1),
    "masked": ("encrypted", "<H", 8, 1 << 13),
    "method": ("method 12", "<H", 10, 12),
    "crc": ("CRC-32", "<I", 16, 12345),
    "packed size": ("stored in", "<I", 20, 7),
    "both sizes": ("reach past", "<Q", 20, (1 << 30) | (1 << 62)),
    "zip64 without": ("zip64 size is missing", "<I", 24, 0xFFFFFFFF),
    "header": ("no such member|begins outside", "<I", 42, 5),
    "header outside": ("begins outside", "<I", 42, 1 << 30),
    "magic": ("damaged directory", "<I", 0, 0),
    "name size": ("damaged directory", "<H", 28, 60_000),
}


@pytest.mark.parametrize("case", ENTRY_FIELDS)
def test_directory_entries(tmp_path: Path, case: str) -> None:
    problem, form, offset, value = ENTRY_FIELDS[case]
    path = archive(tmp_path / "x.pt", state_dict(tensor()), {"0": DATA})
    patched(path, lambda raw: entry(raw, b"a/data.pkl") + offset, form, value)
    with pytest.raises(FormatError, match=problem) as caught:
        describe(path)
    assert "\n" not in str(caught.value) and caught.value.field


END_FIELDS = {
    "disk": ("several parts", "<H", 4, 1),
    "counts differ": ("several parts", "<H", 8, 1),
    "count": ("does not fit", "<I", 8, 0x40004000),
    "size": ("does not fit", "<I", 12, 1 << 30),
    "offset": ("does not fit", "<I", 16, 1 << 30),
    "comment": ("bytes after it", "<H", 20, 9),
    "fewer": ("no data.pkl|not one that torch", "<I", 8, 0),
}


@pytest.mark.parametrize("case", END_FIELDS)
def test_end_record(tmp_path: Path, case: str) -> None:
    problem, form, offset, value = END_FIELDS[case]
    path = archive(tmp_path / "x.pt", state_dict(tensor()), {"0": DATA})
    patched(path, lambda raw: raw.rindex(b"PK\5\6") + offset, form, value)
    with pytest.raises(FormatError, match=problem):
        describe(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as out:
        out.writestr("a/data.pkl", state_dict(tensor()))
        out.writestr("a/data/0", DATA)
        out.writestr("a/data/0", DATA)
    with pytest.raises(FormatError, match="two members of this name"):
        describe(tmp_path / "x.pt")


def test_a_great_many_members(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as out:
        out.writestr("a/data.pkl", state_dict(tensor()))
    raw = (tmp_path / "x.pt").read_bytes()
    begin, end = entry(raw, b"a/data.pkl"), raw.rindex(b"PK\5\6")
    listed = raw[begin:end] * 60_000
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 60_000, 60_000, len(listed), begin, 0)
    (tmp_path / "x.pt").write_bytes(raw[:begin] + listed + tail)
    with pytest.raises(FormatError, match="60000 members, the limit"):
        describe(tmp_path / "x.pt")


def test_members_that_overlap(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", state_dict(tensor()), {"0": DATA, "1": DATA})
    raw = path.read_bytes()
    inner = raw.index(b"a/data/1") - 30  # the header of the last record, inside the one before
    patched(path, lambda r: entry(r, b"a/data/0") + 20, "<Q", 54 * (1 + (1 << 32)))
    assert inner > 0
    with pytest.raises(FormatError, match="overlaps"):
        describe(path)


def test_names(tmp_path: Path) -> None:
    for name, problem in ((b"a/data/\0", "NUL"), (b"a/data/\xff", "UTF-8")):
        path = archive(tmp_path / "x.pt", state_dict(tensor()), {"0": DATA})
        path.write_bytes(path.read_bytes().replace(b"a/data/0", name))
        with pytest.raises(FormatError, match=problem):
            describe(path)
    two = archive(tmp_path / "x.pt", state_dict(tensor()), {"0": DATA})
    with zipfile.ZipFile(two, "a") as out:
        out.writestr("b/data.pkl", b"N.")
    with pytest.raises(FormatError, match="2 archives"):
        describe(two)


def test_zip_bombs(tmp_path: Path) -> None:
    deflated = zipfile.ZIP_DEFLATED
    cases = {
        "bytes, the limit is": {"a/data.pkl": bytes(50_000_000)},
        "cannot be mapped": {"a/data.pkl": state_dict(tensor()), "a/data/0": bytes(16)},
    }
    for problem, members in cases.items():
        with zipfile.ZipFile(tmp_path / "x.pt", "w", deflated) as out:
            for name, data in members.items():
                out.writestr(name, data)
        with pytest.raises(FormatError, match=problem):
            describe(tmp_path / "x.pt")
    # a member that promises little and inflates to much
    with zipfile.ZipFile(tmp_path / "x.pt", "w", deflated) as out:
        out.writestr("a/data.pkl", bytes(50_000_000))
    patched(tmp_path / "x.pt", lambda raw: entry(raw, b"a/data.pkl") + 24, "<I", 1000)
    with pytest.raises(FormatError, match="does not inflate to the 1000 bytes"):
        describe(tmp_path / "x.pt")
    raw = (tmp_path / "x.pt").read_bytes()
    at = raw.index(b"a/data.pkl") + 10
    (tmp_path / "x.pt").write_bytes(raw[:at] + b"\xff" * 9 + raw[at + 9 :])
    with pytest.raises(FormatError, match=r"cannot be inflated|does not inflate"):
        describe(tmp_path / "x.pt")


def test_a_compressed_pickle_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as out:
        out.writestr("a/data.pkl", state_dict(tensor()), zipfile.ZIP_DEFLATED)
        out.writestr("a/data/0", DATA)
    assert describe(tmp_path / "x.pt").weights[0].array().tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------ storages

BAD_TENSORS = {
    "past the end": (tensor(shape=b"K\5\x85"), "needs 20 bytes of storage data/0, it has 16"),
    "offset": (tensor(offset=b"K\1"), "needs 20 bytes"),
    "stride": (tensor(shape=b"K\2\x85", stride=b"K\4\x85"), "needs 20 bytes"),
    "huge stride": (
        tensor(shape=b"K\2\x85", stride=b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"),
        "needs",
    ),
    "huge shape": (
        tensor(shape=b"\x8a\x07" + b"\xff" * 6 + b"\x7f\x85", stride=b"K\0\x85"),
        "claims",
    ),
    "product wraps": (
        tensor(shape=b"\x8a\x05\0\0\0\0\1\x8a\x05\0\0\0\0\1\x86", stride=b"K\0K\0\x86"),
        "claims",
    ),
    "empty and huge": (
        tensor(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7fK\0\x86", stride=b"K\0K\0\x86"),
        "claims",
    ),
    "negative": (tensor(shape=b"J\xff\xff\xff\xff\x85"), "no list of sizes"),
    "floating": (tensor(shape=b"G" + bytes(8) + b"\x85"), "no list of sizes"),
    "true": (tensor(shape=b"\x88\x85"), "no list of sizes"),
    "ranks differ": (tensor(shape=b"K\1K\4\x86"), "do not fit one another"),
    "rank": (tensor(shape=b"(" + b"K\1" * 40 + b"t"), "40 dimensions"),
    "size": (tensor(numel=5), "16 bytes, the pickle says 20"),
    "smaller": (tensor(numel=3, shape=b"K\3\x85"), "16 bytes, the pickle says 12"),
    "negative size": (tensor(numel=-1), "no size"),
    "no such record": (tensor(key="7"), "no record"),
    "a way out": (tensor(key="../../x"), "no record"),
    "type": (tensor(kind="EvilStorage"), "storage type EvilStorage"),
    "few arguments": (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "0 arguments"),
    "no storage": (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0))tR", "whose storage is none"),
    "dtype": (
        tensor().replace(b"_v2", b"_v3")[:-2] + b"ctorch\nevil\ntR",
        "dtype torch.evil is not one",
    ),
    "sparse": (b"ctorch._utils\n_rebuild_sparse_tensor\n(NNtR", "sparse tensor of unknown layout"),
    "persistent id": (b"NQ", "names no storage"),
}  # fmt: skip


def test_names_from_the_file_cannot_break_a_message(tmp_path: Path) -> None:
    name = "\x1b[2J\nall is well\r" + "x" * 900
    raw = b"X" + struct.pack("<I", len(name)) + name.encode()
    bad = b"\x80\2}(" + raw + tensor(shape=b"K\5\x85") + b"u."
    foreign = b"\x80\2ca\x1b\r\n" + b"b" * 3000 + b"\n)R."
    for pickled in (bad, foreign):
        with pytest.raises(SourceError) as caught:
            describe(archive(tmp_path / "x.pt", pickled, {"0": DATA}))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 700


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors(tmp_path: Path, case: str) -> None:
    bad, problem = BAD_TENSORS[case]
    with pytest.raises(FormatError, match=problem) as caught:
        describe(archive(tmp_path / "x.pt", state_dict(bad), {"0": DATA}))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_legacy_storages(tmp_path: Path) -> None:
    body = struct.pack("<q", 4) + DATA
    cases = {
        "truncated: its size": (["0"], body[:5]),
        "4 elements, 15 bytes": (["0"], body[:-1]),
        "-1 elements": (["0"], struct.pack("<q", -1) + DATA),
        "elements, 16 bytes": (["0"], struct.pack("<q", 2**62) + DATA),
        "the pickle says 16": (["0"], struct.pack("<q", 3) + DATA),
        "is not in the file": ([], b""),
        "twice": (["0", "0"], body * 2),
        "of no tensor": (["1"], body),
        "no list of names": ([1], body),
    }
    for problem, (keys, storages) in cases.items():
        with pytest.raises(FormatError, match=problem):
            describe(legacy(tmp_path / "x.pt", state_dict(tensor()), keys, storages))
    for raw, problem in (
        (pickle.dumps(MAGIC + 1, 2), "magic number is wrong"),
        (pickle.dumps(MAGIC, 2) + pickle.dumps(1002, 2), "version 1002"),
        (pickle.dumps(MAGIC, 2), "truncated"),
    ):
        (tmp_path / "x.pt").write_bytes(raw)
        with pytest.raises(FormatError, match=problem):
            torch_legacy.describe(tmp_path / "x.pt")


# ------------------------------------------------------------------------------------- pickles

P = b"\x80\2"
BAD_PICKLES = {
    "unknown opcode": (P + b"\xfe.", "unknown opcode 0xfe"),
    "no stop": (P + b"N", "truncated"),
    "nothing": (b"", "truncated"),
    "empty stack": (P + b".", "empty stack"),
    "below the mark": (P + b"N(0000.", "empty stack|MARK"),
    "no mark": (P + b"NtN.", "MARK"),
    "memo": (P + b"h\7.", "memo 7 was never set"),
    "long string": (P + b"X\xff\xff\xff\x7fabc.", "a length of 2147483647 bytes, 4 are left"),
    "long bytes": (b"\x80\4\x8e" + b"\xff" * 8 + b".", "a length of 18446744073709551615"),
    "long integer": (P + b"\x8b\xff\xff\xff\x7f1.", "an integer of 2147483647 bytes"),
    "negative integer": (P + b"\x8b\xff\xff\xff\xff1.", "an integer of -1 bytes"),
    "frame": (b"\x80\4\x95" + b"\xff" * 8 + b"N.", "a frame of"),
    "protocol": (b"\x80\6N.", "protocol 6"),
    "buffers": (b"\x80\5\x97.", "out-of-band"),
    "not utf-8": (P + b"X\1\0\0\0\xff.", "utf-8"),
    "odd items": (P + b"}(Nu.", "key without a value"),
    "items of None": (P + b"N(NNu.", "sets items of a NoneType"),
    "append to None": (P + b"NNa.", "appends to a NoneType"),
    "call with None": (P + b"cos\nsystem\nNR.", "no tuple"),
    "global of numbers": (b"\x80\4K\1K\2\x93.", "no string"),
    "line": (P + b"c" + b"a" * 10_000 + b"\n.", "no end of line"),
    "text integer": (b"Ix1\n.", "is no integer"),
    "endless integer": (b"I" + b"9" * 4000 + b"\nN.", "holds no tensors"),
    "text float": (b"Fx\n.", "is no number"),
    "text string": (b"Sabc\n.", "without quotes"),
    "latin1": (P + b"c_codecs\nencode\n(X\2\0\0\0\xc4\x80X\6\0\0\0latin1tR.", "no bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_bad_pickles(tmp_path: Path, case: str) -> None:
    raw, problem = BAD_PICKLES[case]
    with pytest.raises(SourceError, match=problem):
        describe(archive(tmp_path / "x.pt", raw))


#: Pickles that want much memory or time, made by a child that measures itself.
GREEDY = """
import struct, sys, zipfile
P, n = b"\\x80\\2", 520_000
tensor = bytes.fromhex(sys.argv[2])
primes = b"".join(b"\\x8a\\x08" + struct.pack("<q", (2**61 - 1) * i % 2**62) + b"N"
                  for i in range(1, 20_000))
floats = b"".join(b"G" + struct.pack(">d", i * 2.0**-1000) + b"N" for i in range(1, 20_000))
doubling = b"".join(b"](" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1])
                    for i in range(60))
modules = b"".join(
    b"cm\\nM\\n)R}(X\\x08\\0\\0\\0_buffers}X\\x0b\\0\\0\\0_parameters}X\\x08\\0\\0\\0_modules"
    b"}(X\\1\\0\\0\\0ah" + bytes([i]) + b"X\\1\\0\\0\\0bh" + bytes([i]) + b"uubq" + bytes([i + 1])
    for i in range(60))
cases = {
    "dicts": P + b"}" * n + b".", "lists": P + b"]" * n + b".",
    "marks": P + b"(" * 2 * n, "memo": b"\\x80\\4N" + b"\\x94" * 2 * n,
    "tuples": P + b")" + b"\\x85" * n + b".", "deep": P + b")" + b"\\x85" * 100_000 + b".",
    "deep lists": P + b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep dicts": P + b"}" + b"N}" * 100_000 + b"s" * 100_000 + b".",
    "deep objects": P + b"cm\\nf\\nq\\0" + b"h\\0" * 90_000 + b")" + b"R\\x85" * 90_000 + b".",
    "objects": P + b"cm\\nf\\nq\\0" + b"h\\0)R" * n,
    "names": P + b"".join(b"cm%d\\nx\\n" % i for i in range(200_000)),
    "strings": P + (b"U\\xff" + b"a" * 255) * 150_000,
    "copies": P + b"cbuiltins\\nlist\\nq\\0](" + b"N" * 50_000
        + b"eq\\1" + b"h\\0h\\1\\x85R" * 50_000,
    "colliding integers": P + b"}(" + primes + b"u.",
    "colliding numbers": P + b"}(" + floats + b"u.",
    "doubling lists": P + b"]q\\0" + doubling + b".",
    "doubling modules": P + tensor + b"q\\0" + modules + b".",
    "circle": P + b"]q\\0h\\0a.",
    "same tensor often": P + tensor + b"q\\0](" + b"h\\0" * 400_000 + b"e.",
    "long names": P + b"}q\\0X\\xff\\x0f\\0\\0" + b"a" * 4095 + tensor + b"s.",
}
for number, (name, raw) in enumerate(cases.items()):
    with zipfile.ZipFile(f"{sys.argv[1]}/{number} {name}.pt", "w") as out:
        out.writestr("a/data.pkl", raw)
        out.writestr("a/data/0", bytes(16))
"""

DESCRIBE = """
import sys
from pathlib import Path
import numpy, ml_dtypes
from edgeopt.errors import EdgeoptError
from edgeopt.files import torch_zip
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
before = peak()
for path in sorted(Path(sys.argv[1]).glob("*.pt"), key=lambda p: int(p.name.split()[0])):
    try:
        found = len(torch_zip.describe(path).weights)
    except EdgeoptError as error:
        found = f"{type(error).__name__}: {error}"
    print(peak() - before, "kB", path.name, found)
"""


def test_greedy_pickles_stay_within_64_mb(tmp_path: Path) -> None:
    for code in (GREEDY, DESCRIBE):
        command = [sys.executable, "-c", code, tmp_path, tensor().hex()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
        assert done.returncode == 0, done.stderr + done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) == 20 and "Error" in done.stdout, done.stdout
    assert int(lines[-1].split()[0]) < 64_000, done.stdout


# ------------------------------------------------------------------------- damage, anywhere


def sound_files(folder: Path) -> dict[str, Path]:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = {"model": model.state_dict(), "epoch": 3, "f8": torch.ones(3).to(torch.float8_e5m2)}
    made = {n: folder / f"{n}.pt" for n in ("zip", "module", "legacy", "script", "exported")}
    torch.save(state, made["zip"])
    torch.save(model, made["module"])
    torch.save(state, made["legacy"], _use_new_zipfile_serialization=False)
    model.eval()
    torch.jit.save(torch.jit.script(model), made["script"])
    torch.export.save(torch.export.export(model, (torch.ones(2, 3),)), made["exported"])
    return made


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    files = sound_files(tmp_path_factory.mktemp("sound"))
    return {name: path.read_bytes() for name, path in files.items()}


def survives(path: Path, raw: bytes) -> bool:
    """Whether the damaged file was described; anything but a typed error fails the test."""
    path.write_bytes(raw)
    try:
        describe(path)
    except EdgeoptError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return False
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["zip", "module", "legacy", "script", "exported"])
def test_truncated_anywhere(tmp_path: Path, sound: dict[str, bytes], name: str) -> None:
    raw = sound[name]
    assert survives(tmp_path / "x.pt", raw)
    for stop in [*range(min(200, len(raw))), *range(200, len(raw), 97), len(raw) - 1]:
        assert not survives(tmp_path / "x.pt", raw[:stop])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["zip", "module", "legacy", "script", "exported"])
def test_flipped_bytes(tmp_path: Path, sound: dict[str, bytes], name: str) -> None:
    rng = random.Random(name)
    described = 0
    for _ in range(400):
        raw = bytearray(sound[name])
        for _ in range(rng.choice((1, 1, 4, 30))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        described += survives(tmp_path / "x.pt", bytes(raw))
    assert described  # padding and weights are most of a file


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["zip", "module"])
def test_flipped_bytes_of_the_pickle(tmp_path: Path, sound: dict[str, bytes], name: str) -> None:
    """With no CRC to tell (torch may leave it out): the machine has to hold by itself."""
    raw = bytearray(sound[name])
    entry_at = entry(bytes(raw), name.encode() + b"/data.pkl")
    struct.pack_into("<I", raw, entry_at + 16, 0)
    (size,), (header,) = (struct.unpack_from("<I", raw, entry_at + at) for at in (24, 42))
    begin = header + 30 + sum(struct.unpack_from("<2H", raw, header + 26))
    assert raw[begin : begin + 2] == P
    rng = random.Random(name)
    for _ in range(500):
        damaged = bytearray(raw)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[begin + rng.randrange(size)] = rng.randrange(256)
        survives(tmp_path / "x.pt", bytes(damaged))


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=200))
def test_random_pickles(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.pt"
    survives(path, archive(path, P + raw + b".").read_bytes())


@settings(max_examples=100, deadline=None)
@given(
    obj=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
        max_leaves=30,
    ),
    protocol=st.integers(0, 5),
)
def test_plain_data_equals_pickle(obj: Any, protocol: int) -> None:
    from edgeopt.files.torch_objects import build
    from edgeopt.files.torch_pickle import Limits, read_pickle

    raw = pickle.dumps(obj, protocol)
    got, end, foreign = read_pickle(
        raw, 0, len(raw), path=Path("x"), field="x", build=build, persistent=id, limits=Limits()
    )
    assert end == len(raw)
    if protocol >= 3:  # before, bytes went through codecs and text through escapes
        assert not foreign
    assert repr(got) == repr(obj)
