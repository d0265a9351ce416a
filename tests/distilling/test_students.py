"""Students: what --shrink and --student name, and whether they match their teacher."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core import InputSpec
from edgeopt.distilling.interface import differences, require_alike
from edgeopt.distilling.students import load_student, make_student, parse_shrink
from edgeopt.errors import InputsError, SourceError, UnsafeError, UsageError
from edgeopt.modules.model import TorchModel

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, wide=4, classes=3):
        super().__init__()
        self.first = nn.Linear(5, wide)
        self.last = nn.Linear(wide, classes)

    def forward(self, image):
        return {"logits": self.last(torch.relu(self.first(image)))}

class Other(Net):
    def forward(self, x):
        return self.last(torch.relu(self.first(x)))

def small():
    return Net().double().train()

def other():
    return Other()

def wrong():
    return Net(classes=7)

def pair():
    net = Net()
    net.register_forward_hook(lambda m, i, o: {**o, "more": o["logits"]})
    return net

def whole():
    net = Net()
    net.register_forward_hook(lambda m, i, o: {"logits": o["logits"].argmax(-1, keepdim=True)
                                               .expand(-1, 3)})
    return net

def picky():
    return nn.Linear(6, 3)
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A module ``net_for_students`` in the current folder."""
    (tmp_path / "net_for_students.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "net_for_students"
    sys.modules.pop("net_for_students", None)


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, image):
        return {"logits": self.body(image)}


def _teacher() -> TorchModel:
    spec = InputSpec("image", "float32", ("batch", 5))
    example = {"image": np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)}
    return TorchModel(Teacher().eval(), (spec,), example)


# --- by name --------------------------------------------------------------------------------------


def test_code_is_called_in_float32_with_its_teachers_inputs(code):
    teacher = _teacher()
    student = load_student(f"{code}:small", teacher)
    assert {p.dtype for p in student.module.parameters()} == {torch.float32}
    assert not student.module.training and not student.positional
    assert student.inputs == teacher.inputs and student.example is teacher.example


def test_arguments_of_another_name_go_by_place_and_a_lone_output_has_any_name(code):
    student = load_student(f"{code}:other", teacher := _teacher())
    assert student.positional
    assert list(student.outputs(student.tensors())) == ["output"]
    assert list(teacher.outputs(teacher.tensors())) == ["logits"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("wrong", r"student's output logits is \[2, 7\], the teacher's output logits is \[2, 3\]"),
        ("pair", "the student gives logits, more, the teacher logits"),
        ("whole", "output logits is int64, the teacher's output logits is float32"),
        ("picky", r"the student \(Linear\) on image: .*"),
    ],
)
def test_a_student_that_does_not_match_is_refused(code, name, told):
    with pytest.raises(InputsError, match=told):
        load_student(f"{code}:{name}", _teacher())


@pytest.mark.parametrize(
    ("spec", "error", "told"),
    [
        ("nowhere.pt", UsageError, "--student nowhere.pt is no file or folder"),
        ("net_for_students:", UsageError, "--student net_for_students: is not of the form"),
        ("net_for_students:smal", SourceError, "--student net_for_students:smal"),
        ("no_such_module:x", SourceError, "cannot import no_such_module"),
    ],
)
def test_names_that_lead_nowhere(code, spec, error, told):
    with pytest.raises(error, match=told):
        load_student(spec, _teacher())


def test_weights_need_code_and_fill_it(code):
    module = load_student(f"{code}:small", _teacher()).module
    torch.save(module.state_dict(), "weights.pt")
    with pytest.raises(UsageError, match="weights have no code; give it with --model"):
        load_student("weights.pt", _teacher())
    student = load_student("weights.pt", _teacher(), code=f"{code}:small")
    for name, tensor in module.state_dict().items():
        assert torch.equal(student.module.state_dict()[name], tensor)


