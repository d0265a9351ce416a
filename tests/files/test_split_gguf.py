"""A model in several GGUF files is read whole, whichever part is named, or not at all."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

import edgeopt
from edgeopt.errors import EdgeoptError
from edgeopt.files.open import open_source

TENSORS = {f"t{i}": np.full((4, 32), i, np.float32) for i in range(6)}


def write(path: Path, names: list[str], number: int, count: int) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", count)
    writer.add_int32("split.tensors.count", len(TENSORS))
    for name in names:
        writer.add_tensor(name, TENSORS[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    names = list(TENSORS)
    return [
        write(tmp_path / f"m-{i + 1:05}-of-00003.gguf", names[2 * i : 2 * i + 2], i, 3)
        for i in range(3)
    ]


@pytest.mark.parametrize("named", [0, 1, 2])
def test_all_parts_are_read(parts: list[Path], named: int) -> None:
    source = open_source(parts[named])
    assert [w.name for w in source.weights] == list(TENSORS)
    assert source.files == tuple(parts)
    assert source.nbytes == sum(part.stat().st_size for part in parts)
    weights = edgeopt.load_weights(parts[named])
    assert set(weights) == set(TENSORS)
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(weights[name], array)


def test_a_part_is_never_taken_for_the_whole(parts: list[Path], tmp_path: Path) -> None:
    parts[1].rename(tmp_path / "kept.gguf")
    for part in (parts[0], parts[2], tmp_path / "kept.gguf"):
        for reader in (open_source, edgeopt.load_weights, edgeopt.inspect):
            with pytest.raises(EdgeoptError, match=r"part"):
                reader(part)


def test_parts_of_different_models(parts: list[Path], tmp_path: Path) -> None:
    write(parts[1], ["t2"], 2, 3)  # a third part under the second's name
    with pytest.raises(EdgeoptError, match="no part 2 of 3"):
        open_source(parts[0])
    write(parts[1], ["t0", "t3"], 1, 3)
    with pytest.raises(EdgeoptError, match="in two of its parts"):
        open_source(parts[0])
