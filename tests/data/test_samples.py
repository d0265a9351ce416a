"""``--data``: every form read back row by row, fitted to a model, split; and what is refused."""

from __future__ import annotations

import io
import textwrap
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeopt.core import InputSpec
from edgeopt.data.samples import Samples, load
from edgeopt.data.split import split
from edgeopt.errors import InputsError

X = InputSpec("x", "float32", ("batch", 3, 4))
IDS = InputSpec("ids", "int64", ("batch", "seq"))
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((8, 3, 4)).astype(np.float32)


def from_module(tmp_path, monkeypatch, code, name):
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
    monkeypatch.chdir(tmp_path)
    return load(f"{name}:feeds")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_rows_come_back_as_batches_of_one(tmp_path, save):
    ids = RNG.integers(0, 9, (8, 5))
    save(tmp_path / "d.npz", x=ROWS, ids=ids)
    samples = load(str(tmp_path / "d.npz")).fit([IDS, X])
    assert len(samples) == 8
    for _ in range(2):  # again and again
        feeds = list(samples)
        assert [list(f) for f in feeds] == [["ids", "x"]] * 8
        np.testing.assert_array_equal(np.concatenate([f["x"] for f in feeds]), ROWS)
        np.testing.assert_array_equal(np.concatenate([f["ids"] for f in feeds]), ids)


def test_npz_in_fortran_order_and_by_position(tmp_path):
    np.savez(tmp_path / "d.npz", np.asfortranarray(ROWS))
    got = np.concatenate([f["x"] for f in load(str(tmp_path / "d.npz")).fit([X])])
    np.testing.assert_array_equal(got, ROWS)


def test_npz_is_streamed(tmp_path):
    """32 MB of rows are gone through in well under that."""
    np.savez(tmp_path / "d.npz", x=np.zeros((64, 128, 1024), np.float32))
    samples = load(str(tmp_path / "d.npz")).fit([InputSpec("x", "float32", ("n", 128, 1024))])
    tracemalloc.start()
    assert sum(1 for _ in samples) == 64
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_npy_is_the_only_input_whatever_its_suffix(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    (tmp_path / "rows.npy").rename(tmp_path / "rows.data")
    samples = load(str(tmp_path / "rows.data")).fit([X])
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in samples]), ROWS)
    with pytest.raises(InputsError, match="gives 1 arrays by position, the model takes 2"):
        load(str(tmp_path / "rows.data")).fit([X, IDS])


def test_by_position_the_last_may_be_a_target(tmp_path):
    """As a DataLoader of (inputs, labels) yields them."""
    np.savez(tmp_path / "pairs.npz", ROWS, np.arange(8))
    samples = load(str(tmp_path / "pairs.npz")).fit([X])
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in samples]), ROWS)
    assert samples.label.endswith("(not used: #1)")
    np.savez(tmp_path / "three.npz", ROWS, np.arange(8), np.arange(8))
    with pytest.raises(InputsError, match="gives 3 arrays by position, the model takes 1"):
        load(str(tmp_path / "three.npz")).fit([X])


def test_folder_of_samples(tmp_path):
    for i, row in enumerate(ROWS):
        np.save(tmp_path / f"{i}.npy", row)
    samples = load(str(tmp_path)).fit([X])
    assert len(samples) == 8
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in samples]), ROWS)
    assert len(load(str(tmp_path)).take(3).fit([X])) == 3


