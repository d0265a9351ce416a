"""Fewer tokens, the same answers: tokenizers and models after vocabulary pruning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the train extra is not installed")
corpus_tokenizers = pytest.importorskip("tests.pruning.vocabulary.corpus_tokenizers")
tiny = pytest.importorskip("tests.modules.tiny_folders")

from tokenizers import Tokenizer  # noqa: E402

from edgeopt.errors import FormatError, InputsError, SourceError, UsageError  # noqa: E402
from edgeopt.modules.folder import write_folder  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.pruning.vocabulary.corpus import Corpus  # noqa: E402
from edgeopt.pruning.vocabulary.prune import (  # noqa: E402
    VocabularyPlan,
    plan_vocabulary,
    prune_vocabulary,
)
from edgeopt.pruning.vocabulary.tokenizer_json import merge_path, wordpiece_path  # noqa: E402
from tokenizer_files import TEXTS, wikitext  # noqa: E402

KINDS = list(corpus_tokenizers.KINDS)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return wikitext(120)


@pytest.fixture(scope="module")
def documents(lines: list[str]) -> dict[str, dict[str, Any]]:
    return {kind: train(lines) for kind, train in corpus_tokenizers.KINDS.items()}


def folder_with(document: dict[str, Any], folder: Path, **config: Any) -> Path:
    """A folder with a tokenizer and the configuration of a model, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = document["model"]["vocab"]
    config = {"vocab_size": len(vocab), "eos_token_id": 2, **config}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


def pair(plan: VocabularyPlan, document: dict[str, Any]) -> tuple[Any, Any]:
    """The tokenizer before and after, as the library reads them."""
    made = plan.files["tokenizer.json"]
    assert made is not None
    return Tokenizer.from_str(json.dumps(document)), Tokenizer.from_str(made.decode())


# ---------------------------------------------------------------------------------------------
# tokenizers


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_of_the_corpus_is_the_same_tokens(
    kind: str, documents: dict[str, dict[str, Any]], lines: list[str], tmp_path: Path
) -> None:
    folder = folder_with(documents[kind], tmp_path)
    corpus = [*lines[:30], "\n".join(lines[30:34]), "jQuery je ne sais quoi <s> Zwölf"]
    plan = plan_vocabulary(folder, corpus)
    old, new = pair(plan, documents[kind])
    assert new.get_vocab_size() == len(plan.kept) < old.get_vocab_size()
    for text in [*corpus, *corpus[30].split("\n")]:
        for special in (True, False):
            before = old.encode(text, add_special_tokens=special)
            after = new.encode(text, add_special_tokens=special)
            assert after.tokens == before.tokens
            assert plan.kept[after.ids].tolist() == before.ids
            assert plan.renumber(np.array(before.ids)).tolist() == after.ids
    assert [new.token_to_id(t) for t in corpus_tokenizers.SPECIAL] == [0, 1, 2]


@pytest.mark.parametrize("kind", corpus_tokenizers.LOSSLESS)
def test_any_other_text_is_given_back_whole(
    kind: str, documents: dict[str, dict[str, Any]], lines: list[str], tmp_path: Path
) -> None:
    plan = plan_vocabulary(folder_with(documents[kind], tmp_path), lines[:5])
    _, new = pair(plan, documents[kind])
    for text in (*TEXTS, *(line.replace("<unk>", "unknown") for line in lines[60:])):
        ids = new.encode(text, add_special_tokens=False).ids
        assert new.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "suffixed", "prefixed"])
def test_other_text_of_known_letters_is_never_unknown(
    kind: str, documents: dict[str, dict[str, Any]], lines: list[str], tmp_path: Path
) -> None:
    plan = plan_vocabulary(folder_with(documents[kind], tmp_path), lines[:5])
    old, new = pair(plan, documents[kind])
    unknown = [0 in t.encode("不", add_special_tokens=False).ids for t in (old, new)]
    assert unknown == [True, True]
    for text in lines[60:]:
        if 0 not in old.encode(text, add_special_tokens=False).ids:
            assert 0 not in new.encode(text, add_special_tokens=False).ids


