"""Made-up token ids are what the folder's tokenizer could have given."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgeopt.core import InputSpec
from edgeopt.data.synthetic import Hint, synthetic
from edgeopt.targets.onnx.token_hints import with_tokens

IDS = (InputSpec("input_ids", "int64", (1, 16)), InputSpec("attention_mask", "int64", (1, 16)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(chr(97 + i) for i in range(26))]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_ids_lie_between_the_special_tokens_and_below_their_count(folder: Path) -> None:
    hints = with_tokens(
        {"input_ids": Hint(0, 64), "attention_mask": Hint(0, 2, "mask")}, IDS, folder
    )
    assert hints["input_ids"] == Hint(0, 30, begin=(1,), end=(2,))
    for feed in synthetic(IDS, hints):
        ids, kept = feed["input_ids"][0], int(feed["attention_mask"].sum())
        assert (ids[0], ids[kept - 1]) == (1, 2)
        assert ids.max() < 30
    assert len({int(f["attention_mask"].sum()) for f in synthetic(IDS, hints)}) > 1


def test_a_smaller_table_and_no_tokenizer(folder: Path, tmp_path: Path) -> None:
    assert with_tokens({"input_ids": Hint(0, 2)}, IDS, folder) == {"input_ids": Hint(0, 2)}
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert with_tokens({"input_ids": Hint(0, 9)}, IDS, folder) == {"input_ids": Hint(0, 9)}
    assert with_tokens({}, IDS, tmp_path / "none") == {}
