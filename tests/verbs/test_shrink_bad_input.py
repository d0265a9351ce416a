"""What `prune` and `distill` refuse: one line, the right error, every file as it was.

The models are opened, cut, trained and written for real; what captures and measures them is left
out, as nothing here is about the figures.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.verbs.barnet import bars, written

import edgeopt
from edgeopt import cli
from edgeopt.core import Check, Proof, Verdict
from edgeopt.errors import EdgeoptError, InputsError, OutputError, SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.targets.onnx.source import Prepared
from edgeopt.targets.program import write as shrink_write
from edgeopt.targets.program.module import open_torch
from edgeopt.targets.program.prove import Shrunk, _counted
from edgeopt.verbs.training import held_out, lessons

torch = pytest.importorskip("torch", reason="pruning needs torch")
pytest.importorskip("torch_pruning", reason="channels are pruned with torch-pruning")
pytest.importorskip("accelerate", reason="recovery trains with accelerate")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("shrink-bad"))


def _prepared(source: Any, workdir: Path, **given: Any) -> Any:
    """Feeds, and no graph."""
    given.pop("progress")
    opened = open_torch(source, workdir, **given)
    feeds = opened.samples or opened.synthetic
    calibration = None if opened.samples is None else feeds
    return Prepared(source, None, calibration, tuple(feeds), tuple(feeds), "")  # type: ignore[arg-type]


def _proof(verb: str, prepared: Prepared, made: Shrunk, *_: Any, **more: Any) -> Proof:
    return Proof(
        verb=verb,
        source={"path": str(prepared.source.path), "nbytes": prepared.source.nbytes},
        artifact={"path": str(made.final), "format": made.format, "nbytes": 1},
        plan=None,
        changes=(),
        coverage=_counted(made, {}),
        fidelity=(),
        samples="",
        measurements=(),
        environment={},
        verdict=Verdict((Check("fewer weights", True, "", "", ""),), ()),
        usage=made.usage,
        notes=made.notes,
    )


@pytest.fixture(autouse=True)
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(work))
    for name in ("prune", "distill"):
        monkeypatch.setattr(importlib.import_module(f"edgeopt.verbs.{name}"), "prepare", _prepared)
    monkeypatch.setattr(shrink_write, "prove_shrunk", _proof)


def listing(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }


CHANNELS: dict[str, Any] = {"method": "channels", "ratio": 0.5, "data": "test.npz"}
#: The shape, where there is only something to train on.
IMAGE = ("image:float32[batch,1,8,8]",)
STUDENT: dict[str, Any] = {"shrink": "width=0.5", "data": "data.npz", "steps": 2}


def refused(error: type[EdgeoptError], said: str, work: Path, call: Any, **given: Any) -> None:
    before = listing(work)
    with pytest.raises(error, match=said) as raised:
        call("model.pt", **{"model": "barcode:build", **given})
    assert "\n" not in str(raised.value)
    assert listing(work) == before


# ---------------------------------------------------------------------------------------------
# layers that may not shrink


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layer_ratios": ("head=0.5",)}, "head.*output"),
        ({"layer_ratios": ("nowhere=0.5",)}, "nowhere"),
        ({"layer_ratios": ("first=1.5",)}, "--layer-ratio first=1.5"),
        ({"layer_ratios": ("(=0.5",)}, "--layer-ratio"),
        ({"ignore": (".*",)}, "nothing"),
        ({"target": "flops=2", "ratio": None}, "flops=2"),
        ({"target": "speed=0.5", "ratio": None}, "speed"),
    ],
)
def test_layers_that_may_not_shrink(given: dict[str, Any], said: str, work: Path) -> None:
    refused(EdgeoptError, said, work, edgeopt.prune, **{**CHANNELS, **given})


# ---------------------------------------------------------------------------------------------
# data


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({"image": np.zeros((0, 1, 8, 8), np.float32)}, "samples"),
    "nan": ({"image": np.full((64, 1, 8, 8), np.nan, np.float32)}, "NaN"),
    "shape": ({"image": np.zeros((64, 1, 8), np.float32)}, "image"),
    "other": ({"picture": np.zeros((64, 1, 8, 8), np.float32)}, "lacks input image|picture"),
    "counts": (
        {"image": np.zeros((64, 1, 8, 8), np.float32), "label": np.zeros(63, np.int64)},
        "63|64",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_data_that_cannot_be_used(name: str, work: Path, tmp_path: Path) -> None:
    arrays, said = BAD[name]
    bad = tmp_path / "bad.npz"
    np.savez(bad, **arrays)
    refused(InputsError, said, work, edgeopt.distill, **{**STUDENT, "data": str(bad)})
    refused(InputsError, said, work, edgeopt.prune, **{**CHANNELS, "recover": str(bad)})


def test_data_that_is_no_data(work: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.npz"
    torn.write_bytes((work / "data.npz").read_bytes()[:900])
    for data, said in (
        ("barcode:no_samples", "no samples"),
        (str(torn), "torn.npz"),
        ("nowhere.npz", "nowhere.npz"),
        ("barcode:nothing_there", "nothing_there"),
    ):
        refused(InputsError, said, work, edgeopt.distill, **{**STUDENT, "data": data})


# ---------------------------------------------------------------------------------------------
# options


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": None}, "--data"),
        ({"shrink": None}, "--student and --shrink"),
        ({"student": "barcode:build"}, "--student and --shrink"),
        ({"shrink": "width=1"}, "--shrink width=1"),
        ({"shrink": "size=0.5"}, "size"),
        ({"epochs": 3}, "--epochs and --steps"),
        ({"steps": 0}, "steps 0"),
        ({"steps": None, "epochs": 0}, "epochs 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"seed": -1}, "seed -1"),
        ({"learning_rate": -1.0}, "learning_rate -1"),
        ({"learning_rate": float("nan")}, "learning_rate nan"),
        ({"losses": ("magic",)}, "magic"),
        ({"metrics": ("magic",)}, "magic"),
        ({"min_sqnr": float("nan")}, "--min-sqnr"),
        ({"max_drop": 0.1}, "--metric"),
        ({"temperature": 3}, "temperature"),
        ({"out": "student.onnx"}, "student.onnx"),
        ({"out": "student.safetensors"}, "distill makes none"),
        ({"student": "barcode:build", "shrink": None, "out": "a.safetensors"}, "a.safetensors"),
        ({"student": "nowhere", "shrink": None}, "--student nowhere"),
    ],
)
def test_distill_refuses(given: dict[str, Any], said: str, work: Path) -> None:
    refused(EdgeoptError, said, work, edgeopt.distill, **{**STUDENT, **given})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"to": "safetensors"}, "makes none; use --to pt"),
        ({"to": "parquet"}, "--to parquet"),
        ({"to": "pt", "out": "x.safetensors"}, "x.safetensors"),
        ({"out": "x.gguf"}, "x.gguf"),
        ({"out": "x.json"}, "x.json"),
        ({"round_tripp": 1}, "round_tripp"),
        ({"metrics": ("accuracy",), "data": None}, "--data"),
    ],
)
def test_prune_refuses(given: dict[str, Any], said: str, work: Path) -> None:
    refused(UsageError, said, work, edgeopt.prune, **{**CHANNELS, **given})


LOTTERY: dict[str, Any] = {"method": "lottery", "ratio": 0.5, "recover": "data.npz"}


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"round_to": 0}, UsageError, "--round-to 0"),
        ({"scope": "row"}, UsageError, "--scope row: use layer, global"),
        ({"importance": "l1"}, UsageError, "--importance l1: use magnitude, bn"),
        ({"importance": "taylor", "data": None}, InputsError, "--importance taylor.*--data"),
        ({"ignore": ("conv(",)}, UsageError, "--ignore 'conv\\(' is no regular"),
        ({"ratio": None, "method": "depth", "keep": 0}, UsageError, "--keep 0"),
        ({"method": "wanda", "data": None}, InputsError, "--method wanda.*--data"),
        ({"method": "magnitude", "include": ("[",)}, UsageError, r"--include '\['"),
        ({"method": "wanda", "scope": "global"}, UsageError, "--scope global"),
        ({**LOTTERY, "rounds": 0}, UsageError, "--rounds 0"),
        ({**LOTTERY, "rewind": -1}, UsageError, "--rewind -1"),
        ({**LOTTERY, "rewind": 1, "checkpoint": "c"}, UsageError, "--rewind 1"),
        ({"recover": "data.npz", "epochs": 0}, UsageError, "epochs 0"),
        ({"recover": "data.npz", "losses": ("sofd",)}, UsageError, "sofd"),
        (
            {"ratio": None, "method": "vocabulary", "corpus": ("test.npz",)},
            UsageError,
            "model.pt is no Hugging Face folder",
        ),
    ],
)
def test_what_fits_no_model_is_refused_before_one_is_opened(
    given: dict[str, Any],
    error: type[EdgeoptError],
    said: str,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(*_: Any, **__: Any) -> None:
        pytest.fail("the model was opened")

    monkeypatch.setattr(importlib.import_module("edgeopt.verbs.prune"), "open_torch", slow)
    refused(error, said, work, edgeopt.prune, **{**CHANNELS, **given})


def test_a_folder_or_corpus_that_is_not_there_is_refused_before_the_model_is_opened(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any, **__: Any) -> None:
        pytest.fail("the model was opened")

    monkeypatch.setattr(importlib.import_module("edgeopt.verbs.prune"), "open_torch", slow)
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    torch.save({"w": torch.zeros(2)}, folder / "pytorch_model.bin")
    for corpus, said in (("none.txt", "none.txt"), ("test.npz", "no tokenizer.json")):
        with pytest.raises(SourceError, match=said):
            edgeopt.prune(folder, tmp_path / "out", method="vocabulary", corpus=(corpus,))
    assert not (tmp_path / "out").exists()


def test_a_training_that_cannot_be_is_refused_before_the_teacher_is_opened(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any, **__: Any) -> None:
        pytest.fail("the teacher was opened")

    monkeypatch.setattr(importlib.import_module("edgeopt.verbs.distill"), "open_torch", slow)
    for given, said in (({"steps": 0}, "steps 0"), ({"losses": ("sofd",)}, "sofd")):
        refused(UsageError, said, work, edgeopt.distill, **{**STUDENT, **given})


def test_what_is_trained_on_is_read_before_the_model_is_captured(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any, **__: Any) -> None:
        pytest.fail("the model was captured")

    monkeypatch.setattr(importlib.import_module("edgeopt.verbs.prune"), "prepare", slow)
    refused(EdgeoptError, "none.npz", work, edgeopt.prune, **CHANNELS, recover="none.npz")


def test_the_lottery_cannot_go_back_past_a_checkpoint(work: Path) -> None:
    given: dict[str, Any] = {"ratio": 0.5, "rewind": 1, "recover": "data.npz", "inputs": IMAGE}
    given |= {"checkpoint": "c", "steps": 2}
    refused(UsageError, "--rewind 1", work, edgeopt.prune, method="lottery", **given)
    refused(
        UsageError,
        "--rewind 9",
        work,
        edgeopt.prune,
        method="lottery",
        **{**given, "rewind": 9, "checkpoint": None},
    )


# ---------------------------------------------------------------------------------------------
# places that cannot be written


def test_nowhere_to_write(work: Path, tmp_path: Path) -> None:
    """Before any work: a file as a folder, the source under a name that goes beside the result."""
    (tmp_path / "file").write_text("")
    for call, given in ((edgeopt.prune, CHANNELS), (edgeopt.distill, STUDENT)):
        refused(OutputError, "file", work, call, **{**given, "out": tmp_path / "file" / "x.pt"})
        refused(OutputError, "is a folder", work, call, **{**given, "out": tmp_path})
    for option in ("checkpoint", "history", "cache_teacher"):
        place = str(tmp_path / "file" / "x")
        refused(OutputError, "file", work, edgeopt.distill, **{**STUDENT, option: place})


def test_what_goes_beside_never_replaces_the_source(work: Path) -> None:
    from safetensors.torch import save_file

    state = torch.load(work / "model.pt")
    source = work / "own.state.safetensors"
    save_file({name: tensor for name, tensor in state.items() if tensor.ndim}, source)
    before = listing(work)
    with pytest.raises(OutputError, match="source"):
        edgeopt.prune(source, "own.pt", model="barcode:build", **CHANNELS)
    assert listing(work) == before
    source.unlink()


# ---------------------------------------------------------------------------------------------
# trainings that go wrong


def test_a_loss_that_diverges_is_stopped_and_told(work: Path, tmp_path: Path) -> None:
    """The best weights so far are kept, and the proof says so."""
    proof = edgeopt.distill(
        "model.pt",
        tmp_path / "out.pt",
        model="barcode:build",
        student="barcode:build",
        data="data.npz",
        losses=("mse",),
        learning_rate=1e30,
        epochs=20,
    )
    assert proof is not None
    training = proof.coverage["training"]
    assert training["stopped"] == "diverged"
    assert not any("--ratio" in check.advice for check in proof.verdict.checks)  # there is none
    assert any("kept the weights after" in note for note in training["notes"])
    program = torch.export.load(tmp_path / "out.pt").module()
    assert all(torch.isfinite(p).all() for p in program.parameters())


def test_a_checkpoint_of_another_run_is_refused(work: Path, tmp_path: Path) -> None:
    place = tmp_path / "course"
    given = {**STUDENT, "model": "barcode:build", "checkpoint": str(place)}
    edgeopt.distill("model.pt", tmp_path / "one.pt", **given)
    # the same again goes on from the end, to the same bytes
    edgeopt.distill("model.pt", tmp_path / "two.pt", **given)
    for suffix in (".pt", ".json", ".state.safetensors"):
        one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
        assert one == two
    (kept,) = (p for p in place.rglob("*") if p.is_file())
    whole = kept.read_bytes()
    for change, said in (
        ({"shrink": "width=0.75"}, "what the student began with"),
        ({"seed": 7}, "seed"),
        ({"data": "test.npz"}, "data was"),
    ):
        with pytest.raises(SourceError, match=f"another run.*{said}"):
            edgeopt.distill("model.pt", tmp_path / "never.pt", **{**given, **change})
    kept.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match="truncated"):
        edgeopt.distill("model.pt", tmp_path / "never.pt", **given)
    assert not (tmp_path / "never.pt").exists()
    assert kept.read_bytes() == whole[: len(whole) // 2]


def test_pruned_by_another_ratio_is_another_run(work: Path, tmp_path: Path) -> None:
    """Shapes are the same, zeros are not: going on would mix the two."""
    given: dict[str, Any] = {
        "method": "magnitude",
        "model": "barcode:build",
        "inputs": IMAGE,
        "recover": "data.npz",
        "steps": 2,
        "checkpoint": str(tmp_path / "course"),
    }
    edgeopt.prune("model.pt", tmp_path / "half.pt", ratio=0.5, **given)
    with pytest.raises(SourceError, match="another run"):
        edgeopt.prune("model.pt", tmp_path / "most.pt", ratio=0.8, **given)


def test_every_round_of_the_lottery_has_its_checkpoint(work: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "method": "lottery",
        "model": "barcode:build",
        "inputs": IMAGE,
        "recover": "data.npz",
        "steps": 2,
        "ratio": 0.75,
        "rounds": 2,
    }
    plain = edgeopt.prune("model.pt", tmp_path / "plain.pt", **given)
    given["checkpoint"] = str(tmp_path / "course")
    for name in ("first", "again"):
        edgeopt.prune("model.pt", tmp_path / f"{name}.pt", **given)
        assert (tmp_path / f"{name}.pt").read_bytes() == (tmp_path / "plain.pt").read_bytes()
    assert sorted(p.name for p in (tmp_path / "course").iterdir()) == [
        "round-0",
        "round-1",
        "round-2",
    ]
    assert plain is not None
    zero = torch.export.load(tmp_path / "plain.pt").module().state_dict()["second.weight"] == 0
    first = torch.export.load(tmp_path / "plain.pt").module().state_dict()["first.weight"] == 0
    assert int(zero.sum() + first.sum()) >= 0.7 * (zero.numel() + first.numel())


# ---------------------------------------------------------------------------------------------
# several processes


def test_of_several_processes_the_first_one_writes(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    out = tmp_path / "x.pt"
    given = {**CHANNELS, "recover": None}
    assert edgeopt.prune("model.pt", out, model="barcode:build", **given) is None
    assert not out.exists()


# ---------------------------------------------------------------------------------------------
# what judges is not trained on


def test_rows_that_judge_are_those_left_out(tmp_path: Path, work: Path) -> None:
    images, labels = bars(64)
    images[:, 0, 0, 0] = np.arange(64)
    np.savez(tmp_path / "d.npz", image=images, label=labels)
    spec = str(tmp_path / "d.npz")
    opened = open_torch(open_source(work / "model.pt"), tmp_path, data=spec, model="barcode:build")
    # a model that insists on batches keeps whole batches out
    for batch in ("batch", 4):
        inputs = tuple(
            dataclasses.replace(i, shape=(batch, *i.shape[1:])) for i in opened.model.inputs
        )
        model = dataclasses.replace(opened.model, inputs=inputs)
        taught = lessons(spec, model, hold_out=True)
        assert taught.validation is not None
        seen = {
            int(number)
            for data in (taught.train, taught.validation)
            for number in data.inputs["image"][data.rows, 0, 0, 0]  # type: ignore[union-attr]
        }
        judged = np.load(held_out(spec, inputs, tmp_path))
        rows = judged["image"][:, 0, 0, 0].astype(int)
        assert seen.isdisjoint(rows)
        assert seen | set(rows) == set(range(64))
        assert np.array_equal(judged["label"], labels[rows])


def test_pairs_are_held_out_as_pairs(tmp_path: Path, work: Path) -> None:
    images, _ = bars(16)
    images[:, 0, 0, 0] = np.arange(16)
    np.savez(tmp_path / "p.npz", image=images, image_b=images + 100, score=np.arange(16.0))
    spec = str(tmp_path / "p.npz")
    opened = open_torch(open_source(work / "model.pt"), tmp_path, data=spec, model="barcode:build")
    judged = np.load(held_out(spec, opened.model.inputs, tmp_path))
    rows = judged["image"][:, 0, 0, 0]
    assert rows.tolist() == [3, 7, 11, 15]
    assert judged["image_b"][:, 0, 0, 0].tolist() == [103, 107, 111, 115]
    assert judged["score"].tolist() == rows.tolist()
    taught = lessons(spec, opened.model, hold_out=True)
    assert taught.count == 24


# ---------------------------------------------------------------------------------------------
# the command line


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("prune", "model.pt", "--method", "channels", "--ratio", "0"), 2, "--ratio 0"),
        (
            ("prune", "model.pt", "--method", "channels", "--ratio", ".5", "--data", "no.npz"),
            2,
            "no.npz",
        ),
        (("distill", "model.pt", "--shrink", "width=0.5"), 2, "--data"),
    ],
)
def test_one_line_and_an_exit_code(
    args: tuple[str, ...],
    code: int,
    said: str,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = listing(work)
    monkeypatch.setattr(sys, "argv", ["edgeopt", *args, "--model", "barcode:build"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (code, "")
    assert re.fullmatch(rf"edgeopt: error: .*{re.escape(said)}.*\n", err), err
    assert listing(work) == before
