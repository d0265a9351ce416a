"""Which files saturate before VNNI: said of the file's codes, shown by the arithmetic itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.cpu_arithmetic import AVX2, VNNI, machine, run_as
from tests.graphs.nets import model, node, value

from edgeopt.graphs.saturation import saturating_products
from edgeopt.targets.onnx.base_graph import needs_unsigned
from edgeopt.targets.onnx.prove import saturation

RNG = np.random.default_rng(0)


def integers(codes: Any, wrap: bool = False) -> Any:
    nodes = [node("MatMulInteger", ["x", "t"], ["y"])]
    turned = node("Transpose", ["w"], ["t"], perm=[1, 0])
    if wrap:
        branches = [
            helper.make_graph(
                [node("MatMulInteger", ["x", "t"], [name])],
                name,
                [],
                [value(name, ["n", codes.shape[0]], TensorProto.INT32)],
            )
            for name in ("a", "b")
        ]
        nodes = [node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])]
    flag = [value("flag", [], TensorProto.BOOL)] if wrap else []
    return model(
        [turned, *nodes],
        [value("x", ["n", codes.shape[1]], TensorProto.UINT8), *flag],
        [value("y", ["n", codes.shape[0]], TensorProto.INT32)],
        {"w": codes},
    )


@pytest.mark.parametrize(
    ("codes", "saturates"),
    [
        (RNG.integers(-128, 128, (8, 32)).astype(np.int8), True),
        (RNG.integers(-64, 65, (8, 32)).astype(np.int8), False),
        (RNG.integers(0, 256, (8, 32)).astype(np.uint8), False),
        (np.array([[127, 1, -128, 0]], np.int8), False),
        (np.array([[127, 2, 0, 0]], np.int8), True),
        (np.array([[-128, -1, 0, 0]], np.int8), True),
        (np.array([[-128, 0, 0, 0]], np.int8), False),
    ],
)
def test_what_saturates_is_what_the_arithmetic_saturates(
    codes: Any, saturates: bool, tmp_path: Path
) -> None:
    made = integers(codes)
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    assert saturating_products(path) == int(saturates)
    # The largest activations where weights are positive, and where they are negative.
    signs = codes.astype(int) > 0
    x = np.concatenate([signs, ~signs]).astype(np.uint8) * 255
    exact, before = (run_as(made, cpu, x=x)[0] for cpu in (VNNI, AVX2))
    assert (exact != before).any() == saturates


def test_weights_outside_of_branches_and_in_external_data(tmp_path: Path) -> None:
    wide = RNG.integers(-128, 128, (8, 32)).astype(np.int8)
    path = tmp_path / "branches.onnx"
    onnx.save(integers(wide, wrap=True), path)
    assert saturating_products(path) == 1
    path = tmp_path / "external.onnx"
    onnx.save(integers(wide), path, save_as_external_data=True, size_threshold=0, location="d")
    assert saturating_products(path) == 1


@pytest.mark.parametrize("cpu", [VNNI, AVX2])
def test_the_note_says_which_cpu_the_figures_are_of(cpu: Any) -> None:
    assert needs_unsigned(machine(cpu)) == (cpu is AVX2)
    assert saturation(0, machine(cpu)) == ()
    (said,) = saturation(3, machine(cpu))
    assert said.startswith("3 int8 weights use all 8 bits")
    assert ("in the figures" in said) == (cpu is AVX2)
    assert ("exact on this CPU" in said) == (cpu is VNNI)
