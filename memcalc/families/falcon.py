"""Falcon: one key and value for all heads, or for groups of them; attention and feed-forward side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import model_validator

from memcalc.arrays import Count, not_
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._falcon_forward import play
from memcalc.families._rotary import RotaryConfig, rotated
from memcalc.families.base import Architecture, Family, Flag, MaybeZero, Probability, Size
from memcalc.layers.base import Layer, Maybe
from memcalc.layers.basic import Dropout, RotaryTable, layer_norm
from memcalc.layers.transformer import MLP, Block, FusedAttention

NAMES = Names("transformer", "word_embeddings", "h", "ln_f", token_head="classifier", question_body="transformer")


class FalconConfig(RotaryConfig):
    """source: transformers 5.23.0 models/falcon/configuration_falcon.py"""

    aliases: ClassVar[Mapping[str, str]] = {
        "n_embed": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "ffn_hidden_size": "intermediate_size",
    }

    vocab_size: Size = 65024
    hidden_size: Size = 4544
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 71
    num_key_value_heads: Size | None = None
    """Of the new decoder architecture; the old one has one, or as many as heads."""
    n_head_kv: Size | None = None
    """The same in configs of Falcon-40B's own code, which knew no architecture but the new one."""
    intermediate_size: Size | None = None
    num_ln_in_parallel_attn: MaybeZero | None = None
    new_decoder_architecture: Flag | None = False
    multi_query: Flag | None = True
    parallel_attn: Flag | None = True
    alibi: Flag | None = False
    bias: Flag | None = False
    activation: str | None = "gelu"
    hidden_dropout: Probability | None = 0.0
    attention_dropout: Probability | None = 0.0
    classifier_dropout: Probability | None = None
    tie_word_embeddings: Flag = True

    @model_validator(mode="before")
    @classmethod
    def _grouped_is_new(cls, values: Any) -> Any:
        """``n_head_kv`` says both how many key-value heads there are, and that the architecture is the new one."""
        if not isinstance(values, Mapping) or values.get("n_head_kv") is None:
            return values
        return {"num_key_value_heads": values["n_head_kv"], "new_decoder_architecture": True, **values}

    def check(self) -> tuple[str, str, str] | None:
        """The number of key-value heads binds the new architecture alone: the old one does not read it."""
        seen = self if self.new_decoder_architecture else self.model_copy(update={"num_key_value_heads": None})
        return super(FalconConfig, seen).check()


def key_value_heads(config: FalconConfig) -> Count:
    """Heads of keys and values, which the two architectures decide by different keys."""
    heads = config.num_attention_heads
    if config.new_decoder_architecture:
        return heads if config.num_key_value_heads is None else config.num_key_value_heads
    return 1 if config.multi_query else heads


def norms(config: FalconConfig) -> list[tuple[str, Layer]]:
    """The normalisations of a layer: one each for attention and feed-forward, or one for both.

    source: transformers 5.23.0 models/falcon/modeling_falcon.py FalconDecoderLayer.__init__
    """
    norm = layer_norm(config.hidden_size)
    if not config.parallel_attn:
        return [("post_attention_layernorm", norm), ("input_layernorm", norm)]
    default = 2 if config.new_decoder_architecture else 1
    count = default if config.num_ln_in_parallel_attn is None else config.num_ln_in_parallel_attn
    return [
        ("ln_attn", Maybe(count == 2, norm)),
        ("ln_mlp", Maybe(count == 2, norm)),
        ("input_layernorm", Maybe(not_(count == 2), norm)),
    ]


def block(config: FalconConfig) -> Block:
    """One decoder layer."""
    hidden, heads, bias = config.hidden_size, config.num_attention_heads, bool(config.bias)
    intermediate = 4 * hidden if config.intermediate_size is None else config.intermediate_size
    head_dim, dropout = hidden // heads, Dropout(config.hidden_dropout or 0.0)
    attention = FusedAttention(
        hidden, heads, key_value_heads(config), head_dim, bias, output_bias=bias,
        names={"qkv": "query_key_value", "o": "dense"}, dropout=config.attention_dropout or 0.0,
        alibi=bool(config.alibi), rotary=None if config.alibi else rotated(config, head_dim),
    )  # fmt: skip
    names = ("dense_h_to_4h", "dense_4h_to_h")
    return Block(
        (
            ("self_attention", attention),
            ("mlp", MLP(hidden, intermediate, bias, names=names, activation=config.activation or "gelu")),
            ("", dropout),
            *norms(config),
        ),
        parallel=bool(config.new_decoder_architecture or config.parallel_attn),
    )


def build(config: FalconConfig, architecture: str) -> Architecture:
    """The decoder under its head; the rotary table is there even with position biases."""
    hidden = config.hidden_size
    table = RotaryTable(rotated(config, hidden // config.num_attention_heads))
    return decoder_architecture(config, architecture, block(config), layer_norm(hidden), rotary=table, names=NAMES)


FAMILY = Family(
    model_type="falcon",
    config=FalconConfig,
    architectures=(
        "FalconForCausalLM",
        "FalconModel",
        "FalconForSequenceClassification",
        "FalconForTokenClassification",
        "FalconForQuestionAnswering",
    ),
    usual="FalconForCausalLM",
    build=build,
    source="transformers 5.23.0 models/falcon/modeling_falcon.py",
    play=play,
    recast=lambda config: ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),  # FalconLinear.forward: weight.T
    caches=True,
)
