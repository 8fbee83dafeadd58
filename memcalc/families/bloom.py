"""BLOOM: position biases in place of position embeddings, and a norm after the token embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, Probability, Size
from memcalc.layers.basic import Dropout, layer_norm
from memcalc.layers.transformer import MLP, Block, FusedAttention

NAMES = Names("transformer", "word_embeddings", "h", "ln_f", token_head="classifier", question_body="transformer")


class BloomConfig(FamilyConfig):
    """source: transformers 5.23.0 models/bloom/configuration_bloom.py"""

    aliases: ClassVar[Mapping[str, str]] = {
        "n_embed": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
    }

    vocab_size: Size = 250880
    hidden_size: Size = 64
    num_hidden_layers: Size = 2
    num_attention_heads: Size = 8
    apply_residual_connection_post_layernorm: Flag = False
    hidden_dropout: Probability = 0.0
    attention_dropout: Probability = 0.0
    classifier_dropout: Probability | None = None
    tie_word_embeddings: Flag = True


def block(config: BloomConfig) -> Block:
    """One decoder layer; the feed-forward is four times as wide, always."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    attention = FusedAttention(
        hidden, heads, heads, hidden // heads, names={"qkv": "query_key_value", "o": "dense"},
        dropout=config.attention_dropout, alibi=True,
    )  # fmt: skip
    return Block(
        (
            ("input_layernorm", layer_norm(hidden)),
            ("self_attention", attention),
            ("", Dropout(config.hidden_dropout)),
            ("post_attention_layernorm", layer_norm(hidden)),
            ("mlp", MLP(hidden, 4 * hidden, names=("dense_h_to_4h", "dense_4h_to_h"), activation="bloom_gelu")),
            ("", Dropout(config.hidden_dropout)),
        )
    )


def build(config: BloomConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    hidden = config.hidden_size
    return decoder_architecture(
        config, architecture, block(config), layer_norm(hidden), names=NAMES,
        before_layers=(("word_embeddings_layernorm", layer_norm(hidden)),),
    )  # fmt: skip


FAMILY = Family(
    model_type="bloom",
    config=BloomConfig,
    architectures=(
        "BloomForCausalLM",
        "BloomModel",
        "BloomForSequenceClassification",
        "BloomForTokenClassification",
        "BloomForQuestionAnswering",
    ),
    usual="BloomForCausalLM",
    build=build,
    source="transformers 5.23.0 models/bloom/modeling_bloom.py",
)
