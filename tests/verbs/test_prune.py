"""`prune` and `distill` end to end: what is written loads elsewhere, and the proof is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.in_process import forked_capture, no_processes

import edgeopt
from edgeopt.errors import EdgeoptError, OutputError, SourceError, UsageError
from edgeopt.graphs.capture import parent
from edgeopt.targets.program import prove as shrink_prove

torch = pytest.importorskip("torch", reason="pruning needs torch")
pytest.importorskip("torch_pruning", reason="channels are pruned with torch-pruning")
pytest.importorskip("accelerate", reason="recovery trains with accelerate")

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.second = nn.Conv2d(24, 24, 3, padding=1)
        self.head = nn.Linear(24, 3)

    def forward(self, image):
        x = torch.relu(self.norm(self.first(image)))
        x = torch.relu(x + self.second(x))
        return self.head(x.mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net().eval()

def other_outputs():
    net = build()
    net.head = nn.Linear(24, 4)
    return net
"""


def bars(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of a bright row, a bright column or neither, and which it is."""
    rng = np.random.default_rng(0)
    images = rng.normal(scale=0.3, size=(count, 1, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 3, count)
    for image, label in zip(images, labels, strict=True):
        at = rng.integers(0, 8)
        if label == 0:
            image[0, at] += 2
        elif label == 1:
            image[0, :, at] += 2
    return images, labels


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained net as a state dict, its code, and its data."""
    folder = tmp_path_factory.mktemp("prune")
    (folder / "barcutter.py").write_text(CODE)
    images, labels = bars(320)
    np.savez(folder / "data.npz", image=images[:256], label=labels[:256])
    np.savez(folder / "test.npz", image=images[256:], label=labels[256:])
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    net = scope["build"]().train()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(
            net(torch.from_numpy(images[:256])), torch.from_numpy(labels[:256])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(net.eval().state_dict(), folder / "model.pt")
    return folder


@pytest.fixture(autouse=True)
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(work))
    monkeypatch.setenv("PYTHONPATH", str(work), prepend=":")
    monkeypatch.setattr(shrink_prove, "_SECONDS", 0.1)
    no_processes(monkeypatch, capture=False)
    monkeypatch.setattr(parent, "_run", forked_capture)


CALL: dict[str, Any] = {"model": "barcutter:build", "data": "test.npz", "metrics": ("accuracy",)}

#: Enough to win it back on four images in five, whatever the machine's arithmetic.
LESSONS: dict[str, Any] = {"epochs": 20, "learning_rate": 5e-3, "max_drop": 0.2}

#: Parameters of the net in CODE.
WHOLE = (24 * 9 + 24) + 2 * 24 + (24 * 24 * 9 + 24) + (24 * 3 + 3)


def listing(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_channels_are_cut_and_accuracy_won_back(work: Path) -> None:
    out = work / "small.pt"
    asked = {"method": "channels", "ratio": 0.5, "heads": True}
    proof = edgeopt.prune("model.pt", out, recover="data.npz", **asked, **LESSONS, **CALL)
    assert proof is not None and proof.proven, proof.verdict
    said = [note for method in proof.coverage["methods"] for note in method["notes"]]
    assert any("--heads: no attention" in note for note in said)
    assert len(set(proof.notes)) == len(proof.notes)
    # torch alone runs it, with fewer parameters, and as well as the proof says
    program = torch.export.load(str(out)).module()
    held = np.load("test.npz")
    with torch.no_grad():
        answers = program(torch.from_numpy(held["image"])).argmax(-1).numpy()
    accuracy = next(q for q in proof.coverage["quality"] if q["metric"] == "accuracy")
    assert accuracy["after"] == pytest.approx((answers == held["label"]).mean())
    parameters = sum(p.numel() for p in program.parameters())
    assert proof.coverage["parameters"] == [WHOLE, parameters]
    assert parameters < WHOLE / 2
    layers = {row["layer"]: row for row in proof.coverage["layers"]}
    assert layers["second"]["parameters"] == [24 * 24 * 9 + 24, 12 * 12 * 9 + 12]
    # 2 multiply-adds a weight and position, on one image of 8 by 8
    assert layers["second"]["flops"] == [2 * 64 * 24 * 24 * 9, 2 * 64 * 12 * 12 * 9]
    assert proof.coverage["training"]["stopped"] == "finished"
    # the state dict beside it is the program's, and the description says what was done
    from safetensors.numpy import load_file

    state = load_file(work / "small.state.safetensors")
    assert state["second.weight"].shape == (12, 12, 3, 3)
    described = json.loads((work / "small.json").read_text())
    assert described["prunings"][0]["method"] == "channels"


def test_quantize_takes_what_prune_wrote(work: Path) -> None:
    """Without anybody's trust: nothing in the file is pickled."""
    if not (work / "small.pt").exists():
        pytest.fail("the test before this one writes small.pt")
    proof = edgeopt.quantize("small.pt", work / "small-int8.onnx", force=True)
    assert proof.artifact["nbytes"] > 0
    import onnxruntime

    session = onnxruntime.InferenceSession(work / "small-int8.onnx")
    assert session.get_inputs()[0].name == "image"


def test_zeros_make_the_file_smaller_and_nothing_faster(work: Path) -> None:
    out = work / "sparse.safetensors"
    proof = edgeopt.prune(
        "model.pt", out, method="magnitude", ratio=0.8, to="safetensors", force=True, **CALL
    )
    weights = edgeopt.load_weights(out)
    before = edgeopt.load_weights(work / "model.pt")
    # the oracle: torch's own masks, layer by layer
    from torch.nn.utils import prune as oracle

    for name, shape in (("first.weight", (24, 1, 3, 3)), ("second.weight", (24, 24, 3, 3))):
        layer = torch.nn.Conv2d(shape[1], shape[0], 3)
        layer.weight.data = torch.from_numpy(np.array(before[name]))
        oracle.l1_unstructured(layer, "weight", amount=0.8)
        assert np.array_equal(weights[name], layer.weight.detach().numpy())
    assert out.stat().st_size < (work / "model.pt").stat().st_size / 2
    found = proof.coverage["nonzero"]
    assert found[1] < found[0] / 2
    assert proof.coverage["flops"][0] == proof.coverage["flops"][1]


def test_a_student_learns_from_its_teacher(work: Path) -> None:
    out = work / "student.pt"
    proof = edgeopt.distill(
        "model.pt",
        out,
        model="barcutter:build",
        shrink="width=0.5",
        data="data.npz",
        metrics=("accuracy",),
        history="log.jsonl",
        **LESSONS,
    )
    assert proof is not None and proof.proven, proof.verdict
    training = proof.coverage["training"]
    assert training["losses"].startswith("soft 0.9, hard 0.1")
    # every fourth row judges, an eighth of the others chooses the best weights
    assert training["validation"] == "24 held out"
    assert "all rows but every 4th" in training["samples"]
    quality = proof.coverage["quality"][0]
    assert quality["samples"] == 64
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == training["steps"]
    assert training["history"][-1]["step"] == training["steps"]


def test_an_unproven_result_leaves_nothing(work: Path) -> None:
    before = listing(work)
    proof = edgeopt.prune("model.pt", "gone.pt", method="magnitude", ratio=0.97, **CALL)
    assert not proof.proven
    assert [c.name for c in proof.verdict.checks if not c.passed] == ["accuracy"]
    assert listing(work) == before


REFUSED: list[tuple[dict[str, Any], type[EdgeoptError], str]] = [
    ({"method": "magic"}, UsageError, "--method magic"),
    ({"method": "magnitude", "ratio": 0.0}, UsageError, "--ratio 0"),
    ({"method": "magnitude", "ratio": 1.0}, UsageError, "--ratio 1"),
    ({"method": "channels", "ratio": -0.5}, UsageError, "--ratio -0.5"),
    ({"method": "channels", "ratio": 2.0}, UsageError, "--ratio 2"),
    ({"method": "magnitude"}, UsageError, "--ratio or --pattern"),
    ({"method": "magnitude", "ratio": 0.5, "pattern": "2:4"}, UsageError, "give one of them"),
    ({"method": "magnitude", "pattern": "4:2"}, UsageError, "--pattern 4:2"),
    ({"method": "magnitude", "ratio": 0.5, "heads": True}, UsageError, "--heads"),
    ({"method": "magnitude", "ratio": 0.5, "epochs": 3}, UsageError, "--epochs"),
    ({"method": "lottery", "ratio": 0.5}, UsageError, "--recover"),
    ({"method": "vocabulary", "corpus": ("x.txt",)}, UsageError, "--method vocabulary"),
    ({"method": "depth", "keep": 1, "to": "folder"}, UsageError, "--to folder"),
    ({"method": "channels", "ratio": 0.5, "layer_ratios": ("x",)}, UsageError, "--layer-ratio x"),
    ({"method": "channels", "ratio": 0.5, "max_drop": -1.0}, UsageError, "--max-drop"),
    ({"method": "channels", "ratio": 0.5, "out": "none/x.pt"}, OutputError, "none"),
    ({"method": "channels", "ratio": 0.5, "out": "model.pt"}, OutputError, "model.pt"),
]


@pytest.mark.parametrize(
    ("more", "error", "said"), REFUSED, ids=lambda value: value if isinstance(value, str) else None
)
def test_refused_before_any_work(
    more: dict[str, Any], error: type[EdgeoptError], said: str, work: Path
) -> None:
    before = listing(work)
    with pytest.raises(error, match=said.replace("(", "\\(")) as raised:
        edgeopt.prune("model.pt", **{"model": "barcutter:build", "data": "test.npz", **more})
    assert "\n" not in str(raised.value)
    assert listing(work) == before


def test_weights_without_code_are_refused(work: Path) -> None:
    with pytest.raises(UsageError, match="--model"):
        edgeopt.prune("model.pt", method="channels", ratio=0.5)


def test_a_student_of_another_shape_is_refused(work: Path) -> None:
    before = listing(work)
    with pytest.raises(EdgeoptError, match=r"4\].*3\]") as raised:
        edgeopt.distill(
            "model.pt",
            "never.pt",
            model="barcutter:build",
            student="barcutter:other_outputs",
            data="data.npz",
        )
    assert "\n" not in str(raised.value)
    assert listing(work) == before


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": np.full((64, 1, 8, 8), np.nan, np.float32)}, "NaN"),
        ({"image": np.zeros((64, 2, 8, 8), np.float32)}, "image"),
        (
            {"image": np.zeros((64, 1, 8, 8), np.float32), "label": np.full(64, 7)},
            "label",
        ),
    ],
    ids=["nan", "shape", "label"],
)
def test_data_that_cannot_be_trained_on(
    arrays: dict[str, np.ndarray], said: str, work: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    before = listing(work)
    with pytest.raises(EdgeoptError, match=said) as raised:
        edgeopt.distill(
            "model.pt",
            "never.pt",
            model="barcutter:build",
            shrink="width=0.5",
            data=str(tmp_path / "bad.npz"),
            losses=("hard",),
        )
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, (SourceError, UsageError))
    assert listing(work) == before
