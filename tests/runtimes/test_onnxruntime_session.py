"""The ONNX Runtime session, against onnxruntime called by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.core import InputSpec
from edgeopt.errors import FormatError, InputsError, SourceError, UsageError, WorkerError
from edgeopt.runtimes.onnxruntime import OnnxSession, preload


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str, str], Path]:
    def make(body: str, inputs: str, outputs: str) -> Path:
        text = f'<ir_version: 10, opset_import: ["": 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
        path = tmp_path / "model.onnx"
        onnx.save(onnx.parser.parse_model(text), path)
        return path

    return make


@pytest.fixture
def double(write: Callable[[str, str, str], Path]) -> Path:
    return write("y = Add(x, x) k = Size(x)", "float[batch, 3] x", "float[batch, 3] y, int64 k")


def test_describes_itself(double: Path) -> None:
    session = OnnxSession.open(double)
    assert session.inputs == (InputSpec("x", "float32", ("batch", 3)),)
    assert session.outputs == (
        InputSpec("y", "float32", ("batch", 3)),
        InputSpec("k", "int64", ()),
    )
    assert session.placement == ("CPUExecutionProvider",)
    assert session.path == double


def test_runs(double: Path) -> None:
    session = OnnxSession.open(double, threads=2)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    out = session.run({"x": x})
    assert list(out) == ["y", "k"]
    np.testing.assert_array_equal(out["y"], x + x)
    assert out["k"] == 6


def test_a_free_dimension_without_a_name_is_like_no_other(
    write: Callable[[str, str, str], Path],
) -> None:
    session = OnnxSession.open(
        write("y = Add(a, b)", "float[?, 3] a, float[?, 3] b", "float[?, 3] y")
    )
    first, second = (spec.shape[0] for spec in session.inputs)
    assert isinstance(first, str)
    assert isinstance(second, str)
    assert first != second


def test_fit_casts_floats_only_and_leaves_the_rest_out(double: Path) -> None:
    session = OnnxSession.open(double)
    fitted = session.fit({"x": np.ones((1, 3)), "other": np.ones(1)})
    assert list(fitted) == ["x"]
    assert fitted["x"].dtype == np.float32
    assert session.fit({"x": np.ones((1, 3), np.int64)})["x"].dtype == np.int64
    with pytest.raises(InputsError, match="input x is missing from z"):
        session.fit({"z": np.ones(3)})
    turned = session.fit({"x": np.asfortranarray(np.ones((2, 3), np.float32))})["x"]
    assert turned.flags["C_CONTIGUOUS"]


def test_fit_keeps_scalars_scalar(write: Callable[[str, str, str], Path]) -> None:
    session = OnnxSession.open(write("y = Neg(x)", "float x", "float y"))
    out = session.run(session.fit({"x": np.float32(2.0).reshape(())}))
    assert out["y"] == -2.0


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"z": np.ones((1, 3), np.float32)},
        {"x": np.ones((1, 4), np.float32)},
        {"x": np.ones((1, 3), np.int64)},
        {"x": np.ones(3, np.float32)},
    ],
    ids=["none", "name", "size", "dtype", "rank"],
)
def test_feeds_that_do_not_fit(double: Path, feed: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputsError) as error:
        OnnxSession.open(double).run(feed)
    assert "\n" not in str(error.value)
    assert str(double) in str(error.value)
    assert "ONNXRuntimeError" not in str(error.value)


def test_a_model_that_fails_at_a_feed_that_fits(write: Callable[[str, str, str], Path]) -> None:
    path = write(
        "s = Constant<value_ints = [7, 7]>() y = Reshape(x, s)", "float[N, 3] x", "float[A, B] y"
    )
    session = OnnxSession.open(path)
    for call in (session.run, lambda feed: session.repeat(feed)()):
        with pytest.raises(WorkerError, match="fails while running") as error:
            call({"x": np.ones((2, 3), np.float32)})
        assert "\n" not in str(error.value)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(SourceError, match="no such file"):
        OnnxSession.open(path)
    with pytest.raises(SourceError, match="no such file"):
        OnnxSession.open(tmp_path)
    for content in (b"", b"junk" * 20):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="not an ONNX model") as error:
            OnnxSession.open(path)
        assert str(error.value).count(str(path)) == 1


def test_an_unknown_operator_is_named(write: Callable[[str, str, str], Path]) -> None:
    path = write("y = NoSuchOperator(x)", "float[N] x", "float[N] y")
    with pytest.raises(SourceError, match="NoSuchOperator") as error:
        OnnxSession.open(path)
    assert "\n" not in str(error.value)


def test_an_output_that_is_no_tensor(write: Callable[[str, str, str], Path]) -> None:
    path = write("y = SequenceConstruct(x)", "float[N] x", "seq(float[N]) y")
    with pytest.raises(SourceError, match="tensors only"):
        OnnxSession.open(path)


def test_a_device_that_is_not_there(double: Path) -> None:
    with pytest.raises(UsageError, match=r"device tpu is not one.*cpu"):
        OnnxSession.open(double, device="tpu")


def test_long_reasons_are_cut(tmp_path: Path) -> None:
    from edgeopt.runtimes.onnxruntime import _one_line

    assert len(_one_line(RuntimeError("x " * 1000), tmp_path)) <= 300
    assert _one_line(RuntimeError(""), tmp_path) == "RuntimeError"
    text = "[ONNXRuntimeError] : 1 : FAIL : /src/a.cc:12 f(int) x == y was false. Sizes differ"
    assert _one_line(RuntimeError(text), tmp_path) == "Sizes differ"


def test_preload_is_harmless() -> None:
    preload()
