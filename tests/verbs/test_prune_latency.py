"""Latency of a pruned model beside its original: the same way to ONNX, one process, ratios."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from tests.pruning.prune_nets import image  # noqa: E402
from torch import nn  # noqa: E402

from edgeopt.core import Source  # noqa: E402
from edgeopt.data.synthetic import synthetic  # noqa: E402
from edgeopt.errors import SourceError  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.pruning.size_search import Reading  # noqa: E402
from edgeopt.targets.onnx.source import Prepared  # noqa: E402
from edgeopt.targets.program.module import Opened  # noqa: E402
from edgeopt.verbs import prune_latency, prune_methods  # noqa: E402
from edgeopt.verbs.prune_options import PruneOptions  # noqa: E402
from edgeopt.verbs.training import TrainOptions  # noqa: E402


def opened(path: Path) -> Opened:
    model = image(nn.Sequential(nn.Linear(64, 256)), 64)
    source = Source(path / "m.pt", "torch-module", (), 0, ())
    return Opened(source, model, None, synthetic(model.inputs, None, count=1, seed=0))


def plain_onnx(made: list[Path], break_it: bool = False) -> Any:
    """A file with the model's product, without the exporter, which takes its time."""

    def write(model: TorchModel, folder: Path, progress: Any) -> Path:
        weight = model.module[0].weight.detach().numpy().T
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, ["batch", 64])],
            [onnx.helper.make_tensor_value_info("y", 1, ["batch", weight.shape[1]])],
            [onnx.numpy_helper.from_array(weight.copy(), "w")],
        )
        opset = onnx.helper.make_opsetid("", 17)
        path = folder / "model.onnx"
        onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
        if break_it and made:
            path.write_bytes(b"nothing")
        made.append(path)
        return path

    return write


def test_the_original_is_exported_once_and_shares_are_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(prune_latency, "_onnx", plain_onnx(made))
    whole = opened(tmp_path)
    meter = prune_latency.latency_meter(whole, tmp_path, seconds=0.05)
    small = image(nn.Sequential(nn.Linear(64, 2)), 64)
    for count in (2, 3):
        reading = meter(small)
        assert reading.value > 0 and reading.share > 0
        assert len(made) == count


def test_a_model_that_does_not_load_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_latency, "_onnx", plain_onnx([], break_it=True))
    whole = opened(tmp_path)
    with pytest.raises(SourceError):
        prune_latency.latency_meter(whole, tmp_path, seconds=0.05)(whole.model)


@pytest.mark.parametrize(("asked", "step"), [(None, 8), (1, 1), (4, 4)])
def test_a_latency_target_goes_in_blocks_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, step: int
) -> None:
    """Timed by what time goes with, where kernels are perfect: the number of parameters."""
    net = nn.Sequential(nn.Linear(64, 104), nn.ReLU(), nn.Linear(104, 40), nn.Linear(40, 5))
    whole = opened(tmp_path)
    whole = dataclasses.replace(whole, model=image(net, 64))
    size = sum(p.numel() for p in net.parameters())
    threads: list[int] = []

    def meter(*_: Any, **more: Any) -> Any:
        threads.append(more["threads"])
        return lambda m: Reading(1.0, sum(p.numel() for p in m.module.parameters()) / size)

    monkeypatch.setattr(prune_latency, "latency_meter", meter)
    captured: Any = None  # the meter has no use for it
    made = prune_methods.METHODS["channels"].run(
        prune_methods.Work(
            whole,
            Prepared(whole.source, captured, None, (), (), ""),
            PruneOptions(target="latency=0.6", round_to=asked),
            TrainOptions(),
            None,
            None,
            tmp_path,
            threads=3,
        )
    )
    widths = [net[0].out_features, net[2].out_features]
    assert threads == [3]
    assert widths[0] < 104 and all(width % step == 0 for width in widths)
    assert any("--round-to" in note for note in made.pruning.notes) == (asked is None)


@pytest.mark.slow
def test_by_way_of_the_exporter(tmp_path: Path) -> None:
    whole = opened(tmp_path)
    reading = prune_latency.latency_meter(whole, tmp_path, seconds=0.2)(whole.model)
    assert 0.3 < reading.share < 3  # of itself: that it is one, and not that it is exact
