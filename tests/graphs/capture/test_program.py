"""``.pt2`` programs: shapes from the program, and no code of theirs run without the user's word."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tests.graphs.capture import nets

from edgeopt.errors import UnsafeError
from edgeopt.files.open import open_source
from edgeopt.graphs.capture import capture


def _program(path, dynamic=True):
    module = nets.Tied().eval()
    dims = {"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=20)}}
    program = torch.export.export(
        module,
        (),
        {"ids": torch.randint(0, 40, (2, 6))},
        dynamic_shapes=dims if dynamic else None,
    )
    torch.export.save(program, path)
    return module


def test_free_dimensions_come_from_the_program_and_the_table_is_stored_once(tmp_path, work):
    module = _program(tmp_path / "m.pt2")
    answer = work(tmp_path / "m.pt2")
    assert answer["inputs"] == [["ids", "int64", ["batch", "dim_1"]]]
    session = onnxruntime.InferenceSession(answer["model"])
    ids = torch.randint(0, 40, (3, 9))
    got = session.run(None, {"ids": ids.numpy()})[0]
    np.testing.assert_allclose(got, module(ids).detach().numpy(), atol=1e-5)
    assert Path(answer["model"]).stat().st_size < 2 * 40 * 32 * 4


def test_a_program_of_fixed_shapes(tmp_path, work):
    _program(tmp_path / "m.pt2", dynamic=False)
    answer = work(tmp_path / "m.pt2")
    assert answer["inputs"] == [["ids", "int64", [2, 6]]]


class _Gadget:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def test_a_doctored_program_is_not_loaded_without_trust(tmp_path):
    _program(tmp_path / "m.pt2")
    canary = tmp_path / "canary"
    with (
        zipfile.ZipFile(tmp_path / "m.pt2") as good,
        zipfile.ZipFile(tmp_path / "bad.pt2", "w") as bad,
    ):
        swapped = 0
        for name in good.namelist():
            body = good.read(name)
            if "sample_inputs" in name or name.endswith(("example_inputs.pt", "inputs.pt")):
                body, swapped = pickle.dumps(_Gadget(str(canary))), swapped + 1
            bad.writestr(name, body)
    assert swapped, "the file must carry a gadget for this test to mean anything"
    source = open_source(tmp_path / "bad.pt2")
    with pytest.raises(UnsafeError, match="--trust-pickle"):
        capture(source, tmp_path / "work")
    assert not canary.exists()
    assert not (tmp_path / "work").exists()


def test_names_that_are_kept_beside_the_program_come_back(tmp_path, work):
    from edgeopt.core import InputSpec
    from edgeopt.modules.model import TorchModel
    from edgeopt.modules.program import write_program

    torch.manual_seed(0)
    module = nets.Tied().eval()
    spec = InputSpec("ids", "int64", ("batch", "sequence"))
    model = TorchModel(module, (spec,), {"ids": np.ones((2, 6), np.int64)})
    assert write_program(model, tmp_path / "m.pt") == ()
    answer = work(tmp_path / "m.pt")
    assert answer["inputs"] == [["ids", "int64", ["batch", "sequence"]]]
    ids = torch.randint(0, 40, (3, 9))
    got = onnxruntime.InferenceSession(answer["model"]).run(None, {"ids": ids.numpy()})[0]
    np.testing.assert_allclose(got, module(ids).detach().numpy(), atol=1e-5)
