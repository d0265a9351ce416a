"""The committed table of architectures that every export and every quantization is held to.

Each entry builds a small model with seeded random weights and writes it the way a user would have
it: a Hugging Face folder, a pickled module, a state dict beside its code, or a ``.pt2`` program.
Widths are 64 and more, so that quantization means something; running statistics of batch
normalisation are taken from a few batches, so that outputs are not degenerate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tests.contract import plain_models as plain
from torch import nn

Feed = Mapping[str, NDArray[Any]]

__all__ = ["ARCHITECTURES", "Architecture", "Case"]

#: How ``--model`` names the plain modules: importable from the repository root.
CODE = "tests.contract.plain_models"

VOCABULARY = 512


@dataclass(frozen=True)
class Case:
    """A model on disk, the options it needs, and two feeds of different sizes.

    ``options`` are keyword arguments of ``edgeopt.quantize`` (``model``, ``inputs`` as
    ``name:dtype[shape]`` strings, ``trust_pickle``). The second feed has another batch size and,
    where the architecture has one, another sequence length or image size.
    """

    path: Path
    feeds: tuple[Feed, Feed]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """One line of the table."""

    name: str
    build: Callable[[Path], Case]
    plain: bool = False

    def __str__(self) -> str:
        return self.name


# ---------------------------------------------------------------------------------------------
# feeds


def _text(batch: int, length: int, seed: int, *, types: bool = False) -> Feed:
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[-1, length - length // 4 :] = 0
    feed = {
        "input_ids": rng.integers(3, VOCABULARY, (batch, length), dtype=np.int64),
        "attention_mask": mask,
    }
    if types:
        feed["token_type_ids"] = np.zeros((batch, length), np.int64)
    return feed


def _floats(name: str, shape: tuple[int, ...], seed: int) -> Feed:
    return {name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def _ids(name: str, shape: tuple[int, ...], seed: int) -> Feed:
    return {name: np.random.default_rng(seed).integers(1, VOCABULARY, shape, dtype=np.int64)}


# ---------------------------------------------------------------------------------------------
# Hugging Face folders


def _settle(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Give batch normalisation the statistics of a few batches, as training would have."""
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(8, *shape[1:]))
    model.eval()


def _image_folder(
    name: str, config: Any, cls: Any, size: int, other: int | None = None
) -> Architecture:
    def build(folder: Path) -> Case:
        torch.manual_seed(0)
        model = cls(config).eval()
        _settle(model, (1, 3, size, size))
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"size": {"height": size, "width": size}, "do_resize": True})
        )
        last = other or size
        return Case(
            folder,
            (
                _floats("pixel_values", (2, 3, size, size), 0),
                _floats("pixel_values", (3, 3, last, last), 1),
            ),
        )

    return Architecture(name, build)


def _text_folder(name: str, config: Any, cls: Any, *, types: bool = False) -> Architecture:
    def build(folder: Path) -> Case:
        torch.manual_seed(0)
        cls(config).eval().save_pretrained(folder)
        return Case(folder, (_text(2, 16, 0, types=types), _text(3, 23, 1, types=types)))

    return Architecture(name, build)


def _sound_folder(
    name: str,
    config: Any,
    cls: Any,
    input_name: str,
    first: tuple[int, ...],
    second: tuple[int, ...],
) -> Architecture:
    def build(folder: Path) -> Case:
        torch.manual_seed(0)
        cls(config).eval().save_pretrained(folder)
        return Case(folder, (_floats(input_name, first, 0), _floats(input_name, second, 1)))

    return Architecture(name, build)


_BERT_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
}


