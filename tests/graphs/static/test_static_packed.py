"""Four bits on disk, eight in the kernel, for what has a static integer kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import version_converter
from tests.cpu_arithmetic import ALL, AVX2, VNNI, Arithmetic
from tests.graphs.static import static_models
from tests.graphs.static.static_models import images, run, sqnr

from edgeopt.core import Decision
from edgeopt.graphs import static


def residual() -> onnx.ModelProto:
    """4-bit types came with opset 21."""
    return version_converter.convert_version(static_models.residual(), 21)


def _placed(four_bits: bool, cpu: Arithmetic = VNNI) -> tuple[onnx.ModelProto, dict[str, Decision]]:
    prepared = static.prepare(residual())
    selection = static.select(prepared)
    ranges = static.calibrate(prepared, selection.ranges, images(), "minmax")
    decisions = static.place(prepared, selection, ranges).decisions
    wanted = {d.tensor: d for d in decisions if d.scheme is not None}
    if four_bits:
        wanted = {name: static.four_bit_decision(d, 64) for name, d in wanted.items()}
    packed = static.decode_weights(prepared, wanted)
    placed = static.place(prepared, selection, ranges, reduce_range=cpu is AVX2)
    model = ir.from_proto(placed.model)
    static.store_packed(model, packed, placed.codes)
    return ir.to_proto(model), wanted


def test_large_weights_take_four_bits_and_small_ones_keep_eight() -> None:
    _, wanted = _placed(four_bits=True)
    bits = {name: d.scheme.bits for name, d in wanted.items() if d.scheme is not None}
    sizes = {name: int(np.prod(d.shape)) for name, d in wanted.items()}
    assert 4 in bits.values() and 8 in bits.values()
    assert all(bits[n] == 8 for n in bits if sizes[n] < 2048)


@pytest.mark.parametrize("cpu", ALL)
def test_the_runtime_computes_in_the_same_integer_kernels(cpu: Arithmetic, tmp_path: Path) -> None:
    """The chain from 4-bit codes is folded before the kernels are fused."""
    counts = []
    for four_bits in (False, True):
        model, _ = _placed(four_bits, cpu)
        path = tmp_path / f"{four_bits}.onnx"
        onnx.save(model, path)
        counts.append(static.integer_kernels(path))
    assert counts[0]["QLinearConv"] >= 2
    assert counts[1] == counts[0]


@pytest.mark.parametrize("cpu", ALL)
def test_the_file_is_smaller_and_the_answers_are_near(cpu: Arithmetic) -> None:
    source = residual()
    eight, _ = _placed(False, cpu)
    four, wanted = _placed(True, cpu)
    saved = sum(
        int(np.prod(d.shape)) // 2 for d in wanted.values() if d.scheme and d.scheme.bits == 4
    )
    assert saved > 0
    assert four.ByteSize() < eight.ByteSize()
    feed = images(1, seed=5)[0]
    want = run(source, feed)[0]
    # Weights of 7 bits are the same on every CPU; those of 8 are judged by exact sums.
    exact = cpu is AVX2
    assert sqnr(want, run(eight, feed, fused=exact)[0]) > (25 if cpu is VNNI else 21)
    assert sqnr(want, run(four, feed, fused=exact)[0]) > 10


@pytest.mark.parametrize("cpu", ALL)
def test_the_codes_made_at_load_use_the_range_that_was_asked_for(cpu: Arithmetic) -> None:
    """No int8 weight is left beside its chain, and no code leaves the range of its CPU."""
    four, wanted = _placed(True, cpu)
    names = [n for n, d in wanted.items() if d.scheme is not None and d.scheme.bits == 4]
    stored = {t.name for t in four.graph.initializer}
    assert names
    for name in names:
        assert f"{name}.codes" in stored and f"{name}/q" not in stored
        graph = onnx.ModelProto()
        graph.CopyFrom(four)
        graph.graph.output.append(
            onnx.helper.make_tensor_value_info(f"{name}.int8", onnx.TensorProto.INT8, None)
        )
        codes = run(graph, images(1)[0])[-1]
        assert codes.dtype == np.int8
        assert np.abs(codes.astype(int)).max() == (127 if cpu is VNNI else 63)