@settings(max_examples=15)
@given(data=st.data())
def test_the_same_for_any_corpus(
    data: st.DataObject,
    documents: dict[str, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Letters of few kinds, so that words are unknown, overlap and have several ways to be cut."""
    kind = data.draw(st.sampled_from(KINDS))
    words = st.text("aeinrst hje\n é不", min_size=1, max_size=30)
    corpus = data.draw(st.lists(words, min_size=1, max_size=6))
    if not any(text.strip() for text in corpus):
        return
    folder = folder_with(documents[kind], tmp_path_factory.mktemp("any"))
    plan = plan_vocabulary(folder, corpus)
    old, new = pair(plan, documents[kind])
    for text in corpus:
        assert new.encode(text).tokens == old.encode(text).tokens


@pytest.mark.parametrize("kind", ["byte-level", "metaspace", "suffixed", "prefixed"])
def test_merges_on_the_way_to_a_token_are_the_librarys(
    kind: str, documents: dict[str, dict[str, Any]]
) -> None:
    """Every token that a merge makes is reached from its letters, through tokens."""
    model = documents[kind]["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    for a, b in model["merges"]:
        text = a + b.removeprefix(prefix)
        path = merge_path(text, ranks, prefix, suffix)
        assert path[-1] == text
        assert set(path) <= set(model["vocab"])
    assert merge_path("qqqqxyz", ranks, prefix, suffix) == []


def test_matches_before_an_unknown_part_are_kept() -> None:
    vocab = {"ab": 0, "abc": 1, "##cd": 2, "##c": 3}
    assert wordpiece_path("abcd", vocab, "##", 100) == ["abc"]
    assert wordpiece_path("abcd", {"ab": 0, "##cd": 2}, "##", 100) == ["ab", "##cd"]
    assert wordpiece_path("abcd", vocab, "##", 3) == []


def test_a_word_stays_unknown_though_fewer_tokens_could_spell_it(tmp_path: Path) -> None:
    """Old: ``abc`` and no ``##d``. Without ``abc`` it would be ``ab ##cd``."""
    added = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    texts = ["[UNK]", "a", "ab", "abc", "##cd", "x"]
    document = {
        "added_tokens": [{**added, "id": 0, "content": "[UNK]", "special": True}],
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {text: at for at, text in enumerate(texts)},
        },
    }
    plan = plan_vocabulary(folder_with(document, tmp_path), ["abcd ab abcde"])
    assert plan.kept.tolist() == [0, 1, 2, 3, 5]


def test_min_count_drops_what_is_rare_and_says_how_much(
    documents: dict[str, dict[str, Any]], lines: list[str], tmp_path: Path
) -> None:
    folder = folder_with(documents["byte-level"], tmp_path)
    all_of_them = plan_vocabulary(folder, lines[:40])
    frequent = plan_vocabulary(folder, lines[:40], min_count=5)
    assert set(frequent.kept) < set(all_of_them.kept)
    assert any("tokens of the corpus are split otherwise" in note for note in frequent.notes)
    _, new = pair(frequent, documents["byte-level"])
    assert new.decode(new.encode(lines[3]).ids, skip_special_tokens=False) == lines[3]


def test_tokens_a_word_in_other_text_are_told(
    documents: dict[str, dict[str, Any]], lines: list[str], tmp_path: Path
) -> None:
    document = documents["unigram"]
    plan = plan_vocabulary(folder_with(document, tmp_path), lines[:20], held_out=lines[40:50])
    old, new = pair(plan, document)
    words = sum(len(line.split()) for line in lines[40:50])
    before = [n for line in lines[40:50] for n in old.encode(line).ids]
    after = [n for line in lines[40:50] for n in new.encode(line).ids]
    gone = sum(n not in set(plan.kept.tolist()) for n in before) / len(before)
    (note,) = (note for note in plan.notes if note.startswith("held-out"))
    assert f"{len(before) / words:.3f} tokens a word, now {len(after) / words:.3f}" in note
    assert f"{gone:.2%}" in note
    assert f"unknown: {before.count(0)}, now {after.count(0)}" in note


# ---------------------------------------------------------------------------------------------
# the other files


def test_all_files_that_number_tokens_follow(
    documents: dict[str, dict[str, Any]], lines: list[str], tmp_path: Path
) -> None:
    document = json.loads(json.dumps(documents["byte-level"]))
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    extra_token = {**document["added_tokens"][0], "content": "<extra>", "id": len(vocab)}
    document["added_tokens"].append(extra_token)
    document["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": len(vocab),
        "pad_type_id": 0,
        "pad_token": "<extra>",
    }
    cls = {"sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": True, "add_prefix_space": False}
    document["post_processor"] = {
        "type": "Sequence",
        "processors": [{"type": "RobertaProcessing", **cls}],
    }
    rows = len(vocab) + 5
    text = max(vocab, key=lambda token: vocab[token])
    folder = folder_with(document, tmp_path, vocab_size=rows, pad_token_id=rows - 2)
    write = {
        "vocab.json": vocab,
        "added_tokens.json": {"<extra>": len(vocab)},
        "generation_config.json": {
            "eos_token_id": [2, len(vocab)],
            "suppress_tokens": [vocab[text], 2],
            "bad_words_ids": [[vocab[text]], [1, 2]],
        },
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                str(len(vocab)): {"content": "<extra>"},
                "2": {"content": "</s>"},
            },
            "bos_token": {"content": "<s>"},
        },
    }
    for name, value in write.items():
        (folder / name).write_text(json.dumps(value))
    pairs = "".join(f"{a} {b}\n" for a, b in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{pairs}")
    (folder / "vocab.txt").write_text(
        "".join(f"{t}\n" for t in sorted(vocab, key=vocab.__getitem__))
    )
    (folder / "tokenizer.model").write_bytes(b"pieces")
    corpus = [line for line in lines if text.replace("Ġ", "") not in line][:20]
    plan = plan_vocabulary(folder, corpus)
    new = plan.new_ids
    made = {name: data for name, data in plan.files.items() if data is not None}
    tokenizer = json.loads(made["tokenizer.json"])
    assert vocab[text] not in new
    assert json.loads(made["vocab.json"]) == tokenizer["model"]["vocab"]
    kept = [f"{a} {b}" for a, b in tokenizer["model"]["merges"]]
    assert made["merges.txt"].decode().split("\n") == ["#version: 0.2", *kept, ""]
    listed = made["vocab.txt"].decode().split("\n")[:-1]
    assert {token: at for at, token in enumerate(listed)} == tokenizer["model"]["vocab"]
    extra = new[len(vocab)]
    assert json.loads(made["added_tokens.json"]) == {"<extra>": extra}
    assert tokenizer["padding"]["pad_id"] == extra
    assert tokenizer["post_processor"]["processors"][0]["sep"] == ["</s>", 2]
    generation = json.loads(made["generation_config.json"])
    assert generation == {
        "eos_token_id": [2, extra],
        "suppress_tokens": [2],
        "bad_words_ids": [[1, 2]],
    }
    assert list(json.loads(made["tokenizer_config.json"])["added_tokens_decoder"]) == [
        str(extra),
        "2",
    ]
    assert plan.files["tokenizer.model"] is None
    assert plan.kept[-1] == rows - 2, "a row that no token has comes last"
    assert any("tokenizer.model" in note for note in plan.notes)


# ---------------------------------------------------------------------------------------------
# models


def model_folder(name: str, document: dict[str, Any], folder: Path, **config: Any) -> Path:
    rows = len(document["model"]["vocab"]) + 3
    tiny.folder_of(name, folder, vocab_size=rows, **config)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"})
    )
    return folder


