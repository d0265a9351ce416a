"""A changed model as files: what is written answers as the module does, and can be trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeopt.core import InputSpec
from edgeopt.errors import FormatError, OutputError, SourceError, UnsafeError
from edgeopt.files.open import open_source
from edgeopt.modules.model import TorchModel
from edgeopt.modules.program import (
    description_path,
    load_trainable,
    save_program,
    state_path,
    write_program,
)
from edgeopt.modules.state_dict import read_state, write_state
from edgeopt.pruning.rebuild import rebuild, sizes_of


class Small(nn.Module):
    """Convolutions in series, one depthwise, with a skip: what channel pruning has to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(image)))
        return self.last((x + self.deep(x)).mean((2, 3)))


def small(module: nn.Module | None = None) -> TorchModel:
    torch.manual_seed(0)
    made = Small().eval() if module is None else module
    spec = InputSpec("image", "float32", ("batch", 1, 6, 6))
    image = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)
    return TorchModel(made, (spec,), {"image": image})


def pruned() -> TorchModel:
    """Half of its channels gone, by torch-pruning."""
    import torch_pruning

    model = small()
    pruner = torch_pruning.pruner.BasePruner(
        model.module,
        torch.zeros(2, 1, 6, 6),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[model.module.last],
    )
    pruner.step()
    assert model.module.first.out_channels == model.module.deep.groups == 4
    return model


DESCRIPTION = {"edgeopt_pruned": 1, "prunings": [], "name": "netz-größe"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchModel, Path]:
    model = pruned()
    out = tmp_path_factory.mktemp("saved") / "m.pt"
    about = {**DESCRIPTION, "sizes": sizes_of(model.module)}
    assert save_program(model, out, about) == [out, state_path(out), description_path(out)]
    return model, out


def test_three_files_are_written_and_nothing_else(saved: tuple[TorchModel, Path]) -> None:
    model, out = saved
    assert sorted(p.name for p in out.parent.iterdir()) == [
        "m.json",
        "m.pt",
        "m.state.safetensors",
    ]
    assert json.loads(description_path(out).read_text())["name"] == "netz-größe"
    state = load_file(state_path(out))  # by the format's own library
    assert set(state) == set(model.module.state_dict())
    assert all(torch.equal(state[n], t) for n, t in model.module.state_dict().items())


def test_the_program_answers_as_the_module_at_any_batch(saved: tuple[TorchModel, Path]) -> None:
    model, out = saved
    image = torch.randn(5, 1, 6, 6)
    wanted = model.module(image)
    torch.testing.assert_close(torch.export.load(str(out)).module()(image), wanted)
    again = load_trainable(out)
    assert again.inputs == model.inputs
    torch.testing.assert_close(again.outputs({"image": image})["output"], wanted)
    source = open_source(out)
    assert source.kind == "torch-exported" and source.needs_trust is None
    assert source.inputs == model.inputs
    assert {w.name for w in source.weights} == set(model.module.state_dict())


def test_the_file_names_no_folder_of_its_author(saved: tuple[TorchModel, Path]) -> None:
    raw = saved[1].read_bytes()
    assert str(Path(__file__).parent).encode() not in raw and b"site-packages" not in raw