def _transformers() -> tuple[Architecture, ...]:
    t = transformers
    return (
        _image_folder(
            "resnet",
            t.ResNetConfig(
                embedding_size=32,
                hidden_sizes=[32, 64, 128],
                depths=[1, 1, 1],
                layer_type="basic",
                num_labels=10,
            ),
            t.ResNetForImageClassification,
            64,
            96,
        ),
        _image_folder(
            "mobilenet-v2",
            t.MobileNetV2Config(depth_multiplier=0.35, image_size=64, num_labels=10),
            t.MobileNetV2ForImageClassification,
            64,
        ),
        _image_folder(
            "efficientnet",
            t.EfficientNetConfig(
                image_size=64,
                hidden_dim=1280,
                in_channels=[32, 16, 24],
                out_channels=[16, 24, 64],
                kernel_sizes=[3, 3, 5],
                strides=[1, 2, 2],
                num_block_repeats=[1, 1, 1],
                expand_ratios=[1, 6, 6],
                depthwise_padding=[],
                width_coefficient=1.0,
                depth_coefficient=1.0,
                num_labels=10,
            ),
            t.EfficientNetForImageClassification,
            64,
            96,
        ),
        _image_folder(
            "convnext",
            t.ConvNextConfig(
                image_size=64,
                hidden_sizes=[32, 64, 128],
                depths=[1, 1, 1],
                num_stages=3,
                num_labels=10,
            ),
            t.ConvNextForImageClassification,
            64,
            96,
        ),
        _image_folder(
            "vit",
            t.ViTConfig(
                image_size=64,
                patch_size=16,
                hidden_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=256,
                num_labels=10,
            ),
            t.ViTForImageClassification,
            64,
        ),
        _image_folder(
            "swin",
            t.SwinConfig(
                image_size=64,
                patch_size=4,
                embed_dim=32,
                depths=[2, 2],
                num_heads=[2, 4],
                window_size=4,
                num_labels=10,
            ),
            t.SwinForImageClassification,
            64,
            96,
        ),
        _image_folder(
            "segformer",
            t.SegformerConfig(
                num_encoder_blocks=3,
                depths=[1, 1, 1],
                sr_ratios=[4, 2, 1],
                hidden_sizes=[32, 64, 128],
                patch_sizes=[7, 3, 3],
                strides=[4, 2, 2],
                num_attention_heads=[1, 2, 4],
                mlp_ratios=[2, 2, 2],
                decoder_hidden_size=64,
                num_labels=10,
            ),
            t.SegformerForSemanticSegmentation,
            64,
            96,
        ),
        _text_folder("bert", t.BertConfig(**_BERT_SIZES), t.BertModel, types=True),
        _text_folder(
            "distilbert",
            t.DistilBertConfig(
                vocab_size=VOCABULARY,
                dim=128,
                n_layers=2,
                n_heads=4,
                hidden_dim=256,
                max_position_embeddings=64,
                num_labels=4,
            ),
            t.DistilBertForSequenceClassification,
        ),
        _text_folder(
            "roberta",
            t.RobertaConfig(**{**_BERT_SIZES, "max_position_embeddings": 66, "type_vocab_size": 1}),
            t.RobertaForMaskedLM,
        ),
        _text_folder(
            "electra",
            t.ElectraConfig(**_BERT_SIZES, embedding_size=64, num_labels=5),
            t.ElectraForTokenClassification,
            types=True,
        ),
        _text_folder(
            "t5-encoder",
            t.T5Config(
                vocab_size=VOCABULARY, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4
            ),
            t.T5EncoderModel,
        ),
        _sound_folder(
            "whisper-encoder",
            t.WhisperConfig(
                vocab_size=VOCABULARY,
                d_model=128,
                encoder_layers=2,
                decoder_layers=1,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=256,
                decoder_ffn_dim=256,
                num_mel_bins=80,
                max_source_positions=100,
                max_target_positions=32,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
                begin_suppress_tokens=None,
            ),
            t.WhisperForConditionalGeneration,
            "input_features",
            (2, 80, 200),
            (3, 80, 200),
        ),
        _sound_folder(
            "wav2vec2",
            t.Wav2Vec2Config(
                vocab_size=32,
                hidden_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=256,
                conv_dim=[64, 64, 64],
                conv_kernel=[10, 3, 2],
                conv_stride=[5, 2, 2],
                num_feat_extract_layers=3,
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
            ),
            t.Wav2Vec2ForCTC,
            "input_values",
            (2, 2000),
            (3, 1700),
        ),
        _text_folder(
            "gpt2",
            t.GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=128,
                n_layer=2,
                n_head=4,
                n_positions=64,
                bos_token_id=1,
                eos_token_id=2,
            ),
            t.GPT2LMHeadModel,
        ),
        _text_folder(
            "clip-text",
            t.CLIPTextConfig(
                **{**_BERT_SIZES, "max_position_embeddings": 77},
                pad_token_id=1,
                bos_token_id=0,
                eos_token_id=2,
            ),
            t.CLIPTextModel,
        ),
    )


# ---------------------------------------------------------------------------------------------
# plain torch


