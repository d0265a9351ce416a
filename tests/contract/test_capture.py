"""Every architecture of the table becomes an ONNX file that agrees with torch at two sizes."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from tests.contract.architectures import ARCHITECTURES
from tests.in_process import forked_capture

from edgeopt.data.inputspec import parse_inputs
from edgeopt.files.open import open_source
from edgeopt.graphs.capture import capture, parent

#: One of each kind of carrier, for every run; the others take a few seconds each.
FAST = {"mlp", "lstm-tagger"}

#: Exported in a fresh process; the others in copies of this one, which has torch.
AS_A_USER = {"mlp"}


def test_the_table_has_at_least_the_architectures_promised():
    assert len(ARCHITECTURES) >= 24
    assert len({a.name for a in ARCHITECTURES}) == len(ARCHITECTURES)


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(a, id=a.name, marks=() if a.name in FAST else pytest.mark.slow)
        for a in ARCHITECTURES
    ],
)
def test_it_becomes_a_file_that_agrees_at_two_sizes(architecture, tmp_path, monkeypatch):
    if architecture.name not in AS_A_USER:
        monkeypatch.setattr(parent, "_run", forked_capture)
    folder = tmp_path / "model"
    folder.mkdir()
    case = architecture.build(folder)
    options = dict(case.options)
    inputs = parse_inputs(tuple(options.pop("inputs", ())))
    held = capture(open_source(case.path), tmp_path / "work", inputs=inputs, **options)
    assert held.opset >= 21
    assert held.agreement_db >= 90
    session = onnxruntime.InferenceSession(str(held.model))
    taken = {i.name for i in session.get_inputs()}
    assert taken == set(case.feeds[0])
    for feed in case.feeds:
        outputs = session.run(None, dict(feed))
        assert all(np.isfinite(o).all() and o.std() > 0 for o in outputs)
