"""What the decoders with rotary positions and a gated feed-forward have in common."""

from __future__ import annotations

from dataclasses import dataclass

from edgeopt.files.gguf_write import Field, f32, u32
from edgeopt.llm.families.changes import WeightChange
from edgeopt.llm.families.config import Config, Dim
from edgeopt.llm.families.rope import Rope
from edgeopt.llm.families.tensors import Spec

__all__ = ["Decoder"]


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder, checked against one another."""

    blocks: int
    context: int
    width: Dim
    inner: Dim
    heads: int
    kv_heads: int
    head: Dim
    vocabulary: Dim
    epsilon: float

    @classmethod
    def of(cls, config: Config) -> Decoder:
        width, heads = config.dim("hidden_size"), config.integer("num_attention_heads")
        kv_heads = config.integer("num_key_value_heads", heads)
        if heads % kv_heads:
            raise config.wrong(
                "num_attention_heads", f"is {heads}, no multiple of num_key_value_heads {kv_heads}"
            )
        if "head_dim" not in config and width.value % heads:
            raise config.wrong(
                "hidden_size", f"is {width.value}, no multiple of num_attention_heads {heads}"
            )
        each = config.dim("head_dim", width.value // heads or None)
        if each.value % 2:
            raise config.wrong(
                "head_dim", f"is {each.value}; rotary positions turn pairs of values"
            )
        return cls(
            blocks=config.blocks("num_hidden_layers"),
            context=config.integer("max_position_embeddings"),
            width=width,
            inner=config.dim("intermediate_size"),
            heads=heads,
            kv_heads=kv_heads,
            head=each,
            vocabulary=config.dim("vocab_size"),
            epsilon=config.number("rms_norm_eps"),
        )

    @property
    def queries(self) -> Dim:
        return Dim(self.heads * self.head.value, "num_attention_heads x head_dim")

    @property
    def keys(self) -> Dim:
        return Dim(self.kv_heads * self.head.value, "num_key_value_heads x head_dim")

    def square(self, config: Config) -> None:
        """Raise SourceError where heads do not fill the width: some architectures assume it."""
        if self.queries.value != self.width.value:
            raise config.refuse(
                "head_dim" if "head_dim" in config else "num_attention_heads",
                f"llama.cpp's architecture needs heads x head_dim = hidden_size, here "
                f"{self.heads} x {self.head.value} and {self.width.value}",
            )

    def metadata(self, architecture: str, rope: Rope) -> dict[str, Field]:
        fields: dict[str, Field] = {
            "vocab_size": u32(self.vocabulary.value),
            "context_length": u32(self.context),
            "embedding_length": u32(self.width.value),
            "block_count": u32(self.blocks),
            "feed_forward_length": u32(self.inner.value),
            "attention.head_count": u32(self.heads),
            "attention.head_count_kv": u32(self.kv_heads),
            "attention.key_length": u32(self.head.value),
            "attention.value_length": u32(self.head.value),
            "attention.layer_norm_rms_epsilon": f32(self.epsilon),
            "rope.dimension_count": u32(int(self.head.value * rope.partial)),
        }
        named = {f"{architecture}.{key}": field for key, field in fields.items()}
        return {**named, **rope.metadata(architecture)}

    def attention(
        self,
        *,
        change: WeightChange | None = None,
        kv_change: WeightChange | None = None,
        bias: str = "",
    ) -> list[Spec]:
        """Queries, keys, values and output of a block; ``bias`` holds the letters of those of
        ``qkvo`` that have one. ``change`` is for queries, ``kv_change`` for keys."""
        rows = (
            ("q", self.queries, self.width, change),
            ("k", self.keys, self.width, kv_change),
            ("v", self.keys, self.width, None),
            ("o", self.width, self.queries, None),
        )
        specs = []
        for letter, out, into, what in rows:
            name = f"model.layers.{{i}}.self_attn.{letter}_proj"
            specs.append(Spec(f"{name}.weight", (out, into), what))
            if letter in bias:
                specs.append(Spec(f"{name}.bias", (out,), what))
        return specs

    def feed_forward(self, *, bias: bool = False) -> list[Spec]:
        rows = (
            ("gate", self.inner, self.width),
            ("up", self.inner, self.width),
            ("down", self.width, self.inner),
        )
        specs = []
        for part, out, into in rows:
            name = f"model.layers.{{i}}.mlp.{part}_proj"
            specs.append(Spec(f"{name}.weight", (out, into)))
            if bias:
                specs.append(Spec(f"{name}.bias", (out,)))
        return specs

    def head_norms(self, change: WeightChange | None = None) -> list[Spec]:
        """The norms of queries and keys, each over one head."""
        return [
            Spec(f"model.layers.{{i}}.self_attn.{part}_norm.weight", (self.head,), change)
            for part in "qk"
        ]

    def norm(self, name: str, change: WeightChange | None = None) -> Spec:
        return Spec(f"{name}.weight", (self.width,), change)

    def ends(self, tied: bool, change: WeightChange | None = None) -> tuple[list[Spec], list[Spec]]:
        """What stands before the blocks and after them."""
        table = (self.vocabulary, self.width)
        last = [self.norm("model.norm", change)]
        if not tied:
            last.append(Spec("lm_head.weight", table))
        return [Spec("model.embed_tokens.weight", table)], last