def batch(tokenizer: Any, text: str) -> dict[str, Any]:
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids[:40]])
    mask = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask - 1}


@pytest.mark.parametrize(
    ("name", "kind", "config"),
    [
        ("LlamaForCausalLM", "byte-level", {"tie_word_embeddings": False}),
        ("LlamaForCausalLM", "metaspace", {"tie_word_embeddings": True, "pad_token_id": 2}),
        pytest.param("GPT2LMHeadModel", "ignore-merges", {}, marks=pytest.mark.slow),
        pytest.param("Gemma2ForCausalLM", "metaspace", {}, marks=pytest.mark.slow),
        ("BertForMaskedLM", "wordpiece", {"pad_token_id": 650}),
        ("BertForMaskedLM", "wordpiece", {"tie_word_embeddings": False, "pad_token_id": 650}),
    ],
)
def test_logits_of_kept_tokens_are_the_same(
    name: str,
    kind: str,
    config: dict[str, Any],
    documents: dict[str, dict[str, Any]],
    lines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(tiny.KINDS, "BertForMaskedLM", tiny.KINDS["BertModel"])
    folder = model_folder(name, documents[kind], tmp_path / "source", **config)
    corpus = lines[:30]
    plan = plan_vocabulary(folder, corpus)
    model = tiny.opened(folder)
    old, new = pair(plan, documents[kind])
    before = [model.outputs(batch(old, text))["logits"].detach() for text in corpus[:3]]
    pruning = prune_vocabulary(model, plan)
    assert pruning.changed
    assert {(c.kind, c.after) for c in pruning.cuts} == {("rows", len(plan.kept))}
    write_folder(plan.refit(model), tmp_path / "out", files=plan.files)
    again = tiny.opened(tmp_path / "out")
    assert again.module.config.vocab_size == len(plan.kept)
    fast = tiny.transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    kept = torch.from_numpy(plan.kept)
    for text, logits in zip(corpus, before, strict=False):
        feed = batch(new, text)
        assert (
            fast(text, add_special_tokens=False)["input_ids"][:40] == feed["input_ids"][0].tolist()
        )
        got = again.outputs(feed)["logits"].detach()
        torch.testing.assert_close(got, logits[..., kept], rtol=1e-6, atol=1e-6)
    if "pad_token_id" in config:
        assert plan.kept[again.module.config.pad_token_id] == config["pad_token_id"]


def test_a_sentence_embedder_answers_as_before(
    documents: dict[str, dict[str, Any]], lines: list[str], tmp_path: Path
) -> None:
    document = documents["wordpiece"]
    folder = tiny.sentence_folder(tmp_path / "source")
    tiny.folder_of("BertModel", folder, vocab_size=len(document["model"]["vocab"]))
    (folder / "tokenizer.json").write_text(json.dumps(document))
    model = tiny.opened(folder)
    plan = plan_vocabulary(folder, lines[:20])
    old, new = pair(plan, document)
    before = model.outputs(batch(old, lines[0]))["sentence_embedding"]
    prune_vocabulary(model, plan)
    write_folder(plan.refit(model), tmp_path / "out", files=plan.files)
    after = tiny.opened(tmp_path / "out").outputs(batch(new, lines[0]))["sentence_embedding"]
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)


