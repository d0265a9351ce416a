"""edgeopt imatrix: the inputs of llama.cpp's own products, and a computation by hand, agree."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgeopt.cli import cli
from edgeopt.errors import OutputError, SourceError, UsageError
from edgeopt.files.imatrix import read_imatrix
from edgeopt.verbs.imatrix import imatrix

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

VOCABULARY, WIDTH, CONTEXT, CHUNKS = 96, 64, 32, 3
WORDS = [f"w{i}" for i in range(2, VOCABULARY)]

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GPT2 = {"vocab_size": VOCABULARY, "n_positions": 128, "n_embd": WIDTH, "n_layer": 2, "n_head": 4}
GEMMA = {**SIZES, "head_dim": 32, "query_pre_attn_scalar": 32}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 32}),
    "phi3": ("Phi3Config", SIZES),
    "gpt2": ("GPT2Config", GPT2),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": ("Gemma3TextConfig", GEMMA),
    "bert": ("BertConfig", SIZES),
}


def save(folder: Path, family: str, *, bos: bool = False) -> Any:
    """A random model with a tokenizer of whole words, as a folder."""
    config_name, options = FAMILIES[family]
    torch.manual_seed(3)
    config = getattr(transformers, config_name)(**options)
    auto = transformers.AutoModel if family == "bert" else transformers.AutoModelForCausalLM
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                table = "emb" in name or "wte" in name
                parameter.normal_(0, 1.0 if table else 1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.normal_(0 if family.startswith("gemma") else 1.0, 0.3)
    model.save_pretrained(folder)
    tokenizer(folder, bos)
    return model


def tokenizer(folder: Path, bos: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"<unk>": 0, "<s>": 1, **{word: i + 2 for i, word in enumerate(WORDS)}}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>"
    ).save_pretrained(folder)


@pytest.fixture
def text(tmp_path: Path) -> tuple[Path, list[list[int]]]:
    """A text of so many chunks and a bit, and the tokens of each chunk."""
    words = random.Random(5).choices(WORDS, k=CONTEXT * CHUNKS + 5)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(words) + "\n")
    tokens = [int(word[1:]) for word in words]
    return path, [tokens[i * CONTEXT : (i + 1) * CONTEXT] for i in range(CHUNKS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_are_those_of_llama_cpps_products(
    family: str, tmp_path: Path, text: tuple[Path, list[list[int]]]
) -> None:
    pytest.importorskip("llama_cpp", reason="computes the oracle's products")
    from tests.llm.activations_of import square_means
    from tests.llm.gguf_of import write_gguf

    path, chunks = text
    folder = tmp_path / "model"
    save(folder, family)
    made = imatrix(folder, path, tmp_path / "out.gguf", context=CONTEXT)
    gguf = write_gguf(folder, tmp_path / "model.gguf")
    wanted = square_means(gguf, chunks, encoder=family == "bert")
    got = read_imatrix(tmp_path / "out.gguf")
    assert set(got.values) == set(wanted)
    for name, values in got.values.items():
        assert got.entries[name].counts.tolist() == [CONTEXT * CHUNKS]
        # llama.cpp takes GELU from a table in float16, the rest is float32.
        least = 1e-5 * wanted[name].max()
        np.testing.assert_allclose(values, wanted[name], rtol=5e-3, atol=least, err_msg=name)
    assert made.imatrix.chunks == got.chunks == CHUNKS
    # Nothing of the blocks is left out; tables and heads are.
    assert not any(name.startswith("blk.") for name in made.fitted.without)
    assert made.fitted.unused == ()


def test_sums_are_those_of_a_computation_by_hand(
    tmp_path: Path, text: tuple[Path, list[list[int]]]
) -> None:
    """The first products of a block meet the normalised hidden state, the last ones' sums follow
    from the gate."""
    path, chunks = text
    model = save(tmp_path / "model", "llama")
    imatrix(tmp_path / "model", path, tmp_path / "out.gguf", context=CONTEXT, chunks=2)
    got = read_imatrix(tmp_path / "out.gguf").values
    with torch.no_grad():
        hidden = model(torch.tensor(chunks[:2]), output_hidden_states=True).hidden_states[1]
    x = hidden.numpy().reshape(-1, WIDTH).astype(np.float64)
    norm = model.model.layers[1].input_layernorm
    x /= np.sqrt((x**2).mean(1, keepdims=True) + norm.variance_epsilon)
    x *= norm.weight.detach().numpy()
    for part in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(got[f"blk.1.{part}.weight"], (x**2).mean(0), rtol=1e-4)


def test_a_model_that_sees_pictures_is_watched_where_it_reads(
    tmp_path: Path, text: tuple[Path, list[list[int]]]
) -> None:
    torch.manual_seed(3)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    inner = {**GEMMA, "vocab_size": VOCABULARY}
    config = transformers.Gemma3Config(
        text_config=inner, vision_config=vision, mm_tokens_per_image=4, image_token_index=90
    )
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    tokenizer(tmp_path / "model", bos=False)
    made = imatrix(tmp_path / "model", text[0], tmp_path / "out.gguf", context=CONTEXT, chunks=1)
    assert len(made.fitted.values) == 14
    assert made.fitted.without == ("token_embd.weight",)


def test_every_piece_begins_with_bos(tmp_path: Path, text: tuple[Path, list[list[int]]]) -> None:
    path, chunks = text
    model = save(tmp_path / "model", "llama", bos=True)
    imatrix(tmp_path / "model", path, tmp_path / "out.gguf", context=CONTEXT)
    got = read_imatrix(tmp_path / "out.gguf").values["blk.0.attn_q.weight"]
    tokens = [1, *(token for chunk in chunks for token in chunk)]
    for i in range(CHUNKS):
        tokens[i * CONTEXT] = 1
    x = model.model.embed_tokens.weight.detach().numpy()[tokens[: CHUNKS * CONTEXT]]
    norm = model.model.layers[0].input_layernorm
    x = x / np.sqrt((x**2).mean(1, keepdims=True) + norm.variance_epsilon)
    x = x * norm.weight.detach().numpy()
    np.testing.assert_allclose(got, (x**2).mean(0), rtol=1e-4)


def test_the_command_writes_and_says_what_it_did(
    tmp_path: Path, text: tuple[Path, list[list[int]]]
) -> None:
    folder, out = tmp_path / "model", tmp_path / "out.gguf"
    save(folder, "llama")
    arguments = ["imatrix", str(folder), "--text", str(text[0]), "-o", str(out)]
    done = CliRunner().invoke(cli, [*arguments, "--context", "32"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "importances for 14 of 16 matrices, from 3 chunks of 32 tokens" in done.stdout
    arguments += ["--context", "32", "--chunks", "1", "--json"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    said = json.loads(done.stdout)
    assert (said["chunks"], said["tokens"], said["tensors"]) == (1, 32, 14)
    assert sorted(said["without"]) == ["output.weight", "token_embd.weight"]
    assert read_imatrix(out).datasets == ("text.txt",)


def test_progress_is_told(tmp_path: Path, text: tuple[Path, list[list[int]]]) -> None:
    save(tmp_path / "model", "llama")
    said: list[tuple[str, float | None]] = []
    imatrix(
        tmp_path / "model",
        text[0],
        context=CONTEXT,
        chunks=2,
        progress=lambda step, done: said.append((step, done)),
    )
    assert said[0] == ("loading", None)
    assert [step for step, _ in said[1:]] == ["reading piece 1", "reading piece 2"]
    assert said[-1][1] == 1.0
    assert (tmp_path / "model-imatrix.gguf").is_file()


def test_what_cannot_be_honoured(tmp_path: Path, text: tuple[Path, list[list[int]]]) -> None:
    folder, path = tmp_path / "model", text[0]
    save(folder, "llama")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match="give 16 or more"):
        imatrix(folder, path, context=8)
    with pytest.raises(UsageError, match="give 1 or more"):
        imatrix(folder, path, chunks=0)
    with pytest.raises(UsageError, match="reads at most 128 tokens"):
        imatrix(folder, path, context=129)
    with pytest.raises(SourceError, match="shorter than one piece of 128 tokens"):
        imatrix(folder, path, context=128)
    with pytest.raises(SourceError, match="no such file"):
        imatrix(folder, tmp_path / "missing.txt", context=CONTEXT)
    with pytest.raises(OutputError):
        imatrix(folder, path, path, context=CONTEXT)
    with pytest.raises(SourceError, match="made from the Hugging Face folder"):
        imatrix(folder / "model.safetensors", path, context=CONTEXT)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_without_a_good_tokenizer(
    tmp_path: Path, text: tuple[Path, list[list[int]]]
) -> None:
    folder = tmp_path / "model"
    save(folder, "llama")
    (folder / "tokenizer.json").write_text('{"model": 7}')
    with pytest.raises(SourceError, match="cannot load its tokenizer"):
        imatrix(folder, text[0], context=CONTEXT)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(SourceError, match="cannot load its tokenizer"):
        imatrix(folder, text[0], context=CONTEXT)


def test_a_tokenizer_without_its_json_is_transformers_own(
    tmp_path: Path, text: tuple[Path, list[list[int]]]
) -> None:
    save(tmp_path / "model", "bert")
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[3:]]
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(names) + "\n")
    made = imatrix(tmp_path / "model", text[0], tmp_path / "out.gguf", context=CONTEXT)
    # CLS and SEP take places at both ends; the first CLS is one of the text's own tokens.
    assert made.imatrix.chunks == CHUNKS


def test_a_model_that_overflows(tmp_path: Path, text: tuple[Path, list[list[int]]]) -> None:
    folder = tmp_path / "model"
    model = save(folder, "llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(3e38)
    model.save_pretrained(folder)
    with pytest.raises(SourceError, match="the model overflows"):
        imatrix(folder, text[0], tmp_path / "out.gguf", context=CONTEXT)
    assert not (tmp_path / "out.gguf").exists()
