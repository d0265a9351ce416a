"""What every reader stands on: files that are not what they were, names, roles, dtypes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgeopt.errors import FormatError, SourceError
from edgeopt.files import reading
from edgeopt.files.reading import (
    FileBytes,
    is_plain_name,
    numpy_dtype,
    open_regular,
    read_json,
    read_whole,
)
from edgeopt.files.roles import role_of


def test_a_name_that_becomes_a_fifo_between_look_and_open(tmp_path, monkeypatch):
    path = tmp_path / "x"
    os.mkfifo(path)
    real = Path.stat

    class Regular:
        st_mode = stat.S_IFREG

    monkeypatch.setattr(Path, "stat", lambda self, **k: Regular if self == path else real(self))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(SourceError, match="is a FIFO"):
        open_regular(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_views_stay_inside_the_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345678")
    file = FileBytes(path)
    assert file.view(2, 3).tobytes() == b"345"
    assert file.view(8, 0).size == 0
    assert not file.view(0, 8).flags.writeable
    for offset, nbytes in ((0, 9), (8, 1), (-1, 2), (2, -1), (2**70, 1)):
        with pytest.raises(FormatError, match="past the end"):
            file.view(offset, nbytes)


def test_an_empty_file_cannot_be_mapped(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(SourceError, match="is empty"):
        FileBytes(tmp_path / "x").mapped()


def test_a_file_that_was_replaced(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"1234")
    file = FileBytes(path)
    (tmp_path / "y").write_bytes(b"5678")
    (tmp_path / "y").replace(path)
    with pytest.raises(SourceError, match="changed since"):
        file.view(0, 4)


def test_errors_that_are_not_about_files_pass():
    with pytest.raises(ValueError, match="other"), reading.reading("x"):
        raise ValueError("other")


def test_plain_names():
    assert all(map(is_plain_name, ("a", "a.b", "...", "model-00001-of-2.safetensors")))
    assert not any(map(is_plain_name, ("", ".", "..", "a/b", "/a", "a\\b", "a\0", None, 3)))


def test_json_of_another_kind(tmp_path):
    (tmp_path / "x").write_text("[1]")
    with pytest.raises(FormatError, match="holds a JSON list, a dict was expected"):
        read_json(tmp_path / "x")


def test_narrow_dtypes_are_found_without_asking_first():
    code = (
        "from edgeopt.files.reading import numpy_dtype as n; "
        "print([n(x).name for x in ('bfloat16', 'float8_e5m2', 'int4', 'float32')])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(reading.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert done.stdout == b"['bfloat16', 'float8_e5m2', 'int4', 'float32']\n"
    assert numpy_dtype("bool") == np.dtype(bool)


@pytest.mark.parametrize(
    ("name", "dtype", "role"),
    [
        ("bn1.running_var", "float32", "buffer"),
        ("bn1.num_batches_tracked", "int64", "buffer"),
        ("embeddings.position_ids", "int64", "buffer"),
        ("rotary.inv_freq", "float32", "buffer"),
        ("rope_freqs.weight", "float32", "buffer"),
        ("embeddings.position_embeddings.weight", "float32", "weight"),
        ("mask", "bool", "buffer"),
        ("running_mean_head.weight", "float32", "weight"),
        ("w", "bfloat16", "weight"),
        ("blk.0.ffn_down.weight", "Q4_K", "weight"),
        ("blk.0.ffn_down.weight", "IQ4_NL", "weight"),
    ],
)
def test_roles(name, dtype, role):
    assert role_of(name, dtype) == role


def test_a_small_file_takes_no_more_room_than_it_has(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    tracemalloc.start()
    assert read_json(path, limit=100_000_000) == {}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    with pytest.raises(FormatError, match="larger than 1 bytes"):
        read_whole(path, 1)
    assert read_whole(path, 2) == b"{}"
