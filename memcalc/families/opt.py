"""OPT: learned positions offset by two, embeddings that may be narrower than the layers, norms before or after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from memcalc.arrays import Count
from memcalc.families._decoder import Names, headed
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Layer, Maybe, Module, Stack
from memcalc.layers.basic import Dropout, Embedding, Linear, layer_norm
from memcalc.layers.transformer import MLP, Attention, Block

NAMES = Names("model", "decoder.embed_tokens", question_body="model")
OFFSET = 2
"""Rows of the position table below the first position (OPTLearnedPositionalEmbedding.__init__)."""


class OPTConfig(FamilyConfig):
    """source: transformers 5.23.0 models/opt/configuration_opt.py"""

    aliases: ClassVar[Mapping[str, str]] = {
        "ffn_dim": "intermediate_size",
        "_remove_final_layer_norm": "remove_final_layer_norm",
    }

    vocab_size: Size = 50272
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    max_position_embeddings: Size = 2048
    word_embed_proj_dim: Size | None = None
    do_layer_norm_before: Flag = True
    remove_final_layer_norm: Flag = False
    activation_function: str = "relu"
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.0
    layerdrop: Probability = 0.0
    enable_bias: Flag = True
    layer_norm_elementwise_affine: Flag = True
    tie_word_embeddings: Flag = True


def embedding_width(config: OPTConfig) -> Count:
    """Width of the token embeddings, and so of what the heads read."""
    return config.hidden_size if config.word_embed_proj_dim is None else config.word_embed_proj_dim


def norm(config: OPTConfig) -> Layer:
    """A layer normalisation, with scale and shift or with neither."""
    affine = config.layer_norm_elementwise_affine
    return layer_norm(config.hidden_size, bias=affine, weight=affine)


def block(config: OPTConfig) -> Block:
    """One decoder layer."""
    hidden, heads, bias = config.hidden_size, config.num_attention_heads, config.enable_bias
    attention = Attention(
        hidden, heads, heads, hidden // heads, bias, output_bias=bias,
        names={"k": "k_proj", "v": "v_proj", "q": "q_proj", "o": "out_proj"}, dropout=config.attention_dropout,
    )  # fmt: skip
    mlp = MLP(hidden, config.intermediate_size, bias, names=("fc1", "fc2"), activation=config.activation_function)
    return Block(
        (
            ("self_attn", attention),
            ("", Dropout(config.dropout)),
            ("self_attn_layer_norm", norm(config)),
            ("", mlp),
            ("", Dropout(config.dropout)),
            ("final_layer_norm", norm(config)),
        ),
        norms="pre" if config.do_layer_norm_before else "post",
    )


def body(config: OPTConfig) -> Layer:
    """The decoder, with a projection into and out of the layers where embeddings are narrower."""
    hidden, width = config.hidden_size, embedding_width(config)
    parts: list[tuple[str, Layer]] = [
        ("embed_tokens", Embedding(config.vocab_size, width)),
        ("embed_positions", Embedding(config.max_position_embeddings + OFFSET, hidden)),
        ("project_out", Maybe(width != hidden, Linear(hidden, width, bias=False))),
        ("project_in", Maybe(width != hidden, Linear(width, hidden, bias=False))),
    ]
    if config.do_layer_norm_before and not config.remove_final_layer_norm:
        parts.append(("final_layer_norm", norm(config)))
    return Module([("decoder", Module([*parts, ("layers", Stack(block(config), config.num_hidden_layers))]))])


def build(config: OPTConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    return headed(config, architecture, body(config), NAMES, width=embedding_width(config))


FAMILY = Family(
    model_type="opt",
    config=OPTConfig,
    architectures=("OPTForCausalLM", "OPTModel", "OPTForSequenceClassification", "OPTForQuestionAnswering"),
    usual="OPTForCausalLM",
    build=build,
    source="transformers 5.23.0 models/opt/modeling_opt.py",
)
