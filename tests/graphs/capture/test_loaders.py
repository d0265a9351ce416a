"""Code and weights: what loads, what is refused, and in which words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.graphs.capture import nets
from torch import nn

from edgeopt.core import Weight
from edgeopt.errors import CaptureError, InputsError, SourceError, UnsafeError, UsageError
from edgeopt.modules.loading import build, fill

NETS = "tests.graphs.capture.nets"


def _weights(state, rename=str):
    return tuple(_weight(rename(name), tensor.numpy()) for name, tensor in state.items())


def _weight(name, array, dtype="float32"):
    return Weight(name, array.shape, dtype, array.nbytes, lambda lo, hi: array[lo:hi])


def _onnx(answer, feed):
    import onnxruntime

    session = onnxruntime.InferenceSession(answer["model"])
    return session.run(None, feed)


def test_a_class_a_function_and_an_instance_are_taken():
    assert isinstance(build(f"{NETS}:Head"), nets.Head)
    assert isinstance(build(f"{NETS}:half"), nets.Head)
    assert build(f"{NETS}:instance") is nets.instance


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("nets", UsageError, "not of the form package.module:callable"),
        ("no.such.module:f", SourceError, "cannot import no.such.module: ModuleNotFoundError"),
        (f"{NETS}:Heed", SourceError, "has no Heed; it has"),
        (f"{NETS}:number", SourceError, "is a int, not something to call"),
        (f"{NETS}:not_a_module", SourceError, "returned a int, not a torch Module"),
        (f"{NETS}:broken", SourceError, "calling it raised RuntimeError: needs a configuration"),
    ],
)
def test_code_that_cannot_be_used(name, error, says):
    with pytest.raises(error, match=says):
        build(name)


def test_weights_go_in_with_and_without_a_prefix():
    torch.manual_seed(3)
    state = nets.Head().state_dict()
    put_on = {"module.{}", "_orig_mod.{}", "model.net.{}", "module._orig_mod.{}", "body.{}"}
    for rename in (str, *(form.format for form in sorted(put_on))):
        module = fill(nets.Head(), _weights(state, rename)).module
        assert all(torch.equal(a, state[n]) for n, a in module.state_dict().items())


@pytest.mark.parametrize("wrapper", ["module", "model", "_orig_mod", "encoder"])
@pytest.mark.parametrize("taken_off", [True, False])
def test_wrappers_with_names_of_their_own(wrapper, taken_off):
    """The code is the wrapper, and the file has its names or those of what is inside."""

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(wrapper, nets.Head())

    torch.manual_seed(4)
    state = Wrapped().state_dict()
    given = {n.removeprefix(f"{wrapper}."): t for n, t in state.items()} if taken_off else state
    module = fill(Wrapped(), _weights(given)).module
    assert all(torch.equal(a, state[n]) for n, a in module.state_dict().items())


def test_a_tied_parameter_needs_one_of_its_names():
    state = nets.Tied().state_dict()
    one = {"table.weight": state["table.weight"]}
    module = fill(nets.Tied(), _weights(one)).module
    assert torch.equal(module.output.weight, state["table.weight"])


def test_bfloat16_bits_are_read_as_such():
    t = torch.randn(16, 8).to(torch.bfloat16)
    bits = t.view(torch.int16).numpy().view(np.uint16)
    weights = [
        _weight("weight", bits, "bfloat16"),
        *_weights({"bias": torch.zeros(16)}),
    ]
    module = fill(nn.Linear(8, 16), tuple(weights)).module
    assert torch.equal(module.weight, t.float())


def test_keys_that_do_not_fit_are_named_in_one_line():
    state = nets.Head().state_dict()
    bias = {"head.bias": state["head.bias"]}
    with pytest.raises(SourceError, match=r"body.weight, body.bias, head.weight missing from the"):
        fill(nets.Head(), _weights(bias))
    extra = {**state, **{f"extra{i}": torch.zeros(2) for i in range(5)}}
    filled = fill(nets.Head(), _weights(extra))
    assert all(torch.equal(a, state[n]) for n, a in filled.module.state_dict().items())
    (note,) = filled.notes
    assert "left out" in note and "extra0, extra1, extra2 and 2 more" in note
    del extra["head.bias"]
    with pytest.raises(
        SourceError, match=r"head.bias missing .* extra0, extra1, .* not in the code"
    ):
        fill(nets.Head(), _weights(extra))
    wide = {**state, "head.weight": torch.zeros(4, 17)}
    with pytest.raises(SourceError, match=r"\[4, 17\] in the file and \[4, 16\] in the code$"):
        fill(nets.Head(), _weights(wide))
    narrow = {**state, "head.weight": torch.zeros(4, 15)}
    with pytest.raises(SourceError, match=r"\[4, 16\] in the code; .*from the unpruned file"):
        fill(nets.Head(), _weights(narrow))


def test_a_state_dict_with_its_code(tmp_path, work):
    torch.manual_seed(0)
    module = nets.Head().eval()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    answer = work(tmp_path / "w.pt", model=f"{NETS}:Head")
    assert answer["rung"] == "dynamo"
    assert answer["opset"] == 21
    assert float(answer["agreement_db"]) > 100
    x = torch.randn(7, 8)
    got = _onnx(answer, {"features": x.numpy()})[0]
    np.testing.assert_allclose(got, module(x).detach().numpy(), atol=1e-5)


def test_a_bare_state_dict_asks_for_its_code(tmp_path, work):
    torch.save(nets.Head().state_dict(), tmp_path / "w.pt")
    with pytest.raises(SourceError, match="a state dict has no code: give --model"):
        work(tmp_path / "w.pt")


def test_a_pickled_module_needs_the_users_word(tmp_path, work):
    torch.save(nets.Head(), tmp_path / "m.pt")
    with pytest.raises(UnsafeError, match="--trust-pickle if you trust it, or the code with"):
        work(tmp_path / "m.pt")


def test_a_trusted_module_of_half_precision_is_captured_in_float32(tmp_path, work):
    torch.save(nets.half(), tmp_path / "m.pt")
    answer = work(tmp_path / "m.pt", trust=True)
    assert answer["inputs"] == [["features", "float32", ["batch", 8]]]
    assert "weights of bfloat16 are captured as float32" in answer["notes"]


def test_a_pickled_module_whose_class_is_gone(tmp_path, work, monkeypatch):
    class Gone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

    Gone.__qualname__ = Gone.__name__ = "Gone"
    monkeypatch.setattr(nets, "Gone", Gone, raising=False)
    Gone.__module__ = nets.__name__
    torch.save(Gone(), tmp_path / "m.pt")
    monkeypatch.delattr(nets, "Gone")
    with pytest.raises(SourceError, match=r"class cannot be found.*Gone"):
        work(tmp_path / "m.pt", trust=True)


def test_torchscript_goes_by_the_older_exporter(tmp_path, work):
    torch.jit.script(nets.Head()).save(tmp_path / "s.pt")
    answer = work(tmp_path / "s.pt")
    assert answer["rung"] == "torchscript exporter"
    assert answer["opset"] == 21
    assert answer["inputs"] == [["features", "float32", ["batch", 8]]]


def test_traced_torchscript_without_a_telling_layer_asks(tmp_path, work):
    torch.jit.trace(nets.Picture(), torch.zeros(1, 3, 9, 9)).save(tmp_path / "s.pt")
    with pytest.raises(InputsError, match=r"--input image:float32\[1,3,224,224\]"):
        work(tmp_path / "s.pt")


def test_inputs_and_outputs_of_several_kinds(tmp_path, work):
    torch.save(nets.Many(), tmp_path / "m.pt")
    answer = work(tmp_path / "m.pt", trust=True, inputs=("a:float32[3,8]", "b:float32[3,8]"))
    assert [i[0] for i in answer["inputs"]] == ["a", "b"]
    assert [o[0] for o in answer["outputs"]] == ["sum", "pair_0", "pair_1"]
    assert [o[2] for o in answer["outputs"]] == [["batch", 8], ["batch", 8], ["batch"]]


def test_control_flow_on_values_is_refused_with_torchs_reason(tmp_path, work):
    torch.save(nets.Branchy(), tmp_path / "m.pt")
    with pytest.raises(CaptureError, match="data-dependent") as caught:
        work(tmp_path / "m.pt", trust=True)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


@pytest.mark.no_cover  # other exports here go the same way; a tracer slows down all of torch
def test_torchs_own_transformer_with_its_masks(tmp_path, work):
    torch.manual_seed(0)
    module = nets.Translator().eval()
    torch.save(module, tmp_path / "m.pt")
    answer = work(
        tmp_path / "m.pt",
        trust=True,
        inputs=("source:float32[batch,s,16]", "target:float32[batch,t,16]"),
    )
    assert answer["rung"] == "dynamo"
    assert answer["outputs"][0][2] == ["batch", "t", 16]
    source, target = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    got = _onnx(answer, {"source": source.numpy(), "target": target.numpy()})[0]
    np.testing.assert_allclose(got, module(source, target).detach().numpy(), atol=1e-5)


def test_scripted_control_flow_keeps_both_branches(tmp_path, work):
    module = nets.Branchy().eval()
    torch.jit.script(module).save(tmp_path / "s.pt")
    answer = work(tmp_path / "s.pt")
    for x in (torch.ones(2, 8), -torch.ones(2, 8)):
        got = _onnx(answer, {"x": x.numpy()})[0]
        np.testing.assert_allclose(got, module(x).detach().numpy(), atol=1e-5)


def test_a_model_of_fixed_batch_stays_so_with_a_note(tmp_path, work):
    torch.save(nets.FixedBatch(), tmp_path / "m.pt")
    answer = work(tmp_path / "m.pt", trust=True, inputs=("x:float32[1,8]",))
    assert answer["inputs"] == [["x", "float32", [1, 8]]]
