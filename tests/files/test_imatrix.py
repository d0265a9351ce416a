"""Importance matrices: gguf-py makes and reads the files, llama.cpp quantizes by them."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.core import Weight
from edgeopt.errors import EdgeoptError, FormatError, SourceError
from edgeopt.files.imatrix import Imatrix, ImatrixEntry, read_imatrix, write_imatrix

gguf_py = pytest.importorskip("gguf")


def entry(columns: int, matrices: int = 1, seed: int = 0) -> ImatrixEntry:
    rng = np.random.default_rng(seed)
    sums = rng.uniform(0, 100, columns * matrices).astype(np.float32)
    return ImatrixEntry(sums, rng.integers(1, 500, matrices))


def example() -> Imatrix:
    return Imatrix(
        {
            "blk.0.attn_q.weight": entry(64),
            "blk.1.ffn_down_exps.weight": entry(32, 4, 1),
            "blk.0.ffn_up.weight": entry(96, seed=2),
        },
        datasets=("wiki.txt", "é.txt"),
        chunks=7,
        chunk_size=512,
    )


def tensor(name: str, *shape: int) -> Weight:
    def unread(lo: int, hi: int) -> np.ndarray:
        raise AssertionError("values are not needed")

    return Weight(name, shape, "float32", 4, unread)


def legacy(path: Path, matrix: Imatrix, *, tail: bool = True) -> None:
    """The older form, with the mean times the number of calls, as llama.cpp writes it."""
    raw = struct.pack("<i", len(matrix.entries))
    for name, e in matrix.entries.items():
        calls = 3
        raw += struct.pack("<i", len(name)) + name.encode()
        raw += struct.pack("<ii", calls, e.sums.size) + (e.means * calls).astype("<f4").tobytes()
    if tail:
        dataset = matrix.datasets[0].encode()
        raw += struct.pack("<ii", matrix.chunks, len(dataset)) + dataset
    path.write_bytes(raw)


# ---------------------------------------------------------------------------------------------
# both forms


def test_what_is_written_is_what_gguf_py_reads(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, example())
    reader = gguf_py.GGUFReader(path)
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.datasets").contents() == ["wiki.txt", "é.txt"]
    assert reader.get_field("imatrix.chunk_count").contents() == 7
    assert reader.get_field("imatrix.chunk_size").contents() == 512
    found = {t.name: np.array(t.data).reshape(-1) for t in reader.tensors}
    for name, e in example().entries.items():
        np.testing.assert_array_equal(found.pop(f"{name}.in_sum2"), e.sums)
        np.testing.assert_array_equal(found.pop(f"{name}.counts"), e.counts)
    assert not found


def test_a_written_matrix_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, example())
    back = read_imatrix(path)
    assert back.datasets == example().datasets
    assert (back.chunks, back.chunk_size) == (7, 512)
    assert set(back.values) == set(example().values)
    for name, values in example().values.items():
        np.testing.assert_array_equal(back.values[name], values)
    assert back.sha256() == example().sha256()


def test_what_gguf_py_writes_is_read(tmp_path: Path) -> None:
    # llama.cpp drops the outer dimension of a tensor with one matrix.
    path = tmp_path / "theirs.gguf"
    writer = gguf_py.GGUFWriter(path, "unused")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a.txt"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 128)
    sums = np.array([8.0, 0.0, 2.0, 6.0], np.float32)
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", sums)
    writer.add_tensor("blk.0.attn_q.weight.counts", np.array([4.0], np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", np.stack([sums, sums]))
    writer.add_tensor("blk.0.ffn_up_exps.weight.counts", np.array([[2.0], [0.0]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    back = read_imatrix(path)
    assert back.datasets == ("a.txt",)
    np.testing.assert_array_equal(back.values["blk.0.attn_q.weight"], [2, 0, 0.5, 1.5])
    # The expert that no token went to weighs all its columns alike.
    np.testing.assert_array_equal(back.values["blk.0.ffn_up_exps.weight"], [4, 0, 1, 3, 1, 1, 1, 1])


@pytest.mark.parametrize("tail", [True, False])
def test_the_older_form_is_read(tmp_path: Path, tail: bool) -> None:
    path = tmp_path / "imatrix.dat"
    legacy(path, example(), tail=tail)
    back = read_imatrix(path)
    for name, values in example().values.items():
        np.testing.assert_allclose(back.values[name], values, rtol=1e-6)
    assert (back.datasets, back.chunks) == ((("wiki.txt",), 7) if tail else ((), 0))


def test_an_older_form_without_calls_gives_the_values_themselves(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    values = np.array([1.0, 2.5], "<f4")
    path.write_bytes(struct.pack("<ii1sii", 1, 1, b"a", 0, 2) + values.tobytes())
    np.testing.assert_array_equal(read_imatrix(path).values["a"], values)


def test_llama_cpp_quantizes_by_the_values_that_are_read(tmp_path: Path) -> None:
    """Its quantizer and ggml's row function agree on a tensor when both get our values."""
    pytest.importorskip("llama_cpp", reason="llama.cpp quantizes")
    from tests import ggml_oracle
    from tests.llm.mix_models import decoder, model_of, numbers, quantized_types, write_f32

    from edgeopt.files.gguf import describe

    name = "blk.0.attn_q.weight"
    model = model_of("llama", decoder(1), **numbers(1))
    write_f32(model, tmp_path / "f32.gguf")
    write_imatrix(tmp_path / "imatrix.gguf", Imatrix({name: entry(256)}))
    values = read_imatrix(tmp_path / "imatrix.gguf").fitted(model.tensors).values
    quantized_types(tmp_path / "f32.gguf", tmp_path / "out.gguf", 2, importance=values)
    theirs = next(w for w in describe(tmp_path / "out.gguf").weights if w.name == name).array()
    weights = next(w for w in model.tensors if w.name == name).array()
    np.testing.assert_array_equal(theirs, ggml_oracle.encode("Q4_0", weights, values[name]))
    assert (theirs != ggml_oracle.encode("Q4_0", weights)).any()


