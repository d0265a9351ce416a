"""``load_weights``: views of the file's own pages, however long they are kept."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file
from tests.files.test_torch_large import sparse_checkpoint

from edgeopt.errors import MissingExtraError, SourceError
from edgeopt.files.weights import Weights, load_weights

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def values(shape: tuple[int, ...] = (40, 96)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def write_pt(path: Path, w: np.ndarray[Any, Any]) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.from_numpy(w)}, path)


def write_safetensors(path: Path, w: np.ndarray[Any, Any]) -> None:
    save_file({"w": w}, path)


def write_gguf(path: Path, w: np.ndarray[Any, Any]) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("w", w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_onnx(path: Path, w: np.ndarray[Any, Any]) -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, w.shape[0]])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, w.shape[1]])],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")


WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "w.pt": write_pt,
    "w.safetensors": write_safetensors,
    "w.gguf": write_gguf,
    "w.onnx": write_onnx,
}


@pytest.fixture(params=sorted(WRITERS))
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    WRITERS[request.param](path, values())
    return path


def data_file(path: Path) -> Path:
    return path.parent / "w.onnx.data" if path.suffix == ".onnx" else path


def addresses(path: Path) -> list[tuple[int, int, str]]:
    """Where a file is mapped in this process: begin, end, and ``s`` of a shared mapping."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split()
        if fields[-1] == os.path.realpath(path):
            begin, end = (int(part, 16) for part in fields[0].split("-"))
            found.append((begin, end, fields[1][3]))
    return found


@LINUX
def test_a_plain_tensor_is_the_files_own_pages(stored: Path) -> None:
    array = load_weights(stored)["w"]
    np.testing.assert_array_equal(array, values())
    assert not array.flags.writeable and array.flags.aligned
    at = array.ctypes.data
    (kind,) = {kind for lo, hi, kind in addresses(data_file(stored)) if lo <= at < hi}
    assert kind == "s", "the mapping is not shared"


def test_two_reads_of_a_tensor_are_the_same_memory(stored: Path) -> None:
    weights = load_weights(stored)
    assert np.shares_memory(weights["w"], weights["w"])


@LINUX
def test_an_array_outlives_the_weights_and_the_mapping_outlives_neither(stored: Path) -> None:
    weights = load_weights(stored)
    gone = weakref.ref(weights)
    row = weights["w"][3:5]
    del weights
    gc.collect()
    assert gone() is None
    np.testing.assert_array_equal(row, values()[3:5])
    del row
    gc.collect()
    assert not addresses(data_file(stored))


def test_a_file_cut_short_is_an_error_at_the_next_access(stored: Path) -> None:
    weights = load_weights(stored)
    weights["w"]
    os.truncate(data_file(stored), 100)
    with pytest.raises(SourceError, match="shrank from"):
        weights["w"]


def test_a_file_written_to_is_an_error_at_the_next_access(stored: Path) -> None:
    weights = load_weights(stored)
    weights["w"]
    with data_file(stored).open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
    os.utime(data_file(stored), ns=(1, 1))
    with pytest.raises(SourceError, match="written to since"):
        weights["w"]


def test_a_file_replaced_by_another_leaves_what_was_opened(stored: Path) -> None:
    weights = load_weights(stored)
    before = weights["w"]
    new = stored.parent / "new" / stored.name
    new.parent.mkdir()
    WRITERS[stored.name](new, values() * 2)
    data_file(new).replace(data_file(stored))
    np.testing.assert_array_equal(before, values())
    np.testing.assert_array_equal(weights["w"], values())
    data_file(stored).unlink()
    np.testing.assert_array_equal(weights["w"], values())


def test_what_is_written_to_a_writable_array_stays_here(stored: Path) -> None:
    before = data_file(stored).read_bytes()
    weights = load_weights(stored)
    mine, shared = weights.writable("w"), weights["w"]
    np.testing.assert_array_equal(mine, shared)
    mine[1, 2] = 77
    assert weights.writable("w")[1, 2] == 77, "one private mapping a file"
    assert shared[1, 2] == values()[1, 2]
    del weights, shared
    gc.collect()
    assert mine[1, 2] == 77
    np.testing.assert_array_equal(mine[2:], values()[2:])
    assert data_file(stored).read_bytes() == before


def test_a_file_replaced_before_it_is_made_writable(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, values())
    weights = load_weights(path)
    weights["w"]
    write_safetensors(tmp_path / "new", values())
    (tmp_path / "new").replace(path)
    with pytest.raises(SourceError, match="changed since"):
        weights.writable("w")


# ---------------------------------------------------------------------------------------------
# memory

_GROWTH = """
import os, resource, sys
from edgeopt.files.weights import load_weights

def kilobytes(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith(field)).split()[1])

load_weights(sys.argv[2])
before = kilobytes("VmRSS:"), kilobytes("RssAnon:")
weights = load_weights(sys.argv[1])
print(kilobytes("VmRSS:") - before[0])
arrays = [weights[name] for name in weights]
assert sum(a.nbytes for a in arrays) == 1_000_000_000
assert sum(float(a[::1024].sum()) for a in arrays) == 0
print(kilobytes("RssAnon:") - before[1])
"""


