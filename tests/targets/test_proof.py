"""Proofs are made in one place, and tensors stand in their document as outputs do."""

from __future__ import annotations

import ast
import dataclasses
import math
from pathlib import Path

import edgeopt
from edgeopt.core import Fidelity, Source, TensorFidelity, Verdict
from edgeopt.targets.proof import proof_of


def test_one_place_makes_a_proof() -> None:
    root = Path(edgeopt.__file__).parent
    makers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Proof"
    }
    assert makers == {str(Path("targets", "proof.py"))}


def test_a_tensor_has_the_keys_of_an_output_and_no_number_that_nobody_measured(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"")
    source = Source(path, "safetensors", (path,), 7, ())
    proof = proof_of(
        "verify",
        source,
        tmp_path / "out",
        Verdict(()),
        form="safetensors",
        nbytes=3,
        environment={},
        tensors=(TensorFidelity("w", -math.inf, False), TensorFidelity("v", 21.5, True)),
    )
    document = proof.to_json()
    assert document["source"] == {"path": str(path), "kind": "safetensors", "nbytes": 7}
    assert "sha256" not in document["artifact"]
    first, second = document["fidelity"]
    assert set(first) == {field.name for field in dataclasses.fields(Fidelity)}
    assert (first["output"], first["sqnr_db"], first["finite"]) == ("w", "-inf", False)
    assert (second["sqnr_db"], second["cosine"], second["max_abs"]) == (21.5, "nan", "nan")
    assert proof.fidelity == ()
