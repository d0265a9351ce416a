"""Sparse files: read back bit for bit, by edgeopt and from the format's page; or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import edgeopt
from edgeopt.core import Storage, Weight
from edgeopt.errors import EdgeoptError, FormatError, SourceError
from edgeopt.files import safetensors
from edgeopt.files.open import open_source
from edgeopt.files.sparse import sparsity
from edgeopt.files.sparse_write import write_sparse
from edgeopt.files.weights import load_weights

PAGE = Path(__file__).parents[2] / "docs" / "sparse.md"


def weight(name, array, storage=None):
    def rows(lo, hi):
        return array[lo:hi] if array.shape else array

    place = Storage(storage, 0, array.nbytes) if storage else None
    return Weight(name, array.shape, array.dtype.name, array.nbytes, rows, storage=place)


def pruned(shape, dtype=np.float32, keep=0.25, seed=0):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(shape) * 50).astype(dtype)
    return np.where(rng.random(shape) < keep, values, np.zeros((), dtype))


@pytest.fixture(scope="module")
def arrays():
    odd = pruned((40, 33))
    odd.reshape(-1)[:6] = (
        np.array([0x7FC01234, 0x80000000, 0x7F800000], np.uint32).repeat(2).view(np.float32)
    )
    return {
        "odd.weight": odd,
        "conv.weight": pruned((24, 5, 3, 3), np.float16),
        "brain.weight": pruned((30, 31), ml_dtypes.bfloat16),
        "codes": pruned((50, 41), np.int8),
        "empty.weight": np.zeros((4, 0), np.float32),
        "zeros.weight": np.zeros((37, 41), np.float32),
        "dense.weight": pruned((16, 16), keep=1.0),
        "small": np.float32([0, 0, 1]),
        "scalar": np.float32(3.5),
        "tied.weight": odd,
        "odd.weight.sparse_mask": np.float32([1]),
    }


@pytest.fixture(scope="module")
def written(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("sparse") / "s.safetensors"
    shared = {"odd.weight": "s1", "tied.weight": "s1"}
    weights = [weight(name, a, shared.get(name)) for name, a in arrays.items()]
    return path, write_sparse(weights, path, {"maker": "a test"})


def test_every_tensor_comes_back_bit_for_bit(arrays, written):
    weights = load_weights(written[0])
    assert set(weights) == set(arrays)
    for name, want in arrays.items():
        described = weights.describe(name)
        assert (described.shape, described.dtype) == (want.shape, want.dtype.name)
        assert described.nbytes == want.nbytes
        got = weights[name]
        assert got.tobytes() == want.tobytes(), name
        assert not got.flags.writeable
        count = want.shape[0] if want.shape else 1
        for lo, hi in [(0, count), (count // 3, count - 1), (count, count)] if want.shape else ():
            assert described.rows(lo, hi).tobytes() == want[lo:hi].tobytes()
            assert described.rows(lo, hi).shape == (hi - lo, *want.shape[1:])
    with pytest.raises(IndexError, match="rows 0:41 of a tensor with 40 rows"):
        weights.describe("odd.weight").rows(0, 41)


def test_the_page_has_the_layout(arrays, written):
    """The reader on the format's page, which knows nothing of edgeopt, reads what we wrote."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[-1]
    assert "edgeopt." not in code
    room = {}
    exec(code, room)
    got = room["read"](written[0])
    assert {n: a.tobytes() for n, a in got.items()} == {n: a.tobytes() for n, a in arrays.items()}
    assert {n: a.shape for n, a in got.items()} == {n: a.shape for n, a in arrays.items()}