@LINUX
def test_a_gigabyte_costs_nothing_until_it_is_read_and_no_heap_then(tmp_path: Path) -> None:
    path, small = tmp_path / "large.pt", tmp_path / "small.pt"
    sparse_checkpoint(path, 10, 100_000_000)
    sparse_checkpoint(small, 1, 4000)
    if path.stat().st_blocks * 512 > 100_000_000:
        pytest.skip("this file system has no sparse files")
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, path, small], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    at_load, heap = map(int, done.stdout.split())
    assert at_load < 10_000, "kB resident after load_weights"
    assert heap < 10_000, "kB of anonymous memory after every page was touched"


_SHARER = """
import sys
from edgeopt.files.weights import load_weights
from edgeopt.runtimes.smaps import file_pages

total = float(load_weights(sys.argv[1])["w"].sum())
weights = load_weights(sys.argv[1])
array = weights["w"]
array.sum()
print("ready", flush=True)
sys.stdin.readline()
pages = file_pages(sys.argv[1])
print(pages.pss, pages.rss, flush=True)
sys.stdin.readline()
"""


@LINUX
def test_two_processes_have_the_pages_once(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, values((1024, 4096)))
    people = [
        subprocess.Popen(
            [sys.executable, "-c", _SHARER, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    sizes = []
    for person in people:
        assert person.stdout is not None and person.stdout.readline() == "ready\n"
    for person in people:
        assert person.stdin is not None and person.stdout is not None
        person.stdin.write("\n")
        person.stdin.flush()
        sizes.append([int(field) for field in person.stdout.readline().split()])
    for person in people:
        person.communicate("\n")
    (pss, rss) = (sum(column) for column in zip(*sizes, strict=True))
    assert min(size[1] for size in sizes) >= 16_000_000
    assert pss <= 0.6 * rss, sizes


# ---------------------------------------------------------------------------------------------
# quantized tensors

TYPES = ("Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "IQ4_NL", "TQ1_0")


def quantized(path: Path, name: str, shape: tuple[int, ...] = (6, 512)) -> Any:
    """A GGUF with a tensor of this type, and what gguf-py reads from it."""
    kind = GGMLQuantizationType[name]
    try:
        raw = quantize(values(shape), kind)
    except NotImplementedError:
        from edgeopt.core.ggml import TYPES_BY_NAME

        width = TYPES_BY_NAME[name].row_bytes(shape[-1])
        raw = np.random.default_rng(1).integers(0, 60, (*shape[:-1], width), dtype=np.uint8)
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("w", raw, raw_dtype=kind)
    writer.add_tensor("b", np.arange(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dequantize(raw, kind).reshape(shape)


@pytest.mark.parametrize("name", TYPES)
def test_block_types_are_decoded_as_gguf_py_does(tmp_path: Path, name: str) -> None:
    expected = quantized(tmp_path / "w.gguf", name)
    weights = load_weights(tmp_path / "w.gguf")
    assert weights["w"].dtype == np.float32 and not weights["w"].flags.writeable
    np.testing.assert_array_equal(weights["w"], expected)
    assert weights["b"].tolist() == [0, 1, 2, 3]
    assert weights.writable("w").flags.writeable


def test_blocks_of_a_vector_and_of_a_stack_of_matrices(tmp_path: Path) -> None:
    for shape in ((512,), (3, 4, 256)):
        expected = quantized(tmp_path / "w.gguf", "Q8_0", shape)
        got = load_weights(tmp_path / "w.gguf")["w"]
        assert got.shape == shape
        np.testing.assert_array_equal(got, expected)


def unknown(path: Path) -> Weights:
    """A tensor of Q8_K, which is made while computing only: nobody decodes it."""
    from edgeopt.core.ggml import TYPE_NUMBERS

    quantized(path, "Q8_0", (1, 256))
    raw = bytearray(path.read_bytes())
    # type number of "w": after its name, rank and two dimensions
    at = raw.index(b"\1\0\0\0\0\0\0\0w") + 9 + 4 + 16
    assert raw[at] == TYPE_NUMBERS["Q8_0"]
    raw[at] = TYPE_NUMBERS["Q8_K"]
    path.write_bytes(bytes(raw[: len(raw) - 32] + bytes(512)))
    at_b = raw.index(b"\1\0\0\0\0\0\0\0b") + 9 + 4 + 8 + 4
    raw[at_b : at_b + 8] = (320).to_bytes(8, "little")
    path.write_bytes(bytes(raw) + bytes(512))
    return load_weights(path)


def test_a_type_that_nobody_decodes_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="'w' is stored as Q8_K, which has no decoder") as caught:
        unknown(tmp_path / "w.gguf")["w"]
    assert "\n" not in str(caught.value)


def test_a_rare_type_without_gguf_py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized(tmp_path / "w.gguf", "IQ4_NL")
    weights = load_weights(tmp_path / "w.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"IQ4_NL.*needs gguf: pip install '.*\[gguf"):
        weights["w"]
    assert weights["b"].shape == (4,)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    w = torch.from_numpy(values()).bfloat16()
    torch.save({"w": w, "t": w.T}, tmp_path / "w.pt")
    weights = load_weights(tmp_path / "w.pt")
    assert weights["w"].dtype.name == "bfloat16"
    assert weights["t"].shape == (96, 40) and np.shares_memory(weights["w"], weights["t"])
    np.testing.assert_array_equal(weights["w"].view(np.uint16), w.view(torch.uint16).numpy())
    mine = weights.writable("t")
    np.testing.assert_array_equal(mine.astype(np.float32), w.T.float().numpy())
