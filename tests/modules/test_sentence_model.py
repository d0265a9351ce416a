"""Pooling against sentence-transformers itself."""

from __future__ import annotations

import json

import pytest
import torch

from edgeopt.errors import CaptureError, FormatError
from edgeopt.modules.sentence_model import POOLING, SentenceModel, head_of, transformer_folder


def _batch():
    torch.manual_seed(0)
    tokens = torch.randn(4, 9, 16) - 1.0
    mask = torch.ones(4, 9)
    mask[1, 5:] = 0
    mask[2, :3] = 0  # padded on the left
    mask[3, 1:] = 0
    return tokens, mask


@pytest.mark.parametrize("mode", sorted(POOLING))
def test_each_mode_equals_sentence_transformers(mode):
    models = pytest.importorskip("sentence_transformers.models")
    tokens, mask = _batch()
    oracle = models.Pooling(16, pooling_mode=mode)
    wanted = oracle({"token_embeddings": tokens, "attention_mask": mask.long()})
    got = POOLING[mode](tokens, mask.unsqueeze(-1))
    torch.testing.assert_close(got, wanted["sentence_embedding"], rtol=1e-6, atol=1e-6)


def _folder(path, modules, **files):
    entries = [{"type": f"sentence_transformers.models.{t}", "path": p} for t, p in modules]
    (path / "modules.json").write_text(json.dumps(entries))
    for name, content in files.items():
        inside = path / name
        inside.mkdir()
        (inside / "config.json").write_text(json.dumps(content))
    return path


class _Fake(torch.nn.Module):
    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def forward(self, attention_mask):
        return (self.tokens,)


def test_a_whole_head_equals_sentence_transformers(tmp_path):
    models = pytest.importorskip("sentence_transformers.models")
    tokens, mask = _batch()
    torch.manual_seed(1)
    dense = models.Dense(32, 8, activation_function=torch.nn.Tanh())
    folder = _folder(
        tmp_path,
        [("Transformer", ""), ("Pooling", "pool"), ("Dense", "dense"), ("Normalize", "norm")],
        pool={"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
    )
    (folder / "dense").mkdir()
    dense.save(str(folder / "dense"))
    modes, head = head_of(folder)
    assert modes == ("max", "mean")
    model = SentenceModel(_Fake(tokens), modes, head)
    got = model(attention_mask=mask.long())
    pool = models.Pooling(16, pooling_mode=("max", "mean"))
    features = pool({"token_embeddings": tokens, "attention_mask": mask.long()})
    wanted = models.Normalize()(dense(features))["sentence_embedding"]
    torch.testing.assert_close(got["sentence_embedding"], wanted, rtol=1e-6, atol=1e-6)
    assert got["token_embeddings"] is tokens


def test_dense_weights_of_the_older_file_are_read(tmp_path):
    linear = torch.nn.Linear(16, 4, bias=False)
    folder = _folder(
        tmp_path,
        [("Transformer", "0_T"), ("Pooling", "pool"), ("Dense", "dense"), ("Dropout", "")],
        pool={"pooling_mode": "cls"},
        dense={
            "in_features": 16,
            "out_features": 4,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    torch.save({"linear.weight": linear.weight.detach()}, folder / "dense/pytorch_model.bin")
    modes, head = head_of(folder)
    assert modes == ("cls",)
    x = torch.randn(2, 16)
    torch.testing.assert_close(torch.nn.Sequential(*head)(x), linear(x))
    assert transformer_folder(folder) == folder / "0_T"


def test_a_folder_without_modules_has_no_head(tmp_path):
    assert head_of(tmp_path) is None
    assert transformer_folder(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("modules", "files", "error", "says"),
    [
        ([("Transformer", "")], {}, CaptureError, "names no Pooling"),
        ([("Pooling", "pool")], {"pool": {}}, CaptureError, "first module is not a Transformer"),
        ([("Transformer", ""), ("CNN", "c")], {}, CaptureError, "CNN is not known"),
        (
            [("Transformer", ""), ("Pooling", "pool")],
            {"pool": {"pooling_mode": "median"}},
            CaptureError,
            "'median' is none of",
        ),
        (
            [("Transformer", ""), ("Pooling", "pool"), ("Dense", "d")],
            {"pool": {}, "d": {"activation_function": "os.system"}},
            CaptureError,
            "os.system is none of",
        ),
        ([("Transformer", "../../etc")], {}, FormatError, "leaves the folder"),
        ([("Transformer", ""), ("Pooling", "absent")], {}, FormatError, "cannot be read"),
    ],
)
def test_heads_that_cannot_be_built(tmp_path, modules, files, error, says):
    with pytest.raises(error, match=says):
        head_of(_folder(tmp_path, modules, **files))


def test_modules_that_are_no_list(tmp_path):
    (tmp_path / "modules.json").write_text('[{"type": 3}]')
    with pytest.raises(FormatError, match="list of modules"):
        head_of(tmp_path)
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(FormatError, match="is not JSON"):
        head_of(tmp_path)