def test_folder_with_one_file_an_input(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    np.save(tmp_path / "ids.npy", np.ones((8, 2), np.int64))
    samples = load(str(tmp_path)).fit([X, IDS])
    assert len(samples) == 8
    assert next(iter(samples))["ids"].shape == (1, 2)
    assert len(load(str(tmp_path)).take(3).fit([X, IDS])) == 3
    np.save(tmp_path / "ids.npy", np.ones((7, 2), np.int64))
    with pytest.raises(InputsError, match="unequal length"):
        load(str(tmp_path)).fit([X, IDS])


def test_folder_of_folders(tmp_path):
    for name, rows in {"x": ROWS, "ids": np.ones((8, 2), np.int64)}.items():
        (tmp_path / name).mkdir()
        for i, row in enumerate(rows):
            np.save(tmp_path / name / f"{i}.npy", row)
    samples = load(str(tmp_path)).fit([X, IDS])
    assert [f["x"][0, 0, 0] for f in samples] == list(ROWS[:, 0, 0])


def test_callable_yields_dicts_tuples_or_arrays(tmp_path, monkeypatch):
    dicts = from_module(
        tmp_path,
        monkeypatch,
        """
        import numpy as np
        def feeds():
            for i in range(1000):
                yield {"x": np.full((2, 3, 4), i, np.float32), "label": np.array([1])}
        """,
        "yields_dicts",
    )
    assert dicts.count is None
    fitted = dicts.fit([X])
    assert "not used: label" in fitted.label
    feeds = list(fitted)
    assert len(feeds) == 256
    assert feeds[3]["x"].shape == (2, 3, 4)
    with pytest.raises(TypeError):
        len(fitted)
    tuples = from_module(
        tmp_path,
        monkeypatch,
        """
        import torch
        feeds = [(torch.ones(1, 3, 4, requires_grad=True), torch.ones(1, 2).long())] * 3
        """,
        "yields_tuples",
    )
    assert len(list(tuples.fit([X, IDS]))) == 3
    arrays = from_module(
        tmp_path, monkeypatch, "import numpy as np\nfeeds = lambda: [np.ones((3, 4))]", "one_array"
    )
    assert next(iter(arrays.fit([X])))["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("feeds = 3", "gives int"),
        ("def feeds(n): pass", "calling it without arguments failed"),
        ("1 / 0", "importing .* failed: ZeroDivisionError"),
        ("other = 1", "has no 'feeds'"),
        ("feeds = []", "gives no samples"),
        ("feeds = [object()]", "numbers or booleans"),
        ("import numpy as np\nfeeds = [{'x': np.ones((1, 3, 4))}, {}]", "sample 1 lacks input x"),
    ],
)
def test_callables_that_cannot_serve(tmp_path, monkeypatch, code, says, request):
    name = f"bad_{abs(hash(code))}"
    with pytest.raises(InputsError, match=says) as caught:
        list(from_module(tmp_path, monkeypatch, code, name).fit([X]))
    assert "\n" not in str(caught.value)


def make(arrays: dict[str, np.ndarray]) -> Samples:
    return Samples("here", lambda: iter([arrays]), 1)


@pytest.mark.parametrize(
    ("given", "need"),
    [
        (np.ones((1, 2), np.int32), InputSpec("a", "int64", ("b", "s"))),
        (np.ones((1, 2), np.float64), InputSpec("a", "float32", ("b", 2))),
        (np.ones((1, 2), np.float32), InputSpec("a", "float16", ("b", 2))),
        (np.ones((1, 2), np.int64), InputSpec("a", "int32", ("b", 2))),
        (np.ones((1, 2), bool), InputSpec("a", "int64", ("b", 2))),
        (np.ones((1, 2), np.int64), InputSpec("a", "bool", ("b", 2))),
        (np.ones(2, np.float32), InputSpec("a", "float32", ("b", 2))),
        (np.ones((1, 2), np.float32), InputSpec("a", "float32", (2,))),
        (np.ones(1, np.float32), InputSpec("a", "float32", ())),
        (np.full((1, 2), -np.inf, np.float64), InputSpec("a", "float32", ("b", 2))),
    ],
)
def test_safe_adaptations(given, need):
    array = next(iter(make({"a": given}).fit([need])))["a"]
    assert array.dtype == need.dtype
    assert array.ndim == len(need.shape)
    np.testing.assert_array_equal(array.ravel(), given.ravel())


@pytest.mark.parametrize(
    ("given", "need", "says"),
    [
        (np.ones((1, 2), np.uint8), InputSpec("a", "float32", ("b", 2)), "given uint8"),
        (np.ones((1, 2), np.float32), InputSpec("a", "int64", ("b", 2)), "given float32"),
        (np.full((1, 2), 2**40), InputSpec("a", "int32", ("b", 2)), "do not fit"),
        (np.full((1, 2), -1), InputSpec("a", "uint8", ("b", 2)), "do not fit"),
        (np.full((1, 2), 1e300), InputSpec("a", "float32", ("b", 2)), "do not fit"),
        (np.full((1, 2), np.nan), InputSpec("a", "float32", ("b", 2)), "NaN"),
        (np.ones((1, 3)), InputSpec("a", "float32", ("b", 2)), "size 3 on axis 1 .* needs 2"),
        (np.ones((1, 1, 1, 2)), InputSpec("a", "float32", ("b", 2)), "4 axes"),
        (np.ones((1, 2)), InputSpec("a", "bfloat16", ("b", 2)), "cannot carry"),
        (np.ones((1, 2)), InputSpec("other", "float32", ("b", 2)), "lacks input other"),
    ],
)
def test_misfits_name_the_input_and_the_need(given, need, says):
    with pytest.raises(InputsError, match=says) as caught:
        make({"a": given}).fit([need])
    assert "\n" not in str(caught.value)


