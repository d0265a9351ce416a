"""The ONNX Runtime engine, against onnxruntime called by hand; CUDA against a stand-in for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import edgeopt
from edgeopt.errors import InputsError, SourceError, UsageError, WorkerError
from edgeopt.runtimes import onnxruntime as room
from edgeopt.runtimes.engine import Case, make_engine
from edgeopt.runtimes.engine_onnxruntime import OnnxRuntimeEngine

MODEL = (
    '<ir_version: 10, opset_import: ["": 21]> g (float[b, 3] x, float[3, 2] w) => (float[b, 2] y)'
    " { a = MatMul(x, w) y = Softmax(a) }"
)
FEED = {
    "x": np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]], np.float32),
    "w": np.arange(6, dtype=np.float32).reshape(3, 2) / 6,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(MODEL), path)
    return path


def started(path: Path, **more: Any) -> OnnxRuntimeEngine:
    engine = make_engine(Case(path, (path,), "onnxruntime", **more))
    assert isinstance(engine, OnnxRuntimeEngine)
    engine.imports()
    engine.load()
    return engine


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_what_plain_onnxruntime_runs(model: Path, threads: int) -> None:
    engine = started(model, threads=threads)
    (wanted,) = onnxruntime.InferenceSession(str(model)).run(None, FEED)
    np.testing.assert_array_equal(engine.session.run(FEED)["y"], wanted)
    engine.prepare({**FEED, "x": FEED["x"].astype(np.float64), "unused": np.ones(1)})
    engine.run()
    engine.run()
    info = engine.info()
    assert engine.repeats
    assert info["version"] == onnxruntime.__version__
    assert info["providers"] == ["CPUExecutionProvider"]
    assert (info["threads"], info["inter_op_threads"]) == (threads, 1)
    assert info["spinning"] is False
    assert info["fallback"] == []
    assert set(info["mapped"]) == {"m.onnx"}


def test_each_run_is_one_inference(model: Path) -> None:
    engine = started(model)
    native, calls = engine.session._native, []
    engine.session._native = SimpleNamespace(
        run=lambda names, feed: calls.append(feed) or native.run(names, feed)
    )
    engine.prepare(FEED)
    assert calls == []
    for count in (1, 2, 3):
        engine.run()
        assert len(calls) == count
    np.testing.assert_array_equal(calls[0]["x"], FEED["x"])


def test_external_data_is_seen_mapped(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((512, 512), np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["w", "i"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["n"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 512])],
        [weight],
    )
    proto = onnx.helper.make_model(
        graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)]
    )
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data")
    data = tmp_path / "m.data"
    engine = make_engine(Case(path, (path, data), "onnxruntime"))
    engine.imports()
    engine.load()
    engine.prepare({"i": np.array([3])})
    engine.run()
    # The model file itself is read; its data a CPU session maps, where the system has mappings.
    wanted = True if sys.platform == "linux" else None
    assert engine.info()["mapped"]["m.data"] is wanted
    assert not engine.info()["mapped"]["m.onnx"]


def test_what_does_not_fit(model: Path, tmp_path: Path) -> None:
    engine = started(model)
    with pytest.raises(InputsError, match="input w is missing from x"):
        engine.prepare({"x": FEED["x"]})
    engine.prepare({**FEED, "w": np.ones((4, 2), np.float32)})
    with pytest.raises(InputsError, match="do not fit"):
        engine.run()
    with pytest.raises(SourceError, match="no such file"):
        started(tmp_path / "none.onnx")


def test_a_model_that_fails_while_running(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    text = (
        '<ir_version: 10, opset_import: ["": 21]> g (float[N, 3] x) => (float[A, B] y)'
        " { s = Constant<value_ints = [7, 7]>() y = Reshape(x, s) }"
    )
    onnx.save(onnx.parser.parse_model(text), path)
    engine = started(path)
    engine.prepare({"x": np.ones((2, 3), np.float32)})
    with pytest.raises(WorkerError, match="fails while running"):
        engine.run()


def test_needs_no_more_than_numpy_and_onnxruntime(model: Path) -> None:
    blocked = ("onnx", "onnx_ir", "ml_dtypes", "psutil", "click", "rich", "torch", "safetensors")
    script = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
sys.path.insert(0, {str(Path(edgeopt.__file__).parent.parent)!r})
from pathlib import Path
from edgeopt.runtimes.engine import Case, make_engine
path = Path({str(model)!r})
engine = make_engine(Case(path, (path,), "onnxruntime"))
assert "onnxruntime" not in sys.modules
engine.imports()
assert "onnxruntime" in sys.modules
import numpy as np
engine.load()
engine.prepare({{"x": np.ones((1, 3), np.float32), "w": np.ones((3, 2), np.float32)}})
engine.run()
print(engine.info()["version"])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == onnxruntime.__version__, done.stderr


def test_without_the_runtime(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="pip install onnxruntime"):
        started(model)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this build has CUDA"
)
def test_cuda_is_refused_where_the_build_has_none(model: Path) -> None:
    with pytest.raises(UsageError, match="device cuda"):
        started(model, device="cuda")


# -- CUDA, with a runtime that pretends to have it


class Pretender:
    """onnxruntime with a CUDA provider that computes on the CPU, and what it was asked to do."""

    __version__ = "9.9"
    SessionOptions = onnxruntime.SessionOptions

    def __init__(self, starts: bool = True, says: bool = True) -> None:
        self.starts, self.says = starts, says
        self.did: list[tuple[str, ...]] = []
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self._value)

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.did.append(("preload",))

    def _value(self, array: np.ndarray, device: str, number: int) -> Any:
        self.did.append(("copy", device))
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def InferenceSession(
        self, path: str, options: Any, providers: list[str], enable_fallback: int
    ) -> Any:
        assert (providers, enable_fallback) == (["CUDAExecutionProvider"], 0)
        native = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        cuda = ["CUDAExecutionProvider"] if self.starts else []
        session = SimpleNamespace(
            get_inputs=native.get_inputs,
            get_outputs=native.get_outputs,
            get_providers=lambda: [*cuda, "CPUExecutionProvider"],
            io_binding=lambda: self._binding(native.io_binding()),
            run_with_iobinding=lambda bound: (
                self.did.append(("run",)),
                native.run_with_iobinding(bound.real),
            ),
        )
        if self.says:
            session.get_provider_graph_assignment_info = native.get_provider_graph_assignment_info
        return session

    def _binding(self, real: Any) -> Any:
        self.binding = real
        return SimpleNamespace(
            real=real,
            bind_ortvalue_input=real.bind_ortvalue_input,
            bind_output=lambda name, device: (
                self.did.append(("output", device)),
                real.bind_output(name, "cpu"),
            ),
            synchronize_inputs=lambda: self.did.append(("inputs there",)),
            synchronize_outputs=lambda: self.did.append(("outputs there",)),
        )


def test_cuda_copies_inputs_once_and_waits_for_every_inference(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretender = Pretender()
    monkeypatch.setattr(room, "_runtime", lambda: pretender)
    engine = started(model, device="cuda")
    engine.prepare(FEED)
    assert pretender.did == [
        ("preload",),
        ("copy", "cuda"),
        ("copy", "cuda"),
        ("output", "cuda"),
        ("inputs there",),
    ]
    pretender.did.clear()
    engine.run()
    engine.run()
    assert pretender.did == [("run",), ("outputs there",)] * 2
    (wanted,) = onnxruntime.InferenceSession(str(model)).run(None, FEED)
    np.testing.assert_array_equal(pretender.binding.copy_outputs_to_cpu()[0], wanted)
    info = engine.info()
    assert info["providers"][0] == "CUDAExecutionProvider"
    assert info["outputs"] == "device"
    # Here every node went to the CPU; all are reported, with their operators.
    assert sorted(operator for _, operator in info["fallback"]) == ["MatMul", "Softmax"]
    assert info["nodes"] == {"CPUExecutionProvider": 2}


def test_cuda_that_does_not_start_is_no_cpu_run(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_runtime", lambda: Pretender(starts=False))
    with pytest.raises(UsageError, match="CUDAExecutionProvider that does not start"):
        started(model, device="cuda")


def test_fallback_unknown_is_not_none_of_them(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_runtime", lambda: Pretender(says=False))
    engine = started(model, device="cuda")
    assert engine.info()["fallback"] is None
    assert engine.info()["nodes"] is None


def test_every_runtime_has_an_engine(model: Path) -> None:
    with pytest.raises(UsageError, match="runtime tflite; use onnxruntime, torch"):
        make_engine(Case(model, (model,), "tflite"))