def test_bytes_are_what_is_reported(arrays, written):
    path, stored = written
    with safe_open(path, "np") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
        assert (file.metadata()["maker"], file.metadata()["edgeopt_sparse"]) == ("a test", "1")
    assert sum(s.after for s in stored) == sum(sizes.values())
    by_name = {s.name: s for s in stored}
    sparse = {s.name for s in stored if not s.reason}
    assert sparse == {"odd.weight", "conv.weight", "brain.weight", "codes", "zeros.weight"}
    for name in sparse:
        prefix = {"odd.weight": "odd.weight_"}.get(name, name)
        mask, values = sizes[f"{prefix}.sparse_mask"], sizes[f"{prefix}.sparse_values"]
        assert (mask, mask + values) == ((arrays[name].size + 7) // 8, by_name[name].after)
    assert by_name["zeros.weight"].sparsity == 1.0
    assert by_name["codes"].sparsity == np.mean(arrays["codes"] == 0)
    assert by_name["tied.weight"].reason == "stored once, as odd.weight"
    assert by_name["small"].reason == "7 bytes fewer, and about 256 more of header"
    known = sparsity(open_source(path).weights)
    assert known is not None
    assert (known.tensors, known.nbytes) == (5, sum(by_name[n].after for n in sparse))
    assert known.dense == sum(arrays[n].nbytes for n in sparse)
    assert known.nonzero == sum(by_name[n].nonzero for n in sparse)
    assert known.elements == sum(arrays[n].size for n in sparse)


def test_the_same_tensors_give_the_same_bytes(arrays, written, tmp_path):
    again = tmp_path / "again.safetensors"
    weights = [weight(n, a, "s1" if a is arrays["odd.weight"] else None) for n, a in arrays.items()]
    write_sparse(weights, again, {"maker": "a test"})
    assert again.read_bytes() == written[0].read_bytes()


def test_a_large_tensor_streams_in_pieces(tmp_path):
    """Rows of 1,000,003 elements: chunks end inside a mask byte."""
    array = pruned((3, 1_000_003), np.int8, keep=0.1)
    path = tmp_path / "large.safetensors"
    (stored,) = write_sparse([weight("w", array)], path)
    assert stored.after == (array.size + 7) // 8 + np.count_nonzero(array)
    described = load_weights(path).describe("w")
    np.testing.assert_array_equal(described.rows(1, 3), array[1:])


def test_what_cannot_be_written_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(SourceError, match="'w' is complex128, which cannot be written"):
        write_sparse([weight("w", np.zeros(4, np.complex128))], path)
    with pytest.raises(ValueError, match="edgeopt_sparse"):
        write_sparse([], path, {"edgeopt_sparse": "1"})
    with pytest.raises(ValueError, match="is taken"):
        write_sparse([weight("w", np.ones(4, np.float32))] * 2, path)


# ---------------------------------------------------------------------------------------------
# in the rest of edgeopt


def linear_file(tmp_path, name="model.safetensors"):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 64))
    with torch.no_grad():
        for layer in module:
            layer.weight.masked_fill_(torch.rand_like(layer.weight) < 0.75, 0.0)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    path = tmp_path / name
    write_sparse(open_source(tmp_path / "model.pt").weights, path)
    return module, path


def test_load_into_inspect_and_quantize_see_the_model(tmp_path):
    module, path = linear_file(tmp_path)
    with torch.device("meta"):
        other = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 64))
    edgeopt.load_into(other, path)
    for name, tensor in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    found = edgeopt.inspect(path)
    assert found.parameters == sum(p.numel() for p in module.parameters())
    assert found.findings == ()
    (note,) = (note for note in found.notes if note.startswith("stored sparse"))
    zeros = np.mean([float((layer.weight == 0).float().mean()) for layer in module])
    assert "2 tensors" in note
    assert f"{zeros:.1%} of their {2 * 64 * 48:,} values are zeros" in note
    assert sum(cause.nbytes for cause in found.causes) == path.stat().st_size
    out = tmp_path / "int8.safetensors"
    edgeopt.quantize(path, out, to="safetensors")
    error = load_weights(out)["0.weight"] - module[0].weight.detach().numpy()
    assert 0 < np.abs(error).max() < 0.01


def test_layers_are_counted_as_stored(tmp_path):
    from edgeopt.measure.layers import tensors_of

    _, path = linear_file(tmp_path)
    layers = {layer.name: layer for layer in tensors_of(open_source(path)).layers}
    known = sparsity(open_source(path).weights)
    assert known is not None
    assert layers["0.weight"].dtype == "sparse float32"
    assert layers["0.weight"].nbytes + layers["1.weight"].nbytes == known.nbytes
    assert layers["0.bias"].dtype == "float32"


