"""The torch engine, against the same modules called by hand."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from tests.graphs.capture import nets  # noqa: E402

from edgeopt.errors import (  # noqa: E402
    CaptureError,
    InputsError,
    MissingExtraError,
    SourceError,
    UnsafeError,
    UsageError,
    WorkerError,
)
from edgeopt.runtimes.engine import Case, make_engine  # noqa: E402
from edgeopt.runtimes.engine_torch import TorchEngine, _backend  # noqa: E402

NETS = "tests.graphs.capture.nets"
HEAD = f"{NETS}:Head"
FEED = {"features": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def head() -> Any:
    torch.manual_seed(0)
    return nets.Head().eval()


def started(path: Path, kind: str, *, device: str = "cpu", threads: int = 1, **options: Any) -> Any:
    case = Case(path, (path,), "torch", device, threads, options={"kind": kind, **options})
    engine = make_engine(case)
    assert isinstance(engine, TorchEngine)
    engine.imports()
    engine.load()
    return engine


def outputs(engine: Any, feed: dict[str, np.ndarray]) -> Any:
    with torch.inference_mode():
        return engine.callee.bound(feed, "cpu")()


def saved(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "m.pt"
    torch.save(value, path)
    return path


def wanted(module: Any) -> Any:
    with torch.no_grad():
        return module(torch.from_numpy(FEED["features"]))


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        ("torch-state-dict", lambda state: state),
        ("torch-state-dict", lambda state: {f"module.{k}": v for k, v in state.items()}),
        ("torch-checkpoint", lambda state: {"epoch": 3, "model": {"net": state}}),
        (
            "torch-checkpoint",
            lambda state: {
                "teacher": {k: v + 1 for k, v in state.items() if "head" in k},
                "ema": {"decay": torch.ones(1)},
                "student": state,
            },
        ),
    ],
    ids=["plain", "parallel", "nested", "among others"],
)
def test_code_and_weights(tmp_path: Path, head: Any, kind: str, wrap: Any) -> None:
    path = saved(tmp_path, wrap(head.state_dict()))
    engine = started(path, kind, model=HEAD)
    assert torch.equal(outputs(engine, FEED), wanted(head))
    engine.prepare(FEED)
    engine.run()
    engine.run()
    assert engine.info()["weights_by"] == "torch"
    with pytest.raises(SourceError, match="give --model"):
        started(path, kind)
    with pytest.raises(SourceError, match="none of the weights of FixedBatch"):
        started(path, kind, model=f"{NETS}:FixedBatch")


def test_weights_of_other_kinds_of_file(tmp_path: Path, head: Any) -> None:
    path = tmp_path / "m.safetensors"
    save_file(head.state_dict(), path)
    engine = started(path, "safetensors", model=HEAD)
    assert torch.equal(outputs(engine, FEED), wanted(head))
    assert engine.info()["weights_by"] == "edgeopt"
    # A pickled module's weights need nobody's trust where the code comes from elsewhere.
    engine = started(saved(tmp_path, head), "torch-module", model=HEAD)
    assert torch.equal(outputs(engine, FEED), wanted(head))


def test_weights_that_do_not_fit(tmp_path: Path, head: Any) -> None:
    state = head.state_dict()
    del state["head.bias"]
    with pytest.raises(SourceError, match=r"head\.bias missing from the file"):
        started(saved(tmp_path, state), "torch-state-dict", model=HEAD)


def test_a_checkpoint_with_more_than_tensors(tmp_path: Path, head: Any) -> None:
    value = {"args": argparse.Namespace(lr=1), "model": head.state_dict()}
    path = saved(tmp_path, value)
    with pytest.raises(UnsafeError, match="--trust-pickle"):
        started(path, "torch-checkpoint", model=HEAD)
    engine = started(path, "torch-checkpoint", model=HEAD, trust_pickle=True)
    assert torch.equal(outputs(engine, FEED), wanted(head))


def test_a_pickled_module(tmp_path: Path, head: Any) -> None:
    path = saved(tmp_path, head.train())
    with pytest.raises(UnsafeError, match="--trust-pickle"):
        started(path, "torch-module")
    engine = started(path, "torch-module", trust_pickle=True)
    assert not engine.callee.module.training
    assert torch.equal(outputs(engine, FEED), wanted(head))


def test_torchscript(tmp_path: Path, head: Any) -> None:
    path = tmp_path / "m.pt"
    torch.jit.trace(head, torch.ones(1, 8)).save(str(path))
    engine = started(path, "torchscript")
    torch.testing.assert_close(outputs(engine, FEED), wanted(head))
    # Names that the module does not know are positions.
    torch.testing.assert_close(outputs(engine, {"x": FEED["features"]}), wanted(head))
    path.write_bytes(b"junk")
    with pytest.raises(CaptureError, match="torch cannot load it"):
        started(path, "torchscript")


def test_an_exported_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nets.Many().eval()
    a, b = np.ones((2, 8), np.float32), np.full((2, 8), 2, np.float32)
    example = (torch.from_numpy(a), torch.from_numpy(b))
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(module, example), path)
    engine = started(path, "torch-exported")
    # By name, whatever their order in the feed, and in the program's own width.
    made = outputs(engine, {"b": b, "a": a.astype(np.float64)})
    torch.testing.assert_close(made["sum"], module(*example)["sum"])
    with pytest.raises(InputsError, match="input b is missing from a"):
        engine.prepare({"a": a})


def test_the_dtype_of_the_file_is_kept(tmp_path: Path) -> None:
    half = nets.half()
    path = saved(tmp_path, half)
    engine = started(path, "torch-module", trust_pickle=True)
    assert engine.info()["dtypes"] == ["bfloat16"]
    made = outputs(engine, FEED)
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, half(torch.from_numpy(FEED["features"]).bfloat16()))


def test_names_and_positions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nets.Many().eval()
    engine = started(saved(tmp_path, module), "torch-module", trust_pickle=True)
    a, b, scale = (np.full((2, 8), value, np.float32) for value in (1, 2, 3))
    expected = module(*(torch.from_numpy(v) for v in (a, b, scale)))["sum"]
    assert torch.equal(outputs(engine, {"scale": scale, "b": b, "a": a})["sum"], expected)
    assert torch.equal(outputs(engine, {"p": a, "q": b, "r": scale})["sum"], expected)


BERT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def folder_of(path: Path, dtype: Any = torch.float32) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**BERT)).eval().to(dtype)
    model.save_pretrained(path)
    return model


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "bert")
    ids = np.arange(10).reshape(2, 5)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    engine = started(tmp_path / "bert", "hf-folder")
    with torch.no_grad():
        expected = model(**{k: torch.from_numpy(v) for k, v in feed.items()}).last_hidden_state
    made = outputs(engine, {**feed, "something_else": ids})
    torch.testing.assert_close(made.last_hidden_state, expected)
    assert engine.info()["weights_by"] == "transformers"


def test_a_sentence_transformers_folder(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "0_T", torch.bfloat16)
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": "0_T"},
        {"type": "sentence_transformers.models.Pooling", "path": "1_P"},
        {"type": "sentence_transformers.models.Dense", "path": "2_D"},
        {"type": "sentence_transformers.models.Normalize", "path": "3_N"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_P").mkdir()
    (tmp_path / "1_P" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (tmp_path / "2_D").mkdir()
    (tmp_path / "2_D" / "config.json").write_text(
        '{"in_features": 32, "out_features": 4, "bias": false, '
        '"activation_function": "torch.nn.modules.linear.Identity"}'
    )
    dense = torch.randn(4, 32)
    save_file({"linear.weight": dense}, tmp_path / "2_D" / "model.safetensors")
    ids = np.arange(10).reshape(2, 5)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    engine = started(tmp_path, "hf-folder")
    assert engine.info()["dtypes"] == ["bfloat16"]
    made = outputs(engine, {"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
    with torch.no_grad():
        tokens = model.float()(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
    weight = torch.from_numpy(mask).unsqueeze(-1)
    pooled = (tokens * weight).sum(1) / weight.sum(1) @ dense.T
    cosines = torch.nn.functional.cosine_similarity(made.float(), pooled)
    assert (cosines > 0.999).all()
    with pytest.raises(InputsError, match="input attention_mask is missing from input_ids"):
        engine.prepare({"input_ids": ids})


def test_of_an_encoder_and_a_decoder_the_encoder_runs(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "t5")
    ids = np.arange(10).reshape(2, 5)
    engine = started(tmp_path / "t5", "hf-folder")
    made = outputs(engine, {"input_ids": ids}).last_hidden_state
    with torch.no_grad():
        expected = model.get_encoder()(torch.from_numpy(ids)).last_hidden_state
    torch.testing.assert_close(made, expected)
    assert "encoder alone" in engine.info()["notes"][0]


def test_each_run_is_one_inference_in_inference_mode(tmp_path: Path, head: Any) -> None:
    engine = started(saved(tmp_path, head), "torch-module", trust_pickle=True)
    calls = []
    engine.callee.module.register_forward_hook(
        lambda module, args, out: calls.append(
            (torch.is_inference_mode_enabled(), out.is_inference())
        )
    )
    engine.prepare(FEED)
    assert calls == []
    engine.run()
    engine.run()
    assert calls == [(True, True)] * 2
    assert not torch.is_inference_mode_enabled()


def test_info(tmp_path: Path, head: Any) -> None:
    path = saved(tmp_path, head)
    info = started(path, "torch-module", threads=2, trust_pickle=True).info()
    assert info["version"] == torch.__version__
    assert info["threads"] == 2
    assert info["inter_op_threads"] == torch.get_num_interop_threads()
    assert info["compiled"] is False
    assert info["kind"] == "torch-module"
    assert info["mkldnn"] == torch.backends.mkldnn.is_available()
    assert info["mapped"].keys() == {"m.pt"}
    assert info["device_name"] is info["tf32"] is info["cuda"] is None
    assert json.loads(json.dumps(info)) == info
    assert _backend("a\nATen parallel backend: OpenMP\nb") == "OpenMP"
    assert _backend("nothing") == ""


def test_a_fresh_process_has_one_thread_between_operators(tmp_path: Path, head: Any) -> None:
    import subprocess

    import edgeopt

    script = f"""