# ---------------------------------------------------------------------------------------------
# on a model


def test_values_fit_the_models_tensors() -> None:
    weights = [
        tensor("token_embd.weight", 100, 64),
        tensor("blk.0.attn_norm.weight", 64),
        tensor("blk.0.attn_q.weight", 8, 64),
        tensor("blk.1.ffn_down_exps.weight", 4, 8, 32),
    ]
    fitted = example().fitted(weights)
    assert fitted.values["blk.0.attn_q.weight"].shape == (64,)
    assert fitted.values["blk.1.ffn_down_exps.weight"].shape == (4, 32)
    assert fitted.without == ("token_embd.weight",)
    assert fitted.unused == ("blk.0.ffn_up.weight",)
    assert str(fitted) == "importances for 2 of 3 matrices"


def test_other_columns_are_an_error() -> None:
    with pytest.raises(SourceError, match=r"has 64 importances for .* 32 input columns"):
        example().fitted([tensor("blk.0.attn_q.weight", 8, 32)])


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(SourceError, match="none of its 3 tensors"):
        example().fitted([tensor("blk.0.attn_x.weight", 8, 64)])


def test_a_token_table_that_does_not_fit_is_left_alone() -> None:
    odd = Imatrix({"token_embd.weight": entry(7), "a": entry(32)})
    fitted = odd.fitted([tensor("token_embd.weight", 9, 32), tensor("a", 4, 32)])
    assert list(fitted.values) == ["a"]
    assert fitted.without == ("token_embd.weight",)


# ---------------------------------------------------------------------------------------------
# files that are none


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    writer = gguf_py.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_type("model")
    writer.add_tensor("a", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match="of type 'model', no importance matrix"):
        read_imatrix(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a.in_sum2": [1.0]}, r"\.in_sum2 and \.counts both"),
        ({"a.counts": [1.0]}, r"\.in_sum2 and \.counts both"),
        ({"a.in_sum2": [1.0, -1.0], "a.counts": [1.0]}, "negative"),
        ({"a.in_sum2": [1.0, np.nan], "a.counts": [1.0]}, "no numbers"),
        ({"a.in_sum2": [1.0, np.inf], "a.counts": [1.0]}, "infinite"),
        ({"a.in_sum2": [1.0], "a.counts": [np.nan]}, "counts are"),
        ({"a.in_sum2": [1.0], "a.counts": [1e30]}, "a count of 1e"),
        ({"a.in_sum2": [1.0, 2.0, 3.0], "a.counts": [1.0, 1.0]}, "3 sums of squares for 2"),
        ({}, "holds no tensor"),
    ],
)
def test_values_that_no_sum_can_have(tmp_path: Path, tensors: dict, said: str) -> None:
    path = tmp_path / "odd.gguf"
    writer = gguf_py.GGUFWriter(path, "unused")
    writer.add_type("imatrix")
    for name, values in tensors.items():
        writer.add_tensor(name, np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match=said):
        read_imatrix(path)