def test_shared_dimensions_agree():
    feed = {"ids": np.ones((1, 5), int), "mask": np.ones((1, 6), int)}
    with pytest.raises(InputsError, match="'seq', given 5 and 6"):
        make(feed).fit([IDS, InputSpec("mask", "int64", ("batch", "seq"))])


def test_fixed_batch_gathers_rows_and_drops_the_rest(tmp_path):
    np.savez(tmp_path / "d.npz", x=ROWS, flag=np.ones(8, np.float32))
    fixed = [InputSpec("x", "float32", (3, 3, 4)), InputSpec("flag", "float32", (1,))]
    samples = load(str(tmp_path / "d.npz")).fit(fixed)
    assert len(samples) == 2
    feeds = list(samples)
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in feeds]), ROWS[:6])
    assert feeds[0]["flag"].shape == (1,)
    with pytest.raises(InputsError, match="gives 8 samples, the model takes batches of 9"):
        load(str(tmp_path / "d.npz")).fit([InputSpec("x", "float32", (9, 3, 4))])


def npy_bytes(array, **kwargs) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **kwargs)
    return stream.getvalue()


def write_zip(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


def test_files_that_cannot_serve(tmp_path):
    objects = np.array([{"a": 1}, None], dtype=object)
    good = npy_bytes(ROWS)
    cases = {
        "objects.npy": (npy_bytes(objects), "never unpickled"),
        "text.npy": (npy_bytes(np.array(["a"])), "numbers or booleans"),
        "scalar.npy": (npy_bytes(np.float32(1)), "leading sample axis"),
        "cut.npy": (good[:-5], "cannot be read"),
        "noise.npy": (b"hello there", "neither .npz nor .npy"),
        "empty.npy": (b"", "neither .npz nor .npy"),
    }
    for name, (data, says) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputsError, match=says):
            load(str(tmp_path / name)).fit([X])
    archives = {
        "objects.npz": ({"x": npy_bytes(objects)}, "Python objects"),
        "scalar.npz": ({"x": npy_bytes(np.float32(1))}, "single number"),
        "cut.npz": ({"x": good[:-5]}, "5 bytes early"),
        "uneven.npz": ({"x": good, "y": npy_bytes(ROWS[:3])}, "unequal length"),
        "none.npz": ({}, "holds no arrays"),
        "noise.npz": ({"x": b"hello there, this is no array"}, "cannot be read"),
        "wrong.npz": ({"y": good}, "lacks input x: it gives y, the model takes x"),
    }
    for name, (members, says) in archives.items():
        write_zip(tmp_path / name, **members)
        with pytest.raises(InputsError, match=says) as caught:
            load(str(tmp_path / name)).fit([X])
        assert "\n" not in str(caught.value)
    (tmp_path / "hollow").mkdir()
    with pytest.raises(InputsError, match=r"holds no \.npy files"):
        load(str(tmp_path / "hollow"))
    with pytest.raises(InputsError, match="is no file, folder or module:callable"):
        load(str(tmp_path / "absent.npz"))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 41])
@pytest.mark.parametrize("known", [True, False])
def test_split_is_disjoint_complete_and_repeatable(count, known):
    spec = InputSpec("x", "float32", ("n", 1))
    samples = Samples(
        "here",
        lambda: ({"x": np.full((1, 1), i, np.float32)} for i in range(count)),
        count if known else None,
    ).fit([spec])
    calibration, held = split(samples)
    kept, out = ([int(f["x"][0, 0]) for f in part] for part in (calibration, held))
    assert sorted(kept + out) == list(range(count))
    assert len(out) == max(1, count // 4)
    assert (kept, out) == tuple([int(f["x"][0, 0]) for f in p] for p in split(samples))
    if known:
        assert (len(calibration), len(held)) == (len(kept), len(out))
    assert str(out[0]) in held.label
    assert "held out" in held.label


def test_one_sample_is_never_held_out_from_itself():
    feed = {"ids": np.ones((1, 5), int)}
    calibration, held = split(make(feed).fit([IDS]))
    assert len(calibration) == 1
    assert "synthetic" in held.label
    assert "one sample" in held.label
    assert all(f["ids"].shape == (1, 5) for f in held)


def test_split_wants_fitted_samples_and_a_sane_share():
    with pytest.raises(ValueError, match="fit"):
        split(make({"a": np.ones(1)}))
    with pytest.raises(ValueError, match=r"holdout is 0\.9"):
        split(make({"a": np.ones(1)}), 0.9)