def test_a_pickle_needs_trust(code):
    module = load_student(f"{code}:small", _teacher()).module
    torch.save(module, "pickled.pt")
    with pytest.raises(UnsafeError, match="--trust-pickle"):
        load_student("pickled.pt", _teacher())
    student = load_student("pickled.pt", _teacher(), trust=True)
    wanted = module(torch.from_numpy(_teacher().example["image"]))["logits"]
    assert torch.equal(student.outputs(student.tensors())["logits"], wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_without_anything_to_train_is_refused(code):
    torch.jit.trace(nn.Linear(5, 3), torch.ones(1, 5)).save("scripted.pt")
    with pytest.raises(SourceError, match="is torchscript, which cannot be trained"):
        load_student("scripted.pt", _teacher())


def test_a_folder_of_its_own_kind(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 20}

    def bert(layers):
        config = transformers.BertConfig(
            num_hidden_layers=layers, intermediate_size=20, max_position_embeddings=8, **sizes
        )
        return transformers.BertForSequenceClassification(config).eval()

    ids = np.arange(8).reshape(2, 4)
    example = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    specs = tuple(InputSpec(name, "int64", ("batch", "tokens")) for name in example)
    small = bert(1)
    small.save_pretrained(tmp_path)
    teacher = TorchModel(bert(2), specs, example)
    student = load_student(str(tmp_path), teacher)
    assert student.folder == tmp_path
    wanted = small(torch.from_numpy(ids), torch.from_numpy(np.ones_like(ids))).logits
    assert torch.equal(student.outputs(student.tensors())["logits"], wanted)


def test_other_inputs_are_both_named():
    teacher = _teacher()
    other = TorchModel(
        nn.Linear(5, 3), (InputSpec("x", "float32", (2, 5)),), {"x": teacher.example["image"]}
    )
    with pytest.raises(InputsError, match="the student takes x, the teacher image"):
        require_alike(teacher, other)
    assert differences(teacher, teacher) == ""


# --- made smaller ---------------------------------------------------------------------------------


def test_what_shrinks():
    assert parse_shrink("width=0.5,depth=0.25") == (0.5, 0.25)
    assert parse_shrink(" depth = 0.5") == (None, 0.5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("witdh=0.5", "'witdh' cannot be shrunk; is width meant"),
        ("", "'' cannot be shrunk; there are width, depth"),
        ("width", "width is ''; give the share that stays, above 0 and below 1"),
        ("width=1", "width is '1'"),
        ("depth=0", "depth is '0'"),
        ("depth=-0.5", "depth is '-0.5'"),
        ("depth=nan", "depth is 'nan'"),
        ("depth=half", "depth is 'half'"),
        ("width=0.5,width=0.5", "width is given twice"),
    ],
)
def test_what_cannot_shrink(text, told):
    with pytest.raises(UsageError) as caught:
        parse_shrink(text)
    assert told in str(caught.value) and f"--shrink {text}" in str(caught.value)


def test_a_student_is_smaller_in_something():
    with pytest.raises(UsageError, match="needs a width or a depth"):
        make_student(_teacher())


def test_a_module_that_cannot_be_copied_is_named():
    class Held(Teacher):
        def __deepcopy__(self, memo):
            raise RuntimeError("one is enough")

    teacher = _teacher()
    held = TorchModel(Held(), teacher.inputs, teacher.example)
    with pytest.raises(SourceError, match="Held cannot be copied: RuntimeError: one is enough"):
        make_student(held, width=0.5)


def test_a_transformer_goes_by_its_configuration():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=20,
        max_position_embeddings=8,
        vocab_size=20,
    )
    ids = np.arange(8).reshape(2, 4)
    spec = InputSpec("input_ids", "int64", ("batch", "tokens"))
    module = transformers.BertForSequenceClassification(config).eval()
    teacher = TorchModel(module, (spec,), {"input_ids": ids})
    student, pruning = make_student(teacher, width=0.5, depth=0.5)
    assert student.module.config.hidden_size == 8 and pruning.changed
    assert not differences(teacher, student)


def test_any_other_network_loses_blocks_and_channels():
    pytest.importorskip("torch_pruning")
    from models.digits import build

    module = build()
    images = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)
    spec = InputSpec("image", "float32", ("batch", 1, 8, 8))
    teacher = TorchModel(module, (spec,), {"image": images})
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    student, pruning = make_student(teacher, width=0.5, depth=0.5, feeds=[teacher.example])
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    kinds = {cut.kind for cut in pruning.cuts if cut.after < cut.before}
    assert kinds == {"blocks", "channels"}
    count = [sum(p.numel() for p in m.module.parameters()) for m in (teacher, student)]
    assert count[1] < count[0] / 3
    assert not differences(teacher, student)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The digits network with half its width, written to ``pruned.pt``, and its teacher."""
    pytest.importorskip("torch_pruning")
    from models.digits import build

    from edgeopt.modules.program import save_program
    from edgeopt.pruning.rebuild import sizes_of

    images = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)
    spec = InputSpec("image", "float32", ("batch", 1, 8, 8))
    teacher = TorchModel(build(), (spec,), {"image": images})
    student, _ = make_student(teacher, width=0.5)
    description = {"edgeopt_pruned": 1, "sizes": sizes_of(student.module), "prunings": []}
    path = tmp_path_factory.mktemp("pruned") / "pruned.pt"
    save_program(student, path, description)
    return path, teacher, student


def test_a_pruned_program_is_a_student(written):
    path, teacher, made = written
    student = load_student(str(path), teacher)
    assert any(p.requires_grad for p in student.module.parameters())
    wanted, got = (m.outputs(m.tensors(teacher.example)) for m in (made, student))
    torch.testing.assert_close(next(iter(got.values())), wanted["output"])


def test_with_its_code_a_pruned_program_is_a_module_again(written):
    path, teacher, made = written
    student = load_student(str(path), teacher, code="models.digits:build")
    assert type(student.module) is type(made.module)
    wanted, got = (m.outputs(m.tensors(teacher.example)) for m in (made, student))
    assert torch.equal(got["output"], wanted["output"])


def test_with_other_code_it_is_the_program_and_says_so(written, code):
    path, teacher, _ = written
    student = load_student(str(path), teacher, code=f"{code}:small")
    assert any("without its code" in note and "Net" in note for note in student.notes)
    assert not differences(teacher, student)