def test_values_must_be_float32(tmp_path: Path) -> None:
    writer = gguf_py.GGUFWriter(tmp_path / "half.gguf", "unused")
    writer.add_type("imatrix")
    writer.add_tensor("a.in_sum2", np.ones(8, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match="is F16, F32 was expected"):
        read_imatrix(tmp_path / "half.gguf")


HUGE = 2**31 - 1
ONE = struct.pack("<i1siif", 1, b"a", 1, 1, 2.0)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty"),
        (b"\0\0", "cut short"),
        (struct.pack("<i", HUGE) + bytes(64), "claims 2147483647 entries"),
        (struct.pack("<i", -1) + bytes(64), "claims -1 entries"),
        (b"once upon a time, in a text file", "an importance matrix"),
        (struct.pack("<ii", 1, HUGE) + bytes(64), "a text of 2147483647 bytes"),
        (struct.pack("<ii", 1, -1) + bytes(64), "a text of -1 bytes"),
        (struct.pack("<ii1sii", 1, 1, b"a", 1, HUGE) + bytes(64), "claims 2147483647 values"),
        (struct.pack("<ii1sii", 1, 1, b"a", 1, 0) + bytes(64), "claims 0 values"),
        (struct.pack("<ii1siif", 1, 1, b"a", -5, 1, 2.0), "claims -5 calls"),
        (struct.pack("<ii1siif", 1, 1, b"\xff", 1, 1, 2.0), "not UTF-8"),
        (struct.pack("<ii1siif", 1, 1, b"a", 1, 1, np.nan), "no numbers"),
        (struct.pack("<i", 2) + ONE + ONE, "is there twice"),
        (struct.pack("<i", 1) + ONE + struct.pack("<ii1si", 1, 1, b"d", 0), "4 bytes follow"),
        (struct.pack("<i", 1) + ONE + b"abc", "cut short"),
        (struct.pack("<i", 1) + ONE + struct.pack("<ii", 1, 9), "a text of 9 bytes"),
    ],
)
def test_broken_files_say_where(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "broken.dat"
    path.write_bytes(raw)
    with pytest.raises(SourceError, match=said) as caught:
        read_imatrix(path)
    assert "\n" not in str(caught.value)


def fuzzed(path: Path, base: bytes, edits: list[tuple[int, bytes]], cut: int) -> None:
    raw = bytearray(base)
    for at, patch in edits:
        at %= len(raw)
        raw[at : at + len(patch)] = patch
    path.write_bytes(bytes(raw[: len(raw) - cut % len(raw)]))


WORDS = st.sampled_from(
    [struct.pack("<i", n) for n in (-1, 0, 1, 1 << 20, HUGE)]
    + [struct.pack("<Q", n) for n in (0, 2**32, 2**60, 2**64 - 1)]
    + [struct.pack("<f", f) for f in (np.nan, np.inf, -1.0)]
)


@pytest.mark.parametrize("form", ["gguf", "legacy"])
@settings(
    max_examples=300, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(st.tuples(st.integers(0, 5000), WORDS), max_size=4), cut=st.integers(0, 300))
def test_damage_gives_typed_errors_in_little_memory(
    form: str, tmp_path: Path, edits: list[tuple[int, bytes]], cut: int
) -> None:
    base, path = tmp_path / "base", tmp_path / "damaged"
    if not base.exists():
        (write_imatrix if form == "gguf" else legacy)(base, example())
    fuzzed(path, base.read_bytes(), edits, cut if cut < 200 else 0)
    tracemalloc.start()
    try:
        values = read_imatrix(path).values
    except EdgeoptError as error:
        assert "\n" not in str(error)
    else:
        assert all(np.isfinite(v).all() and (v >= 0).all() for v in values.values())
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    broken = Imatrix({"a": ImatrixEntry(np.zeros(6, np.float32), np.ones(4, np.int64))})
    with pytest.raises(ValueError):
        write_imatrix(tmp_path / "out.gguf", broken)
    assert not list(tmp_path.iterdir())
