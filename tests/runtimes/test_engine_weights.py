"""The weights engine, against arrays read by hand."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import edgeopt
from edgeopt.errors import FormatError, UsageError
from edgeopt.runtimes import engine_weights
from edgeopt.runtimes.engine import Case, make_engine
from edgeopt.runtimes.engine_weights import WeightsEngine, checksum

ARRAYS = {
    "a": np.random.default_rng(0).standard_normal((300, 17)).astype(np.float32),
    "b": np.arange(5, dtype=np.int8),
    "c": np.zeros((0, 3), np.float16),
}


def by_hand(raw: bytes) -> int:
    raw += bytes(-len(raw) % 8)
    return sum(struct.unpack(f"<{len(raw) // 8}Q", raw)) % (1 << 64)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    save_file(ARRAYS, path)
    return path


def loaded(path: Path, workload: str) -> WeightsEngine:
    engine = make_engine(Case(path, (path,), "weights", workload=workload))
    assert isinstance(engine, WeightsEngine)
    engine.imports()
    engine.load()
    engine.prepare({})
    return engine


@given(st.binary(max_size=200), st.sampled_from([8, 24, 1 << 24]))
def test_checksum(raw: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_weights, "_PIECE", piece)
        assert checksum(np.frombuffer(raw, np.uint8)) == by_hand(raw)


def test_checksum_of_what_is_not_in_one_piece() -> None:
    array = np.arange(24, dtype=np.int16).reshape(4, 6)[:, ::2]
    assert checksum(array) == by_hand(array.tobytes())
    assert checksum(np.float32(2.5)) == by_hand(np.float32(2.5).tobytes())


def test_open_maps_and_read_reads_every_byte(file: Path) -> None:
    engine = loaded(file, "open")
    assert not engine.repeats
    info = engine.info()
    assert info["checksum"] is None
    assert info["kind"] == "safetensors"
    assert info["tensors"] == 3
    assert info["bytes"] == sum(array.nbytes for array in ARRAYS.values())
    del engine
    info = loaded(file, "read").info()
    assert info["checksum"] == sum(by_hand(a.tobytes()) for a in ARRAYS.values()) % (1 << 64)
    assert info["mapped"] == {"w.safetensors": True if sys.platform == "linux" else None}


def test_other_kinds_of_file(tmp_path: Path) -> None:
    gguf, torch = pytest.importorskip("gguf"), pytest.importorskip("torch")
    path = tmp_path / "w.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("a", ARRAYS["a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    zipped = tmp_path / "w.pt"
    torch.save({"a": torch.from_numpy(ARRAYS["a"])}, zipped)
    for found in (path, zipped):
        assert loaded(found, "read").info()["checksum"] == by_hand(ARRAYS["a"].tobytes())


def test_what_cannot_be_done(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing in them to run"):
        loaded(file, "open").run()
    with pytest.raises(UsageError, match="weights are open or read"):
        loaded(file, "inference")
    with pytest.raises(UsageError, match="device cuda"):
        make_engine(Case(file, (file,), "weights", device="cuda", workload="open"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError):
        loaded(cut, "open")


def test_needs_no_more_than_numpy(file: Path) -> None:
    blocked = ("safetensors", "numba", "onnx", "ml_dtypes", "torch", "gguf", "click", "psutil")
    script = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
sys.path.insert(0, {str(Path(edgeopt.__file__).parent.parent)!r})
from pathlib import Path
from edgeopt.runtimes.engine import Case, make_engine
path = Path({str(file)!r})
engine = make_engine(Case(path, (path,), "weights", workload="read"))
assert "edgeopt.files.weights" not in sys.modules
engine.imports()
engine.load()
print(engine.info()["tensors"])
"""
    done: Any = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "3", done.stderr
