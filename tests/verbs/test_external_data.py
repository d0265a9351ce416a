"""Artifacts of two files: the model, and its weights in a file beside it that runtimes map."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from rich.console import Console
from tests.in_process import no_processes
from tests.verbs.small_onnx import mlp, weights

from edgeopt.core import Proof
from edgeopt.errors import (
    EdgeoptError,
    FormatError,
    OutputError,
    ProofFailed,
    SourceError,
    UsageError,
)
from edgeopt.files.onnx import describe
from edgeopt.files.open import open_source
from edgeopt.files.weights import load_weights
from edgeopt.graphs import external
from edgeopt.report.text import render
from edgeopt.targets.onnx import float_export
from edgeopt.verbs.export import export
from edgeopt.verbs.quantize import quantize
from edgeopt.verbs.verify import verify

X = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_processes(monkeypatch)


def wide(path: Path, columns: int = 1024, **arrays: NDArray[Any]) -> Path:
    """An MLP with a tensor of 64 x ``columns`` floats, one of half that, and a short vector."""
    made = weights(w0=(64, columns), w1=(32, columns), b=(32,))
    return mlp(path, arrays={**made, **arrays})


def run(path: Path) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"x": X})[0]
    return result


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def placed(path: Path) -> dict[str, dict[str, str]]:
    """location, offset and length of the external tensors, as the onnx package reads them."""
    graph = onnx.load(path, load_external_data=False).graph
    return {
        t.name: {e.key: e.value for e in t.external_data}
        for t in graph.initializer
        if t.data_location == onnx.TensorProto.EXTERNAL
    }


def proven(proof: Proof) -> bool:
    return all(check.passed for check in proof.verdict.checks)


def test_the_pair_that_export_writes(tmp_path: Path) -> None:
    source = wide(tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    proof = export(source, out, external_data="always", prefer="size")
    assert proven(proof)
    assert names(tmp_path) == ["m.onnx", "out.onnx", "out.onnx.data"]
    where = placed(out)
    assert where["w0"] == {"location": "out.onnx.data", "offset": "0", "length": str(64 * 4096)}
    assert int(where["w1"]["offset"]) % 4096 == 0
    assert set(where) == {"w0", "w1"}  # the vector stays inside
    assert out.stat().st_size < 4096
    onnx.checker.check_model(str(out), full_check=True)
    np.testing.assert_array_equal(run(out), run(source))
    # Sizes count both files, to the byte.
    total = out.stat().st_size + external.data_path(out).stat().st_size
    assert proof.artifact["nbytes"] == total == open_source(out).nbytes
    (data,) = proof.artifact["data"]
    assert (data["path"], data["nbytes"]) == (str(out) + ".data", total - out.stat().st_size)
    # Whoever moves both has moved the model.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in (out, external.data_path(out)):
        path.rename(elsewhere / path.name)
    np.testing.assert_array_equal(run(elsewhere / "out.onnx"), run(source))
    console = Console(width=100, record=True, file=(tmp_path / "shown").open("w"))
    render(proof, console)
    assert "Weights: out.onnx.data, 393 kB; keep it beside out.onnx" in console.export_text()


@pytest.mark.parametrize(
    ("options", "beside"),
    [
        ({"half": True}, {"w0.half", "w1.half"}),
        ({"bits": 8}, None),
        ({"bits": 4, "target": "portable"}, None),
    ],
)
def test_what_is_stored_in_few_bits(
    tmp_path: Path, options: dict[str, Any], beside: set[str] | None
) -> None:
    source = wide(tmp_path / "m.onnx", columns=8192)
    out = tmp_path / "out.onnx"
    verb = export if options.get("half") else quantize
    proof = verb(source, out, external_data="always", prefer="size", min_sqnr=5.0, **options)
    assert proven(proof)
    where = placed(out)
    assert where and (beside is None or set(where) == beside)
    onnx.checker.check_model(str(out))
    inline = tmp_path / "inline.onnx"
    verb(source, inline, external_data="never", prefer="size", min_sqnr=5.0, **options)
    assert not external.data_path(inline).exists()
    # Where the weights lie changes nothing else.
    np.testing.assert_array_equal(run(out), run(inline))
    one, two = (onnx.load(path).graph for path in (inline, out))
    assert [n.SerializeToString() for n in one.node] == [n.SerializeToString() for n in two.node]
    for a, b in zip(one.initializer, two.initializer, strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))
    checked = verify(source, out, prefer="size", min_sqnr=5.0)
    assert proven(checked)
    assert checked.artifact["nbytes"] == proof.artifact["nbytes"] == describe(out).nbytes


def test_large_tensors_start_on_the_largest_pages(tmp_path: Path) -> None:
    source = wide(tmp_path / "m.onnx", columns=16384)
    export(source, tmp_path / "out.onnx", external_data="always", prefer="size")
    assert {int(w["offset"]) % 65536 for w in placed(tmp_path / "out.onnx").values()} == {0}


@pytest.mark.parametrize("asked", [64 * 4096 * 3 // 2 + 127, "never", "auto"])
def test_below_the_threshold_it_is_one_file(tmp_path: Path, asked: str | int) -> None:
    source = wide(tmp_path / "m.onnx", b=np.zeros(32, np.float32))
    export(source, tmp_path / "out.onnx", external_data=asked, prefer="size")
    expected = ["m.onnx", "out.onnx"] + (["out.onnx.data"] if isinstance(asked, int) else [])
    assert names(tmp_path) == expected


def test_nothing_large_is_one_file_always(tmp_path: Path) -> None:
    source = mlp(tmp_path / "m.onnx")
    export(source, tmp_path / "out.onnx", external_data="always", prefer="size")
    assert names(tmp_path) == ["m.onnx", "out.onnx"]


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    source = wide(tmp_path / "m.onnx")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        export(source, tmp_path / folder / "o.onnx", external_data="always", prefer="size")
    for name in ("o.onnx", "o.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_options_that_are_none(tmp_path: Path) -> None:
    for wrong in ("often", -1):
        with pytest.raises(UsageError, match=f"--external-data {wrong}: not one of auto, always"):
            export(mlp(tmp_path / "m.onnx"), external_data=wrong)


# ---------------------------------------------------------------------------------------------
# the pair, damaged


@pytest.fixture
def made(tmp_path: Path) -> Path:
    export(wide(tmp_path / "m.onnx"), tmp_path / "o.onnx", external_data="always", prefer="size")
    return tmp_path / "o.onnx"


def test_a_missing_or_short_data_file_is_one_line(made: Path) -> None:
    data = external.data_path(made)
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    uses: list[tuple[type[EdgeoptError], Callable[[Path], Any]]] = [
        (FormatError, open_source),
        (FormatError, load_weights),
        (ProofFailed, lambda p: verify(made.parent / "m.onnx", p)),  # its digest says so too
    ]
    for kind, use in uses:
        with pytest.raises(kind, match=r"reaches past the end of 'o\.onnx\.data'") as caught:
            use(made)
        assert "\n" not in str(caught.value)
    data.unlink()
    for kind, use in uses:
        with pytest.raises(kind, match=r"'o\.onnx\.data' is not there \(No such file"):
            use(made)


def test_it_is_read_without_a_copy(made: Path) -> None:
    array = load_weights(made)["w0"]
    assert not array.flags.owndata and not array.flags.writeable
    raw = external.data_path(made).read_bytes()
    assert array.tobytes() == raw[: array.nbytes]
    assert array.ctypes.data % 4096 == 0


# ---------------------------------------------------------------------------------------------
# all or nothing


def boom(kind: type[BaseException]) -> Any:
    def raises(*args: Any, **kwargs: Any) -> Any:
        raise kind

    return raises


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_proof_leaves_the_old_pair(
    made: Path, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = external.data_path(made)
    before = (made.read_bytes(), data.read_bytes(), names(made.parent))
    monkeypatch.setattr("edgeopt.targets.onnx.float_export.prove_graph", boom(kind))
    with pytest.raises(kind):
        export(made.parent / "m.onnx", made, half=True, external_data="always")
    assert (made.read_bytes(), data.read_bytes(), names(made.parent)) == before


def test_what_is_not_proven_leaves_neither_file(made: Path) -> None:
    data = external.data_path(made)
    before = (made.read_bytes(), data.read_bytes(), names(made.parent))
    options: dict[str, Any] = {"half": True, "external_data": "always", "min_sqnr": 300.0}
    for out in (made, made.with_name("new.onnx")):
        assert not proven(export(made.parent / "m.onnx", out, **options))
        assert (made.read_bytes(), data.read_bytes(), names(made.parent)) == before
    export(made.parent / "m.onnx", made, force=True, **options)
    assert made.read_bytes() != before[0] and data.read_bytes() != before[1]
    assert names(made.parent) == before[2]
    run(made)


def test_the_proof_is_of_the_bytes_that_are_kept(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that is measured names its data file as the kept one does."""
    seen = []
    prove = float_export.prove_graph

    def watch(verb: str, prepared: Any, written: Path, final: Path, **options: Any) -> Proof:
        seen.append((written.read_bytes(), external.data_path(written).read_bytes()))
        assert written != final and written.name == final.name
        return prove(verb, prepared, written, final, **options)

    monkeypatch.setattr(float_export, "prove_graph", watch)
    export(made.parent / "m.onnx", made, half=True, external_data="always", prefer="size")
    assert seen == [(made.read_bytes(), external.data_path(made).read_bytes())]