def test_the_same_model_gives_the_same_bytes(
    saved: tuple[TorchModel, Path], tmp_path: Path
) -> None:
    model, out = saved
    write_program(model, tmp_path / "other-name.pt")
    assert (tmp_path / "other-name.pt").read_bytes() == out.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["other-name.pt"]
    write_state(model.module, tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == state_path(out).read_bytes()


def test_writing_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    model = small()
    model.module.train()
    before = {n: t.clone() for n, t in model.module.state_dict().items()}
    forward = model.module.forward
    write_program(model, tmp_path / "m.pt")
    assert model.module.training and model.module.norm.training
    assert model.module.forward == forward and "forward" not in vars(model.module)
    assert all(torch.equal(before[n], t) for n, t in model.module.state_dict().items())


def test_a_program_can_be_trained_on_and_written_again(
    saved: tuple[TorchModel, Path], tmp_path: Path
) -> None:
    model = load_trainable(saved[1])
    assert any("BatchNorm stays" in note for note in model.notes)
    assert set(dict(model.module.named_parameters())) == set(
        dict(saved[0].module.named_parameters())
    )
    image = torch.randn(4, 1, 6, 6)
    with model.mode(True) as module:
        assert module.training
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        first = model.outputs({"image": image})["output"].square().sum()
        first.backward()
        assert all(p.grad is not None for p in module.parameters())
        optimizer.step()
        assert model.outputs({"image": image})["output"].square().sum() < first
    write_program(model, tmp_path / "again.pt")
    again = load_trainable(tmp_path / "again.pt")
    assert again.inputs == model.inputs
    wanted = model.outputs({"image": image})["output"]
    torch.testing.assert_close(again.outputs({"image": image})["output"], wanted)


def test_the_code_is_given_the_pruned_shapes(saved: tuple[TorchModel, Path]) -> None:
    model, out = saved
    description = json.loads(description_path(out).read_text())
    for about in (description, {"edgeopt_pruned": 1}):  # with what was remembered, and without
        module = rebuild(Small().eval(), read_state(state_path(out)), about)
        assert (module.first.out_channels, module.deep.in_channels, module.deep.groups) == (4, 4, 4)
        assert (module.norm.num_features, module.last.in_features) == (4, 4)
        image = torch.randn(3, 1, 6, 6)
        assert torch.equal(module(image), model.module(image))
        module.train()(image).sum().backward()


@pytest.mark.slow
def test_the_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from tests.modules.test_saved_program import *; "
        "write_program(small(), Path(sys.argv[1]))"
    )
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)], env=environment, check=True
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


# -------------------------------------------------------------------------- names and dimensions


