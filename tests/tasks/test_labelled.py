"""What of --data is an input and what a target; outputs on their way to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from edgeopt.core import InputSpec
from edgeopt.errors import InputsError, OutputError, SourceError
from edgeopt.measure import answers
from edgeopt.runtimes.engine import Case
from edgeopt.tasks import labelled
from edgeopt.tasks.labelled import read_labelled

X = InputSpec("x", "float32", ("batch", 3))
ROWS = np.arange(21, dtype=np.float32).reshape(7, 3)


def save(tmp_path: Path, **arrays: Any) -> str:
    np.savez(tmp_path / "d.npz", **arrays)
    return str(tmp_path / "d.npz")


def test_targets_are_what_the_model_does_not_take(tmp_path: Path) -> None:
    data = read_labelled(save(tmp_path, x=ROWS, weird=np.arange(7)), [X])
    assert data.target is not None and data.target.tolist() == list(range(7))
    assert not data.paired and "d.npz, 7 samples (SHA-256 " in data.label
    feeds = list(data.feeds())
    assert [list(feed) for feed in feeds] == [["x"]] * 7
    assert np.array_equal(np.concatenate([feed["x"] for feed in feeds]), ROWS)
    assert len(list(data.feeds(2))) == 2
    plain = read_labelled(save(tmp_path, x=ROWS), [X])
    assert plain.target is None and plain.targets == {}


def test_of_several_targets_the_one_that_is_called_so(tmp_path: Path) -> None:
    more = {"ids": np.arange(7), "score": np.ones(7)}
    found = read_labelled(save(tmp_path, x=ROWS, **more), [X])
    assert found.target is not None and found.target.tolist() == [1] * 7
    assert sorted(found.targets) == ["ids", "score"]
    nameless = read_labelled(save(tmp_path, x=ROWS, a=np.ones(7), b=np.ones(7)), [X])
    assert nameless.target is None


def test_arrays_by_position_may_end_with_the_target(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", ROWS, np.arange(7))
    data = read_labelled(str(tmp_path / "p.npz"), [X])
    assert data.target is not None and data.target.tolist() == list(range(7))
    assert np.array_equal(next(data.feeds())["x"], ROWS[:1])


def test_batches_that_a_model_insists_on(tmp_path: Path) -> None:
    three = InputSpec("x", "float32", (3, 3))
    data = read_labelled(save(tmp_path, x=ROWS, label=np.arange(7)), [three])
    feeds = list(data.feeds())
    assert [feed["x"].shape for feed in feeds] == [(3, 3)] * 2
    assert data.target is not None and data.target.tolist() == [0, 1, 2, 3, 4, 5]  # one is left


def test_pairs_are_run_one_after_the_other(tmp_path: Path) -> None:
    mask = InputSpec("mask", "float32", ("batch",))
    shared = np.ones(7, np.float32)
    data = read_labelled(
        save(tmp_path, x=ROWS, x_b=-ROWS, mask=shared, score=np.ones(7)), [X, mask]
    )
    assert data.paired and list(data.targets) == ["score"]
    first, second, *rest = data.feeds()
    assert np.array_equal(first["x"], -second["x"]) and len(rest) == 12
    assert second["mask"].tolist() == [1.0]


def test_batches_and_labels_of_a_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loader.py").write_text(
        "import numpy as np\n"
        "def batches():\n"
        "    for n in (2, 3): yield np.ones((n, 3), np.float32), np.arange(n)\n"
        "def short(): yield np.ones((2, 3), np.float32), np.arange(3)\n"
        "def odd():\n"
        "    for n in (2, 3): yield np.ones((2, 3), np.float32), np.zeros((2, n))\n"
        "def none(): return []\n"
    )
    monkeypatch.chdir(tmp_path)
    data = read_labelled("loader:batches", [X])
    assert data.target is not None and data.target.tolist() == [0, 1, 0, 1, 2]
    assert [feed["x"].shape[0] for feed in data.feeds()] == [2, 3]
    for name, says in (
        ("short", "3 #1 for 2 samples; give one each"),
        ("odd", "#1 changes its shape from sample to sample"),
        ("none", "gives no samples"),
    ):
        with pytest.raises(InputsError, match=says):
            read_labelled(f"loader:{name}", [X])


def test_a_callable_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may shuffle, have no end, give samples one by one or break: rows keep their targets."""
    (tmp_path / "asked.py").write_text(
        "import itertools\n"
        "import numpy as np\n"
        "def shuffled():\n"
        "    for at in np.array_split(np.random.permutation(100), 7):\n"
        "        yield {'x': np.repeat(at[:, None], 3, 1).astype('f'), 'label': at}\n"
        "def own():\n"
        "    rng = np.random.default_rng()\n"
        "    for at in np.array_split(rng.permutation(100), 7):\n"
        "        yield {'x': np.repeat(at[:, None], 3, 1).astype('f'), 'label': at}\n"
        "def alone():\n"
        "    for i in range(300): yield {'x': np.full(3, i, 'f'), 'label': np.full((2, 2), i)}\n"
        "def endless():\n"
        "    for i in itertools.count(): yield {'x': np.full((1, 3), i, 'f')}\n"
        "def broken():\n"
        "    yield {'x': np.ones((1, 3), 'f')}\n"
        "    raise OSError('the disk is gone')\n"
        "once = iter([{'x': np.ones((1, 3), 'f')}])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(labelled, "_MOST_FEEDS", 301)
    orders = []
    for name in ("shuffled", "shuffled", "own"):
        data = read_labelled(f"asked:{name}", [X])
        for _ in range(2):
            rows = np.concatenate([feed["x"] for feed in data.feeds()])
            assert rows[:, 0].tolist() == data.targets["label"].tolist()
        assert data.sizes == (15, 15, 14, 14, 14, 14, 14)
        orders.append(data.targets["label"].tolist())
    assert orders[0] == orders[1] != sorted(orders[0])  # in every pass, and every process
    data = read_labelled("asked:alone", [X])
    assert len(list(data.feeds())) == 300 and data.targets["label"].shape == (300, 2, 2)
    data = read_labelled("asked:endless", [X])
    assert data.label == "asked:endless, the first 301 of it" and len(data.sizes) == 301
    with pytest.raises(InputsError, match="sample 1 failed: OSError: the disk is gone"):
        read_labelled("asked:broken", [X])
    with pytest.raises(InputsError, match="gone through once; give a function that makes it"):
        read_labelled("asked:once", [X])


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    data = read_labelled(str(tmp_path), [X])
    assert len(list(data.feeds())) == 7 and data.targets == {}


def test_outputs_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path / "m.onnx", (), "onnxruntime")
    file = tmp_path / "a.npy"
    answers._write(file, np.array([1.5, 2], ml_dtypes.bfloat16), case, "y")
    assert np.load(file).dtype == np.float32 and np.load(file).tolist() == [1.5, 2.0]
    with pytest.raises(SourceError, match="output y is object, not numbers"):
        answers._write(file, np.array(["a"], object), case, "y")

    def full(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match="No space left on device; set TMPDIR"):
        answers._write(file, np.ones(2), case, "y")


def test_what_gives_no_arrays_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "make_engine", lambda case: object())
    case = answers.case_to_json(Case(tmp_path / "w", (), "weights"))
    with pytest.raises(SourceError, match="weights gives no outputs to compare"):
        answers.answers({"case": case, "folder": ""}, answers.Feeds(0, ()), tmp_path, None)  # type: ignore[arg-type]