def test_a_data_file_of_the_source_is_never_replaced(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    onnx.save(
        onnx.load(wide(tmp_path / "inline.onnx")),
        source,
        save_as_external_data=True,
        location="other.onnx.data",
        size_threshold=0,
    )
    before = (tmp_path / "other.onnx.data").read_bytes()
    with pytest.raises(OutputError, match=r"other\.onnx\.data: is the source itself"):
        export(source, tmp_path / "other.onnx", external_data="always")
    assert (tmp_path / "other.onnx.data").read_bytes() == before
    assert "other.onnx" not in names(tmp_path)
    export(source, tmp_path / "other.onnx", external_data="never", prefer="size")
    assert (tmp_path / "other.onnx.data").read_bytes() == before


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = wide(tmp_path / "m.onnx")

    def full(stream: Any, value: Any, offset: int) -> None:
        stream.write(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(external, "_write", full)
    with pytest.raises(OutputError, match="the disk is full"):
        export(source, tmp_path / "o.onnx", external_data="always")
    assert names(tmp_path) == ["m.onnx"]


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """The system's own refusal, through the command line."""
    source = wide(tmp_path / "m.onnx")
    code = (
        "import resource, signal, sys; from edgeopt import cli\n"
        "import edgeopt.targets.onnx.build as b\n"
        "real = b.save\n"
        "def limited(*a):\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))\n"
        "    real(*a)\n"
        "b.save = limited\n"
        "sys.argv[1:] = ['export', 'm.onnx', '--external-data', 'always']\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"edgeopt: error: \S+m-fp32\.onnx: the file grew past .*\n", done.stderr)
    assert names(tmp_path) == ["m.onnx"]
    assert source.exists()


# ---------------------------------------------------------------------------------------------
# the writer alone


def model_of(arrays: dict[str, NDArray[Any]]) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="g")
    for name, array in arrays.items():
        tensor = ir.tensor(array, name=name)
        graph.register_initializer(
            ir.Value(
                name=name,
                shape=tensor.shape,
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        )
    return ir.Model(graph, ir_version=10)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["f4", "f2", "i1", "bfloat16", "int4"]),
            st.sampled_from([0, 1, 3, 20_001, 65_536, 65_539, 600_000]),
        ),
        max_size=5,
    ),
    st.sampled_from([None, 0, 70_000]),
)
def test_any_tensors_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: list[tuple[str, int]],
    over: int | None,
) -> None:
    import ml_dtypes

    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for i, (kind, size) in enumerate(tensors):
        dtype = np.dtype(getattr(ml_dtypes, kind, kind))
        arrays[f"t{i}"] = rng.integers(-8, 8, size).astype(dtype)
    path = tmp_path_factory.mktemp("any") / "m.onnx"
    external.save(model_of(arrays), path, over)
    for tensor in onnx.load(path).graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), arrays[tensor.name])
    source = describe(path)
    for weight in source.weights:
        np.testing.assert_array_equal(weight.array(), arrays[weight.name])
    end = 0
    for place in placed(path).values():
        offset, length = int(place["offset"]), int(place["length"])
        assert length >= external.INLINE_UNDER
        assert offset % (65536 if length >= 1 << 20 else 4096) == 0
        assert end <= offset < end + 65536
        end = offset + length
    predicted = external.written_nbytes(model_of(arrays), path.name, over)
    assert predicted == external.files_nbytes(path) == source.nbytes