class Several(nn.Module):
    """Nested outputs, an argument that is always the same, names that are no good for source."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.table.weight

    def forward(self, input: Tensor, mask: Tensor, scale: float = 1.0, cache: bool = True) -> Any:
        x = self.table(input) * mask.unsqueeze(-1) * scale
        return {"hidden": x, "pair": (self.out(x), x.sum()), "cache": cache, "none": None}


def several(names: tuple[str, str] = ("input", "mask"), positional: bool = False) -> TorchModel:
    torch.manual_seed(0)
    specs = (
        InputSpec(names[0], "int64", ("batch", "length")),
        InputSpec(names[1], "float32", ("batch", "length")),
    )
    example = {names[0]: np.ones((2, 5), np.int64), names[1]: np.ones((2, 5), np.float32)}
    fixed = {"scale": 2.0, "cache": False}
    return TorchModel(Several().eval(), specs, example, positional=positional, fixed=fixed)


def test_names_of_inputs_outputs_and_dimensions_are_kept(tmp_path: Path) -> None:
    model = several()
    assert write_program(model, tmp_path / "m.pt") == ()
    again = load_trainable(tmp_path / "m.pt")
    assert [str(spec) for spec in again.inputs] == [
        "input: int64[batch, length]",
        "mask: float32[batch, length]",
    ]
    feed = {"input": torch.randint(0, 7, (3, 8)), "mask": torch.rand(3, 8)}
    wanted, given = model.outputs(feed), again.outputs(feed)
    assert list(given) == list(wanted) == ["hidden", "pair_0", "pair_1"]
    for name, tensor in wanted.items():
        torch.testing.assert_close(given[name], tensor)
    # One table still, under both of its names.
    state = again.module.state_dict()
    assert state["table.weight"].data_ptr() == state["out.weight"].data_ptr()


def test_names_that_python_keeps_for_itself(tmp_path: Path) -> None:
    model = several(("class", "#1"), positional=True)
    write_program(model, tmp_path / "m.pt")
    again = load_trainable(tmp_path / "m.pt")
    assert [spec.name for spec in again.inputs] == ["input_0", "input_1"]
    ids, mask = torch.randint(0, 7, (2, 3)), torch.rand(2, 3)
    torch.testing.assert_close(
        again.outputs({"input_0": ids, "input_1": mask})["hidden"],
        model.outputs({"class": ids, "#1": mask})["hidden"],
    )


class Rigid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x * torch.arange(8.0).reshape(2, 4))


def test_a_dimension_that_cannot_be_free_is_fixed_with_a_note(tmp_path: Path) -> None:
    spec = InputSpec("x", "float32", ("batch", 4))
    model = TorchModel(Rigid(), (spec,), {"x": np.ones((2, 4), np.float32)})
    (note,) = write_program(model, tmp_path / "m.pt")
    assert note.startswith("batch is fixed at 2 in the program")
    again = load_trainable(tmp_path / "m.pt")
    assert again.inputs == (replace(spec, shape=(2, 4)),)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def test_a_length_that_the_export_unrolls_is_fixed_with_a_note(tmp_path: Path) -> None:
    spec = InputSpec("x", "float32", ("batch", "sequence", 4))
    model = TorchModel(Recurrent(), (spec,), {"x": np.ones((2, 3, 4), np.float32)})
    (note,) = write_program(model, tmp_path / "m.pt")
    assert note == "sequence is fixed at 3 in the program: torch's export needs that size"
    again = load_trainable(tmp_path / "m.pt")
    assert again.inputs == (replace(spec, shape=("batch", 3, 4)),)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) if x.sum() > 0 else x


def test_a_module_that_cannot_be_exported(tmp_path: Path) -> None:
    spec = InputSpec("x", "float32", ("batch", 4))
    model = TorchModel(Branching(), (spec,), {"x": np.ones((2, 4), np.float32)})
    with pytest.raises(SourceError, match=r"torch\.export cannot take Branching: "):
        write_program(model, tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []
    assert "forward" not in vars(model.module)


@torch.library.custom_op("edgeopt_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return twice(self.out(x))


def test_an_operator_that_is_not_torchs_own_needs_trust(tmp_path: Path) -> None:
    spec = InputSpec("x", "float32", ("batch", 4))
    model = TorchModel(Custom(), (spec,), {"x": np.ones((2, 4), np.float32)})
    path = tmp_path / "m.pt"
    (note,) = write_program(model, path)
    assert "needs --trust-pickle" in note and "edgeopt_tests.twice" in note
    with pytest.raises(UnsafeError, match=r"edgeopt_tests\.twice"):
        load_trainable(path)
    x = torch.ones(2, 4)
    again = load_trainable(path, trust=True).outputs({"x": x})["output"]
    torch.testing.assert_close(again, model.module(x))


def test_a_program_without_parameters_cannot_be_trained(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    program = torch.export.export(nn.ReLU(), (torch.ones(2),))
    program.constants["c"] = torch.ones(1)
    torch.export.save(program, path)
    with pytest.raises(SourceError, match="no parameters"):
        load_trainable(path)


def test_a_program_whose_arguments_nest_is_called_by_its_inputs(tmp_path: Path) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(2, 2)

        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return self.out(pair[0] + pair[1])

    module = Nested()
    a, b = torch.rand(2, 2), torch.rand(2, 2)
    torch.export.save(torch.export.export(module, ((a, b),)), tmp_path / "m.pt2")
    model = load_trainable(tmp_path / "m.pt2")
    feed = dict(zip([spec.name for spec in model.inputs], (a, b), strict=True))
    torch.testing.assert_close(model.outputs(feed)["output"], module((a, b)))


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "m.pt"
    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match="source"):
        save_program(small(), out, DESCRIPTION, sources=[out])
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"] and out.read_bytes() == b"mine"


# ------------------------------------------------------------------------------ state and shapes


def test_tied_weights_are_stored_once_and_views_whole(tmp_path: Path) -> None:
    module = Several()
    big = torch.arange(12.0).reshape(3, 4)
    module.register_buffer("view", big[1:])
    module.register_buffer("turned", big.t())
    write_state(module, tmp_path / "s.safetensors")
    stored = load_file(tmp_path / "s.safetensors")
    assert set(stored) == {"table.weight", "view", "turned"}
    state = read_state(tmp_path / "s.safetensors")
    assert set(state) == set(module.state_dict())
    assert all(torch.equal(state[n], t) for n, t in module.state_dict().items())
    fresh = Several()
    fresh.register_buffer("view", torch.zeros(2, 4))
    fresh.register_buffer("turned", torch.zeros(4, 3))
    made = rebuild(fresh, state, {"edgeopt_pruned": 1})
    assert made.out.weight is made.table.weight
    with torch.no_grad():
        assert torch.equal(made.table.weight, module.table.weight)


def test_a_tied_table_shrinks_under_both_names() -> None:
    module = Several()
    state = {"table.weight": torch.rand(5, 4)}
    state["out.weight"] = state["table.weight"]
    made = rebuild(module, state, {"edgeopt_pruned": 1})
    assert made.out.weight is made.table.weight and made.table.weight.shape == (5, 4)
    assert (made.table.num_embeddings, made.out.out_features) == (5, 5)


@pytest.mark.parametrize("raw", [b"", b"junk", b"\x10" + bytes(7) + b"{" * 16])
def test_a_state_that_is_damaged(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "s").write_bytes(raw)
    with pytest.raises(FormatError):
        read_state(tmp_path / "s")


def test_a_state_that_names_what_it_has_not(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "s", {"edgeopt_tied": '{"b": "c"}'})
    with pytest.raises(FormatError, match="b is said to be c"):
        read_state(tmp_path / "s")


class Blocks(nn.Module):
    """Layers that remember sizes, of every kind; some in lists that shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.chain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.norm = nn.LayerNorm(4)
        self.groups = nn.GroupNorm(2, 4)
        self.up = nn.ConvTranspose1d(4, 6, 2)
        self.table = nn.Embedding(6, 4, padding_idx=5)
        self.bare = nn.ModuleList(
            [nn.LayerNorm(4, elementwise_affine=False), nn.BatchNorm1d(4, affine=False)]
        )
        self.loose = nn.BatchNorm1d(4, affine=False, track_running_stats=False)
        self.flat = nn.GroupNorm(2, 4, affine=False)
        self.heads = 4
        self.scale = nn.Parameter(torch.ones(4))