def _module(cls: type[nn.Module], sample: tuple[int, ...] | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = cls().eval()
    if sample is not None:
        _settle(model, sample)
    return model


def _pickled(
    name: str,
    cls: type[nn.Module],
    feeds: tuple[Feed, Feed],
    inputs: tuple[str, ...] = (),
    sample: tuple[int, ...] | None = None,
) -> Architecture:
    """A pickled module, that the user trusts."""

    def build(folder: Path) -> Case:
        path = folder / "model.pt"
        torch.save(_module(cls, sample), path)
        return Case(path, feeds, {"trust_pickle": True, "inputs": inputs})

    return Architecture(name, build)


def _state_dict(
    name: str,
    cls: type[nn.Module],
    feeds: tuple[Feed, Feed],
    inputs: tuple[str, ...] = (),
    sample: tuple[int, ...] | None = None,
) -> Architecture:
    """A state dict, with the code it belongs to named by ``model``."""

    def build(folder: Path) -> Case:
        path = folder / "weights.pt"
        torch.save(_module(cls, sample).state_dict(), path)
        return Case(path, feeds, {"model": f"{CODE}:{cls.__name__}", "inputs": inputs})

    return Architecture(name, build)


def _program(
    name: str,
    cls: type[nn.Module],
    feeds: tuple[Feed, Feed],
    dynamic: Mapping[str, Mapping[int, str]],
    sample: tuple[int, ...] | None = None,
) -> Architecture:
    """A ``.pt2`` program with dynamic shapes, that torch wrote."""

    def build(folder: Path) -> Case:
        path = folder / "model.pt2"
        dims = {
            n: torch.export.Dim(n, min=1 if n == "batch" else 64)
            for axes in dynamic.values()
            for n in axes.values()
        }
        program = torch.export.export(
            _module(cls, sample),
            (),
            {name: torch.from_numpy(np.asarray(a)) for name, a in feeds[0].items()},
            dynamic_shapes={
                name: {axis: dims[n] for axis, n in axes.items()} for name, axes in dynamic.items()
            },
        )
        torch.export.save(program, path)
        return Case(path, feeds, {})

    return Architecture(name, build)


def _plain() -> tuple[Architecture, ...]:
    return (
        _pickled("mlp", plain.Mlp, (_floats("x", (2, 64), 0), _floats("x", (5, 64), 1))),
        _pickled(
            "lstm-tagger",
            plain.LstmTagger,
            (_ids("tokens", (2, 16), 0), _ids("tokens", (3, 11), 1)),
        ),
        _state_dict(
            "gru", plain.GruClassifier, (_floats("x", (2, 16, 64), 0), _floats("x", (3, 11, 64), 1))
        ),
        _pickled(
            "transformer-encoder",
            plain.TransformerClassifier,
            (_ids("tokens", (2, 16), 0), _ids("tokens", (3, 11), 1)),
        ),
        _state_dict(
            "unet",
            plain.UNet,
            (_floats("image", (2, 3, 32, 32), 0), _floats("image", (3, 3, 48, 48), 1)),
            ("image:float32[batch,3,height,width]",),
            (1, 3, 32, 32),
        ),
        _program(
            "conv1d-audio",
            plain.AudioNet,
            (_floats("waveform", (2, 1, 2000), 0), _floats("waveform", (3, 1, 1600), 1)),
            {"waveform": {0: "batch", 2: "samples"}},
            (1, 1, 2000),
        ),
        _program(
            "depthwise",
            plain.DepthwiseNet,
            (_floats("image", (2, 3, 32, 32), 0), _floats("image", (3, 3, 32, 32), 1)),
            {"image": {0: "batch"}},
            (1, 3, 32, 32),
        ),
        _pickled(
            "two-inputs-two-outputs",
            plain.TwoTowers,
            (
                {**_floats("user", (2, 64), 0), **_floats("item", (2, 96), 2)},
                {**_floats("user", (5, 64), 1), **_floats("item", (5, 96), 3)},
            ),
            ("user:float32[batch,64]", "item:float32[batch,96]"),
        ),
        _state_dict(
            "tied-embeddings",
            plain.TiedLanguageModel,
            (_ids("tokens", (2, 16), 0), _ids("tokens", (3, 11), 1)),
        ),
    )


ARCHITECTURES: tuple[Architecture, ...] = (
    *_transformers(),
    *(replace(architecture, plain=True) for architecture in _plain()),
)
