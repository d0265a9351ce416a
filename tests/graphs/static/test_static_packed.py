"""Four bits on disk, eight in the kernel, for what has a static integer kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter
from tests.graphs.static import static_models
from tests.graphs.static.static_models import images, run, sqnr

from edgeopt.core import Decision
from edgeopt.graphs import static


def residual() -> onnx.ModelProto:
    """4-bit types came with opset 21."""
    return version_converter.convert_version(static_models.residual(), 21)


def _placed(four_bits: bool) -> tuple[onnx.ModelProto, dict[str, Decision]]:
    prepared = static.prepare(residual())
    selection = static.select(prepared)
    ranges = static.calibrate(prepared, selection.ranges, images(), "minmax")
    _, decisions = static.place(prepared, selection, ranges)
    wanted = {d.tensor: d for d in decisions if d.scheme is not None}
    if four_bits:
        wanted = {name: static.four_bit_decision(d, 64) for name, d in wanted.items()}
    packed = static.decode_weights(prepared, wanted)
    placed, _ = static.place(prepared, selection, ranges)
    model = ir.from_proto(placed)
    static.store_packed(model, packed)
    return ir.to_proto(model), wanted


def test_large_weights_take_four_bits_and_small_ones_keep_eight() -> None:
    _, wanted = _placed(four_bits=True)
    bits = {name: d.scheme.bits for name, d in wanted.items() if d.scheme is not None}
    sizes = {name: int(np.prod(d.shape)) for name, d in wanted.items()}
    assert 4 in bits.values() and 8 in bits.values()
    assert all(bits[n] == 8 for n in bits if sizes[n] < 2048)


def test_the_runtime_computes_in_the_same_integer_kernels(tmp_path: Path) -> None:
    """The chain from 4-bit codes is folded before the kernels are fused."""
    counts = []
    for four_bits in (False, True):
        model, _ = _placed(four_bits)
        path = tmp_path / f"{four_bits}.onnx"
        onnx.save(model, path)
        counts.append(static.integer_kernels(path))
    assert counts[0]["QLinearConv"] >= 2
    assert counts[1] == counts[0]


def test_the_file_is_smaller_and_the_answers_are_near(tmp_path: Path) -> None:
    source = residual()
    eight, _ = _placed(four_bits=False)
    four, wanted = _placed(four_bits=True)
    saved = sum(
        int(np.prod(d.shape)) // 2 for d in wanted.values() if d.scheme and d.scheme.bits == 4
    )
    assert four.ByteSize() < eight.ByteSize()
    assert saved > 0
    feed = images(1, seed=5)[0]
    want = run(source, feed)[0]
    assert sqnr(want, run(eight, feed)[0]) > 25
    assert sqnr(want, run(four, feed)[0]) > 10


def test_the_codes_made_at_load_are_the_ones_that_were_placed() -> None:
    """The chain gives int8 codes over their whole range, and the int8 weights are gone."""
    four, wanted = _placed(four_bits=True)
    name = next(n for n, d in wanted.items() if d.scheme is not None and d.scheme.bits == 4)
    stored = {t.name for t in four.graph.initializer}
    assert f"{name}.codes" in stored and f"{name}/q" not in stored
    graph = onnx.ModelProto()
    graph.CopyFrom(four)
    graph.graph.output.append(
        onnx.helper.make_tensor_value_info(f"{name}.int8", onnx.TensorProto.INT8, None)
    )
    codes = run(graph, images(1)[0])[-1]
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() == 127