def test_more_than_one_file_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "EXTERNAL_OVER", 100_000)
    arrays = {"t": np.zeros(30_000, np.float32)}
    with pytest.raises(OutputError, match="one ONNX file ends at 2 GB; use --external-data auto"):
        external.save(model_of(arrays), tmp_path / "m.onnx", None)
    assert names(tmp_path) == []
    external.save(model_of(arrays), tmp_path / "m.onnx", 0)
    assert names(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_a_runtime_maps_it(tmp_path: Path) -> None:
    """In a process of its own: a gathered table is mapped, and none of it is on the heap."""
    table = np.random.default_rng(0).standard_normal((16384, 256)).astype(np.float32)
    nodes = [onnx.helper.make_node("Gather", ["t", "x"], ["y"])]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, ["n"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 256])],
        [numpy_helper.from_array(table, "t")],
    )
    ids = [onnx.helper.make_opsetid("", 21)]
    proto = onnx.helper.make_model(graph, opset_imports=ids, ir_version=10)
    code = (
        "import json, sys, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        "lines = open('/proc/self/maps').read().splitlines()\n"
        "print(json.dumps([l for l in lines if l.endswith(sys.argv[1] + '.data')]))\n"
    )
    path = tmp_path / "m.onnx"
    external.save(ir.from_proto(proto), path, 0)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    (line,) = json.loads(done.stdout)
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    assert end - start >= table.nbytes


def test_a_source_that_broke_after_it_was_opened(made: Path) -> None:
    source = open_source(made)
    data = external.data_path(made)
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(SourceError, match=r"changed since|shrank"):
        next(w for w in source.weights if w.name == "w0").array()
