"""What is put around a text, and chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tokenizer_files import A, B, read, small, template, token, write

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("llama_cpp")

from tests.llama_vocab import loaded  # noqa: E402

NAMED = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}


@pytest.mark.parametrize(
    ("post", "config", "expected"),
    [
        (None, {}, "a"),
        (None, NAMED, "a"),
        (None, {**NAMED, "add_bos_token": True}, "<s>a"),
        (None, {**NAMED, "add_bos_token": True, "add_eos_token": True}, "<s>a</s>"),
        # nothing to put there
        (None, {"add_bos_token": True}, "a"),
        ({"type": "ByteLevel"}, {**NAMED, "add_bos_token": True}, "<s>a"),
        # the post-processor is what transformers runs
        (template(token("<s>"), A), {**NAMED, "add_bos_token": False}, "<s>a"),
        (template(A), {**NAMED, "add_bos_token": True}, "a"),
        (template(token("<s>"), A, token("</s>")), NAMED, "<s>a</s>"),
        (template(token("<s>"), A, token("</s>")), {}, "<s>a</s>"),
        (template(token("<sep>"), A, token("<sep>")), NAMED, "<sep>a<sep>"),
        (
            {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template(token("<s>"), A)]},
            NAMED,
            "<s>a",
        ),
        (
            {"type": "RobertaProcessing", "cls": ["<s>", 256], "sep": ["</s>", 257]},
            {},
            "<s>a</s>",
        ),
    ],
)
def test_what_is_put_around_a_text(
    post: Any, config: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    small(tmp_path, post, **config)
    theirs = {"<s>": 256, "</s>": 257, "<sep>": 258}
    with loaded(read(tmp_path, 260)) as vocab:
        ids = vocab.encode("a", special=True)
        assert vocab.decode(ids).decode() == expected
        assert len(ids) == 1 + sum(expected.count(text) for text in theirs)


def test_the_end_that_the_template_replaces_still_ends_a_turn(tmp_path: Path) -> None:
    small(tmp_path, template(A, token("<sep>")), **NAMED)
    with loaded(read(tmp_path, 260)) as vocab:
        assert vocab.special("eos") == 258
        assert vocab.special("eot") == 257


@pytest.mark.parametrize(
    ("single", "between", "expected"),
    [
        ((A, token("</s>")), 1, False),
        ((A, token("</s>")), 2, True),
        ((token("<s>"), A), 1, True),
        ((token("<s>"), A), 0, False),
    ],
)
def test_separator(single: Any, between: int, expected: bool, tmp_path: Path) -> None:
    pair = [A, *[token("</s>")] * between, B]
    small(tmp_path, template(*single, pair=pair), **NAMED)
    assert read(tmp_path, 260)["tokenizer.ggml.add_sep_token"].value is expected


def test_ids_from_config_json(tmp_path: Path) -> None:
    small(tmp_path)
    fields = read(
        tmp_path,
        260,
        bos_token_id=256,
        eos_token_id=[257, 258],
        pad_token_id=-1,
        sep_token_id=4000,
        mask_token_id=True,
    )
    assert fields["tokenizer.ggml.bos_token_id"].value == 256
    assert fields["tokenizer.ggml.eos_token_id"].value == 257
    for key in ("padding", "seperator", "mask"):
        assert f"tokenizer.ggml.{key}_token_id" not in fields


def test_kinds_of_added_tokens(tmp_path: Path) -> None:
    added = [
        {"id": 259, "content": "<|tool|>", "special": False},
        {"id": 260, "content": "    ", "special": False},
    ]
    small(tmp_path, added=added)
    fields = read(tmp_path, 262)
    assert fields["tokenizer.ggml.token_type"].value[-6:] == [3, 3, 3, 3, 4, 5]
    with loaded(fields) as vocab:
        assert vocab.encode("a    b")[1] == 260
        assert vocab.encode("<|tool|>") == [259]


def test_padding_keeps_clear_of_tokens_that_look_like_it(tmp_path: Path) -> None:
    small(tmp_path, added=[{"id": 259, "content": "[PAD260]"}])
    tokens = read(tmp_path, 262)["tokenizer.ggml.tokens"].value
    assert tokens[-3:] == ["[PAD260]", "[PAD260]_", "[PAD261]"]


TEMPLATE = "{{ bos_token }}\r\n{% for m in messages %}\t{{ m['content'] }} é{% endfor %}\n\n"


def chat(folder: Path) -> dict[str, Any]:
    return {
        key.removeprefix("tokenizer."): field.value
        for key, field in read(folder, 259).items()
        if "chat" in key
    }


def test_chat_template_of_the_configuration(tmp_path: Path) -> None:
    small(tmp_path, chat_template=TEMPLATE)
    assert chat(tmp_path) == {"chat_template": TEMPLATE.encode()}


def test_named_chat_templates(tmp_path: Path) -> None:
    named = [("default", TEMPLATE), ("tool_use", "x"), ("rag", "y")]
    small(tmp_path, chat_template=[{"name": n, "template": t} for n, t in named])
    assert chat(tmp_path) == {
        "chat_template": TEMPLATE.encode(),
        "chat_template.tool_use": b"x",
        "chat_template.rag": b"y",
        "chat_templates": ["tool_use", "rag"],
    }


def test_the_template_file_goes_first_byte_for_byte(tmp_path: Path) -> None:
    small(tmp_path, chat_template="old")
    tmp_path.joinpath("chat_template.jinja").write_bytes(TEMPLATE.encode())
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    more.joinpath("tool use.jinja").write_bytes(b"t")
    assert chat(tmp_path) == {
        "chat_template": TEMPLATE.encode(),
        "chat_template.tool_use": b"t",
        "chat_templates": ["tool_use"],
    }


def test_template_of_a_processor(tmp_path: Path) -> None:
    small(tmp_path)
    write(tmp_path, "chat_template.json", {"chat_template": TEMPLATE})
    assert chat(tmp_path) == {"chat_template": TEMPLATE.encode()}