import sys
sys.path.insert(0, {str(Path(edgeopt.__file__).parent.parent)!r})
from pathlib import Path
from edgeopt.runtimes.engine import Case, make_engine
path = Path({str(saved(tmp_path, head.state_dict()))!r})
engine = make_engine(Case(path, (path,), "torch", options={{"kind": "torch-state-dict"}}))
assert "torch" not in sys.modules
engine.imports()
import torch
print(torch.get_num_interop_threads(), torch.get_num_threads())
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_what_goes_wrong(tmp_path: Path, head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, head.state_dict())
    engine = started(path, "torch-state-dict", model=HEAD)
    engine.prepare({"features": np.ones((3, 9), np.float32)})
    with pytest.raises(WorkerError, match="fails while running: RuntimeError: mat1 and mat2"):
        engine.run()
    with pytest.raises(UsageError, match="torch does inference"):
        make_engine(Case(path, (path,), "torch", workload="pp", tokens=3))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SourceError, match="torch cannot load it"):
        started(path, "torch-state-dict", model=HEAD)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install '.*\[torch\]"):
        started(path, "torch-state-dict", model=HEAD)


# -- CUDA: without a GPU, its decisions


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_is_refused_where_there_is_none(
    tmp_path: Path, head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, head.state_dict())
    with pytest.raises(UsageError, match="device cuda is not one that this torch"):
        started(path, "torch-state-dict", device="cuda", model=HEAD)
    # A torch that thinks it has one, and cannot put anything there.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SourceError, match="cannot be put on device cuda"):
        started(path, "torch-state-dict", device="cuda", model=HEAD)


def test_another_device_gets_module_and_inputs_and_is_waited_for(
    tmp_path: Path, head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "pretended")
    path = saved(tmp_path, head.state_dict())
    engine = started(path, "torch-state-dict", device="meta", model=HEAD)  # any that is no CPU
    seen = []
    engine.callee.module.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(
            (kwargs["features"].device.type, out.device.type, len(waits))
        ),
        with_kwargs=True,
    )
    engine.prepare(FEED)
    before = len(waits)
    engine.run()
    engine.run()
    assert seen == [("meta", "meta", before), ("meta", "meta", before + 1)]
    assert len(waits) == before + 2
    info = engine.info()
    assert (info["device"], info["device_name"], info["outputs"]) == ("meta", "pretended", "device")
