"""``load_into``: a module made on the meta device gets the file's own pages."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.torch import save_file

import edgeopt
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.weights import load_weights
from edgeopt.verbs.load_into import load_into, tensor_over

torch = pytest.importorskip("torch")
nn = torch.nn


class Net(nn.Module):  # type: ignore[misc,name-defined]
    """A tied head, a norm with buffers, and a buffer that no file holds, when asked for."""

    def __init__(self, *, tied: bool = True, frequencies: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        if frequencies:
            self.register_buffer("frequencies", torch.arange(4.0), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.embed(x)))


def made(**options: bool) -> Any:
    torch.manual_seed(1)
    return Net(**options).eval()


def on_meta(**options: bool) -> Any:
    with torch.device("meta"):
        return Net(**options).eval()


def same_answer(left: Any, right: Any) -> bool:
    x = torch.arange(20)
    return bool(torch.equal(left(x), right(x)))


def save(model: Any, path: Path) -> Path:
    """Of tied tensors a safetensors file has one."""
    state = model.state_dict()
    if path.suffix == ".safetensors":
        state.pop("head.weight", None) if model.head.weight is model.embed.weight else None
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("tied", [True, False])
def test_answers_are_the_same_and_ties_stay(tmp_path: Path, name: str, tied: bool) -> None:
    source, target = made(tied=tied), on_meta(tied=tied)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = edgeopt.load_into(target, save(source, tmp_path / name))
    assert set(got.assigned) == set(source.state_dict())
    assert (got.missing, got.unexpected, got.empty) == ((), (), ())
    assert (target.head.weight is target.embed.weight) is tied
    assert isinstance(target.norm.weight, nn.Parameter) and target.norm.weight.requires_grad
    assert same_answer(source, target)


def test_no_copy_is_made_and_the_pages_outlive_everything_else(tmp_path: Path) -> None:
    path = save(made(), tmp_path / "x.pt")
    first, second = on_meta(), on_meta()
    load_into(first, path)
    load_into(second, path)
    at = first.embed.weight.data_ptr()
    begin = first.norm.running_mean.data_ptr()
    # Tensors lie in memory as they lie in the file.
    offset = second.embed.weight.data_ptr() - second.norm.running_mean.data_ptr()
    assert at - begin == offset
    gc.collect()
    assert same_answer(first, made())


def test_writing_in_place_changes_neither_the_file_nor_another_module(tmp_path: Path) -> None:
    path = save(made(), tmp_path / "x.pt")
    before = path.read_bytes()
    mine, other = on_meta(), on_meta()
    load_into(mine, path)
    load_into(other, path)
    mine.train()
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    mine(torch.arange(20)).sum().backward()
    optimizer.step()
    assert not torch.equal(mine.embed.weight, other.embed.weight)
    assert same_answer(other, made())
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_the_files_dtype_is_kept(tmp_path: Path, dtype: str) -> None:
    source = made().to(getattr(torch, dtype))
    target = on_meta()
    load_into(target, save(source, tmp_path / "x.safetensors"))
    assert target.embed.weight.dtype == getattr(torch, dtype)
    assert target.norm.num_batches_tracked.dtype == torch.int64
    assert torch.equal(target.embed.weight, source.embed.weight)


def test_a_prefix_and_other_names(tmp_path: Path) -> None:
    source = made()
    state = {f"model.{name}": t for name, t in source.state_dict().items() if "head" not in name}
    state["model.token_embd.weight"] = state.pop("model.embed.weight")
    save_file({**state, "other": torch.ones(2)}, tmp_path / "x.safetensors")
    target = on_meta()
    names = {"token_embd.weight": "embed.weight"}
    load_into(target, tmp_path / "x.safetensors", prefix="model.", names=names)
    assert same_answer(source, target)
    twice = {**names, "norm.bias": "norm.weight"}
    with pytest.raises(SourceError, match=r"both stand for 'norm\.weight'"):
        load_into(target, tmp_path / "x.safetensors", prefix="model.", names=twice)


def gguf_file(path: Path) -> tuple[Path, Any]:
    weight = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    writer = GGUFWriter(path, "llama")
    kind = GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, weight


def test_quantized_gguf_becomes_float32(tmp_path: Path) -> None:
    path, weight = gguf_file(tmp_path / "x.gguf")
    with torch.device("meta"):
        target = nn.ModuleDict({"embed": nn.Embedding(50, 32)})
    load_into(target, path, names={"token_embd.weight": "embed.weight"})
    got = target["embed"].weight
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.detach().numpy(), weight, atol=0.02)
    np.testing.assert_array_equal(got.detach().numpy(), load_weights(path)["token_embd.weight"])
    with torch.no_grad():
        got.zero_()


def test_what_is_missing_or_unexpected_is_told_and_nothing_changes(tmp_path: Path) -> None:
    state = made().state_dict()
    del state["norm.bias"], state["norm.weight"]
    torch.save({**state, "extra": torch.ones(2)}, tmp_path / "x.pt")
    target = on_meta()
    with pytest.raises(SourceError, match=r"has no 'norm.weight' and 1 more, and has 'extra'") as e:
        load_into(target, tmp_path / "x.pt")
    assert "\n" not in str(e.value)
    assert target.embed.weight.is_meta
    got = load_into(target, tmp_path / "x.pt", strict=False)
    assert got.missing == ("norm.weight", "norm.bias") and got.unexpected == ("extra",)
    assert target.norm.weight.is_meta and not target.embed.weight.is_meta


def test_a_shape_that_does_not_fit(tmp_path: Path) -> None:
    path = save(made(), tmp_path / "x.pt")
    with torch.device("meta"):
        target = Net()
        target.norm = nn.BatchNorm1d(16)
    for strict in (True, False):
        with pytest.raises(SourceError, match=r"'norm.weight' is \[32\], the module's .* \[16\]"):
            load_into(target, path, strict=strict)
    assert target.embed.weight.is_meta


def test_tied_tensors_that_differ_in_the_file(tmp_path: Path) -> None:
    torch.save(made(tied=False).state_dict(), tmp_path / "x.pt")
    with pytest.raises(SourceError, match="differ, the module ties them"):
        load_into(on_meta(), tmp_path / "x.pt")
    state = made().state_dict()
    state["head.weight"] = state["head.weight"].clone()  # equal, and stored twice
    torch.save(state, tmp_path / "y.pt")
    target = on_meta()
    load_into(target, tmp_path / "y.pt")
    assert target.head.weight is target.embed.weight


def test_a_buffer_that_no_file_holds(tmp_path: Path) -> None:
    path = save(made(), tmp_path / "x.pt")
    with pytest.raises(SourceError, match="'frequencies' is in no file and has no memory"):
        load_into(on_meta(frequencies=True), path)
    assert load_into(on_meta(frequencies=True), path, strict=False).empty == ("frequencies",)
    load_into(made(frequencies=True), path)  # it has memory: nothing to fill


def test_what_is_no_module_and_what_torch_does_not_have() -> None:
    with pytest.raises(UsageError, match=r"takes a torch.nn.Module, got dict"):
        load_into({}, "x.pt")
    import ml_dtypes

    with pytest.raises(SourceError, match="torch has no int4"):
        tensor_over(np.zeros(4, ml_dtypes.int4))


def test_a_tensor_keeps_strides_and_memory() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    tensor = tensor_over(array)
    assert tensor.shape == (4, 3) and tensor.stride() == (1, 4)
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor_over(np.zeros((0, 3), np.float16)).shape == (0, 3)
    assert tensor_over(np.array(True)).dtype == torch.bool
