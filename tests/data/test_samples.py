"""``--data``: every form read back row by row, fitted to a model, split; and what is refused."""

from __future__ import annotations

import io
import textwrap
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeopt.core import InputSpec, symbolic
from edgeopt.data.fitting import join_rows
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


STATE = [InputSpec("x", "float32", ("batch", 5)), InputSpec("h", "float32", (2, "batch", 4))]


@pytest.mark.parametrize("shape", [(6, 2, 1, 4), (6, 2, 4)], ids=["with its batch axis", "without"])
def test_rows_of_a_state_whose_batch_is_not_in_front(tmp_path, shape):
    x, h = RNG.standard_normal((6, 5)), RNG.standard_normal(shape)
    np.savez(tmp_path / "d.npz", x=x, h=h)
    feeds = list(load(str(tmp_path / "d.npz")).fit(STATE))
    assert [f["h"].shape for f in feeds] == [(2, 1, 4)] * 6
    for feed, row in zip(feeds, h, strict=True):
        np.testing.assert_array_equal(feed["h"][:, 0], row.reshape(2, 4).astype(np.float32))
    joined = join_rows(feeds[:3], STATE, "d.npz")
    assert joined["x"].shape == (3, 5)
    np.testing.assert_array_equal(joined["h"], h[:3].reshape(3, 2, 4).swapaxes(0, 1).astype("f4"))


@pytest.mark.parametrize("free", [True, False], ids=["free batch", "fixed batch of two"])
def test_a_state_is_batched_along_its_own_axis(free):
    batch = "n" if free else 2
    specs = [InputSpec("x", "float32", (batch, 5)), InputSpec("h", "float32", (3, batch, 4))]
    x, h = RNG.standard_normal((4, 1, 5)), RNG.standard_normal((4, 1, 3, 1, 4))
    rows = [{"x": x[i], "h": h[i]} for i in range(4)]
    feeds = list(Samples("rows", lambda: iter(rows), 4).fit(specs))
    size = 1 if free else 2
    assert len(feeds) == 4 // size
    assert feeds[0]["h"].shape == (3, size, 4)
    np.testing.assert_array_equal(feeds[0]["h"][:, size - 1], h[size - 1, 0, :, 0].astype("f4"))


def test_rows_of_inputs_without_a_batch(tmp_path):
    specs = [
        InputSpec("ids", "int64", ("n", "t")),
        InputSpec("scales", "float32", (3,)),
        InputSpec("sr", "int64", ()),
    ]
    scales = np.tile(np.float32([0, 1, 0.8]), (4, 1))
    np.savez(tmp_path / "d.npz", ids=np.ones((4, 7), int), scales=scales, sr=np.full(4, 8000))
    feeds = list(load(str(tmp_path / "d.npz")).fit(specs))
    assert [(f["ids"].shape, f["scales"].shape, f["sr"].shape) for f in feeds] == [
        ((1, 7), (3,), ())
    ] * 4
    assert int(feeds[3]["sr"]) == 8000
    assert join_rows(feeds, specs, "d")["scales"].shape == (3,)
    feeds[1]["scales"] = np.float32([5, 1, 0.8])
    with pytest.raises(InputsError, match=r"scales: float32\[3\] has one value for a whole batch"):
        join_rows(feeds, specs, "d")


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((6, 3, 4), r"save it as \[rows, 2, 1, 4\]"),
        ((6, 2, 1, 5), r"size 5 on axis 3|needs 4"),
        ((6, 4), r"save it as \[rows, 2, 1, 4\]"),
    ],
)
def test_layouts_that_fit_no_way_say_how_to_save_them(tmp_path, shape, says):
    np.savez(tmp_path / "d.npz", x=np.ones((6, 5)), h=np.ones(shape))
    with pytest.raises(InputsError, match=says):
        list(load(str(tmp_path / "d.npz")).fit(STATE))


def test_dimensions_without_a_name_need_not_agree():
    image = InputSpec(
        "x", "float32", tuple(symbolic(d, "x", i) for i, d in enumerate((None, 3, None)))
    )
    assert next(iter(make({"x": np.ones((1, 3, 9), np.float32)}).fit([image])))["x"].shape == (
        1,
        3,
        9,
    )


@pytest.mark.parametrize("dtype", ["str", "string"])
def test_strings_are_carried(tmp_path, dtype):
    text = InputSpec("text", dtype, ("n",))
    np.savez(tmp_path / "d.npz", text=np.array(["ab", "cde"]))
    feeds = list(load(str(tmp_path / "d.npz")).fit([text]))
    assert [f["text"].tolist() for f in feeds] == [["ab"], ["cde"]]
    with pytest.raises(InputsError, match="input text is given int64, the model needs strings"):
        make({"text": np.ones(1, np.int64)}).fit([text])


def test_first_samples_tell_shapes_by_name_and_by_position(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    assert {n: a.shape for n, a in load(str(tmp_path / "x.npy")).example().items()} == {
        "#0": (1, 3, 4)
    }
    folder = tmp_path / "rows"
    folder.mkdir()
    np.save(folder / "x.npy", ROWS)
    found = load(str(folder))
    assert found.bare
    assert {n: a.shape for n, a in found.example().items()} == {"#0": (8, 3, 4), "x": (1, 3, 4)}


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
        "text.npy": (npy_bytes(np.array(["a"])), "is given strings"),
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