def about(**more: Any) -> dict[str, Any]:
    return {"edgeopt_pruned": 1, **more}


def test_layers_remember_the_sizes_that_the_state_has() -> None:
    state = {
        name: tensor[tuple(slice(0, max(1, n - 2) if n > 2 else n) for n in tensor.shape)]
        for name, tensor in Blocks().state_dict().items()
    }
    # A table keeps its padding row here.
    state["table.weight"] = torch.rand(6, 2)
    made = rebuild(Blocks(), state, about(sizes={"": {"heads": 2, "nothing": 5}}))
    assert all(torch.equal(made.state_dict()[n], t) for n, t in state.items())
    assert made.norm.normalized_shape == (2,) and made.groups.num_channels == 2
    assert (made.up.in_channels, made.up.out_channels) == (2, 4)
    assert (made.table.num_embeddings, made.table.embedding_dim) == (6, 2)
    assert made.bare[1].num_features == 2 and made.heads == 2 and not hasattr(made, "nothing")


def test_removed_blocks_are_removed() -> None:
    state = Blocks().state_dict()
    state = {
        name.replace("layers.2", "layers.1"): tensor
        for name, tensor in state.items()
        if not name.startswith(("layers.1", "chain.2"))
    }
    cuts = [
        {"layer": name, "kind": "blocks", "before": 1, "after": after}
        for name, after in (("layers.0", 1), ("layers.1", 0), ("chain.2", 0))
    ]
    made = rebuild(Blocks(), state, about(prunings=[{"method": "depth", "cuts": cuts}]))
    assert len(made.layers) == 2 and isinstance(made.chain[2], nn.Identity)
    assert torch.equal(made.layers[1].weight, state["layers.1.weight"])


def _without(name: str) -> dict[str, Tensor]:
    return {k: v for k, v in Blocks().state_dict().items() if k != name}


@pytest.mark.parametrize(
    ("state", "description", "message"),
    [
        ({}, {}, "edgeopt_pruned None"),
        ({}, {"edgeopt_pruned": 2}, "reads 1"),
        (
            {},
            about(prunings=[{"cuts": [{"layer": "no.1", "kind": "blocks", "after": 0}]}]),
            "has no block no.1",
        ),
        (_without("norm.weight"), about(), "norm.weight not in the pruned state"),
        ({}, about(), "and 18 more not in the pruned"),
        ({**Blocks().state_dict(), "x": torch.ones(1)}, about(), "x not in Blocks"),
        (
            {**Blocks().state_dict(), "norm.weight": torch.ones(5)},
            about(),
            r"norm.weight is \[4\] in Blocks and \[5\]",
        ),
        ({**Blocks().state_dict(), "norm.weight": torch.ones(4, 1)}, about(), "no part of it"),
        ({**Blocks().state_dict(), "table.weight": torch.ones(5, 4)}, about(), "numbered anew"),
    ],
)
def test_what_does_not_fit_is_an_error(
    state: dict[str, Tensor], description: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        rebuild(Blocks(), state, description)