def test_a_shard_may_be_sparse(tmp_path):
    module, shard = linear_file(tmp_path, "a.safetensors")
    save_file({"other": np.ones(3, np.float32)}, tmp_path / "b.safetensors")
    names = dict.fromkeys(module.state_dict(), shard.name) | {"other": "b.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    weights = load_weights(index)
    np.testing.assert_array_equal(weights["1.weight"], module[1].weight.detach().numpy())
    assert weights["other"].tolist() == [1, 1, 1]


# ---------------------------------------------------------------------------------------------
# broken files


def broken(path, change):
    """A small sound file with its tensors, its document or its strings changed."""
    array = np.float32([[0, 1, 0, 2, 0, 0, 0, 0, 0, 3]])
    mask, values = np.uint8([0b1010, 0b10]), np.float32([1, 2, 3])
    document = {"tensors": {"w": {"shape": [1, 10]}}, "tied": {}}
    metadata = {"format": "pt", "edgeopt_sparse": "1"}
    tensors = {"w.sparse_mask": mask, "w.sparse_values": values, "b": np.ones(2, np.float32)}
    change(tensors, document, metadata)
    metadata.setdefault("edgeopt", json.dumps(document))
    save_file(tensors, path, metadata)
    return array


def at(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(tensors, document, metadata):
        place = {"tensors": tensors, "document": document, "metadata": metadata}
        for key in keys:
            place = place[key]
        place[last] = value

    return change


def without(name):
    return lambda tensors, document, metadata: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (at("metadata", "edgeopt_sparse", "2"), "version 2, this edgeopt reads 1"),
        (at("metadata", "edgeopt_packed", "1"), "packed and sparse at once"),
        (at("metadata", "edgeopt", "{"), "malformed"),
        (at("metadata", "edgeopt", "[]"), "malformed"),
        (at("metadata", "edgeopt", '{"tensors": {}, "tied": []}'), "malformed"),
        (at("document", "tensors", "w", {}), "malformed"),
        (at("document", "tensors", "w", "shape", [1, -10]), "has the shape"),
        (at("document", "tensors", "w", "shape", [True, 10]), "has the shape"),
        (at("document", "tensors", "w", "shape", "10"), "has the shape"),
        (at("document", "tensors", "w", "shape", [1] * 70), "70 dimensions"),
        (at("document", "tensors", "w", "shape", [1 << 62, 1 << 62]), "more bytes than"),
        (at("document", "tensors", "w", "shape", [2]), "3 values for 2 elements"),
        (at("document", "tensors", "w", "shape", [17]), r"17 elements make it uint8\[3\]"),
        (at("document", "tensors", "w", "stored", "v"), "'v.sparse_mask'.*is missing"),
        (at("document", "tensors", "v", {"shape": [1, 10], "stored": "w"}), "is missing"),
        (at("document", "tensors", "b", {"shape": [10]}), "'b.sparse_mask'.*is missing"),
        (at("document", "tied", {"v": "nowhere"}), "ties 'v' to 'nowhere'"),
        (at("document", "tied", {"b": "w"}), "ties 'b' to 'w'"),
        (without("w.sparse_mask"), "is missing"),
        (without("w.sparse_values"), "is missing"),
        (at("tensors", "w", np.ones(3, np.float32)), "both sparse and dense"),
        (at("tensors", "w.sparse_mask", np.int8([10, 2])), "mask is int8"),
        (at("tensors", "w.sparse_mask", np.uint8([[10, 2]])), r"mask is uint8\[1, 2\]"),
        (at("tensors", "w.sparse_values", np.float32([[1, 2, 3]])), "not a row of bytes"),
        (at("tensors", "w.sparse_mask", np.uint8([0b1011, 0b10])), "4 bits set, the file 3"),
        (at("tensors", "w.sparse_values", np.float32([1, 2])), "3 bits set, the file 2"),
        (at("tensors", "w.sparse_mask", np.uint8([0b1010, 0b100])), "bits after the last of 10"),
    ],
)
def test_a_broken_file_is_an_error_in_one_line(tmp_path, change, problem):
    path = tmp_path / "x.safetensors"
    broken(path, change)
    with pytest.raises(FormatError, match=problem) as caught:
        load_weights(path)["w"]
    assert "\n" not in str(caught.value)


def test_the_sound_one_of_them_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    want = broken(path, lambda *given: None)
    np.testing.assert_array_equal(load_weights(path)["w"], want)


def test_no_byte_of_the_file_is_trusted(tmp_path):
    """Every byte damaged, and the file cut short everywhere: arrays or an EdgeoptError."""
    path = tmp_path / "x.safetensors"
    broken(path, lambda *given: None)
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for at_byte in rng.permutation(len(sound))[:250]:
        raw = bytearray(sound)
        raw[at_byte] ^= int(rng.integers(1, 256))
        for data in (bytes(raw), sound[:at_byte]):
            path.write_bytes(data)
            try:
                weights = load_weights(path)
                outcomes.add(max((weights[name].size for name in weights), default=0) <= 16)
            except EdgeoptError as error:
                assert "\n" not in str(error)
                outcomes.add("refused")
    assert outcomes == {True, "refused"}


def test_describing_reads_no_tensor(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    broken(path, lambda *given: None)

    def never(*given):
        raise AssertionError("read")

    monkeypatch.setattr(safetensors, "plain_reader", lambda *given: never)
    described = load_weights(path).describe("w")
    assert (described.shape, described.dtype, described.nbytes) == ((1, 10), "float32", 40)
    assert described.storage == Storage("x.safetensors:w", 0, 2 + 12)