def test_the_same_corpus_gives_the_same_bytes(
    documents: dict[str, dict[str, Any]], lines: list[str], tmp_path: Path
) -> None:
    folder = folder_with(documents["unigram"], tmp_path)
    one, other = (plan_vocabulary(folder, (line for line in lines[:20])) for _ in range(2))
    assert one.files == other.files
    assert one.notes == other.notes


# ---------------------------------------------------------------------------------------------
# numbers of a feed, and what is refused


def plain(kept: list[int], unknown: int | None) -> VocabularyPlan:
    return VocabularyPlan(np.array(kept), {}, unknown)


def test_feeds_are_renumbered_and_lost_tokens_become_the_unknown_one() -> None:
    plan = plain([0, 3, 7], 3)
    feed = {"input_ids": np.array([[7, 3], [5, 9]]), "labels": np.array([[-100, 7]])}
    got = plan.feed({**feed, "attention_mask": np.array([[1, 0]])})
    assert got["input_ids"].tolist() == [[2, 1], [1, 1]]
    assert got["labels"].tolist() == [[-100, 2]]
    assert got["attention_mask"].tolist() == [[1, 0]]
    with pytest.raises(InputsError, match="token 5 was dropped"):
        plain([0, 3, 7], None).feed(feed)
    inside = plain([0, 3, 7], None).within(feed)
    assert inside["input_ids"].tolist() == [[7, 3], [7, 0]]


def test_bad_input_is_said_in_a_line(
    documents: dict[str, dict[str, Any]], lines: list[str], tmp_path: Path
) -> None:
    folder = folder_with(documents["words"], tmp_path / "f")
    with pytest.raises(InputsError, match="no text"):
        plan_vocabulary(folder, ["", " \n"])
    with pytest.raises(UsageError, match="min_count 0"):
        plan_vocabulary(folder, lines, min_count=0)
    with pytest.raises(SourceError, match="none to drop"):
        plan_vocabulary(folder, [" ".join(documents["words"]["model"]["vocab"])])
    document = {"model": {"type": "Other", "vocab": {}}}
    with pytest.raises(SourceError, match="of type Other; rows can be dropped with BPE"):
        plan_vocabulary(folder_with(document, tmp_path / "o"), lines)
    for broken in ({}, {"model": {"type": "BPE", "vocab": 3}}):
        (folder / "tokenizer.json").write_text(json.dumps(broken))
        with pytest.raises(FormatError, match=r"tokenizer\.json"):
            plan_vocabulary(folder, lines)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"no tokenizer\.json"):
        plan_vocabulary(folder, lines)


def test_a_model_without_token_table_or_folder_is_refused(tmp_path: Path) -> None:
    plan = plain([0, 1], None)
    with pytest.raises(SourceError, match="no Hugging Face folder"):
        prune_vocabulary(TorchModel(torch.nn.Linear(2, 2), (), {}), plan)
    with pytest.raises(SourceError, match="no table of token embeddings"):
        prune_vocabulary(tiny.opened(tiny.folder_of("ViTModel", tmp_path / "vit")), plan)
    bert = tiny.opened(tiny.folder_of("BertModel", tmp_path / "bert"))
    with pytest.raises(SourceError, match="uses all 64 rows"):
        prune_vocabulary(bert, plain(list(range(64)), None))


def test_a_corpus_is_read_in_pieces_and_has_to_be_utf8(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_bytes("é\r\nzwei\ndrei\n".encode() + b"vier")
    second.write_bytes(b"ok\n\xff\n")
    assert list(Corpus([first], size=6)) == ["é\r\nzwei\n", "drei\nvier"]
    assert list(Corpus([first])) == ["é\r\nzwei\ndrei\nvier"]
    with pytest.raises(InputsError, match=r"b\.txt: is not UTF-8 at byte 3"):
        list(Corpus([second]))
    with pytest.raises(SourceError, match="no such file"):
        list(Corpus([tmp_path / "none"]))
