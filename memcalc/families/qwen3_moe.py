"""Qwen3-MoE: qwen3's decoder (queries and keys normalised by head), with mixtures where ``decoder_sparse_step`` picks."""

from __future__ import annotations

from typing import Any

from memcalc.families._alternating import alternating, others, periodic
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward, pre_norm
from memcalc.families._forward import Batch
from memcalc.families._kinds_forward import in_steps
from memcalc.families._mixture import EXPERTS, MixtureConfig, check_mixture, head_sizes
from memcalc.families._rotary import rotated
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Depth, Family, Flag, MaybeZero, Size
from memcalc.layers.base import Layer
from memcalc.layers.basic import RotaryTable, rms_norm
from memcalc.layers.moe import Experts, Mixture, Router
from memcalc.layers.transformer import Attention, Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class Qwen3MoeConfig(MixtureConfig):
    """source: transformers 5.23.0 models/qwen3_moe/configuration_qwen3_moe.py"""

    aliases = EXPERTS

    vocab_size: Size = 151936
    hidden_size: Size = 2048
    intermediate_size: Size = 6144
    num_hidden_layers: Depth = 24
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 4
    head_dim: Size | None = None
    attention_bias: Flag = False
    use_sliding_window: Flag = False
    sliding_window: MaybeZero | None = 4096
    decoder_sparse_step: Size = 1
    mlp_only_layers: list[MaybeZero] | None = None
    moe_intermediate_size: Size = 768
    num_experts_per_tok: MaybeZero | None = 8
    num_experts: MaybeZero = 128
    norm_topk_prob: Flag = False
    """Whether the weights of the chosen experts are brought to a sum of 1."""


def mixture(config: Qwen3MoeConfig) -> Mixture:
    """The feed-forward of a sparse layer."""
    experts, hidden = config.num_experts, config.hidden_size
    return Mixture(
        Router(hidden, experts, config.num_experts_per_tok, normalised=config.norm_topk_prob, route="softmax_cast"),
        Experts(experts, hidden, config.moe_intermediate_size, config.expert_layout, activation=config.hidden_act),
        names=(("experts", "experts"), ("router", "gate")),
    )


def block(config: Qwen3MoeConfig, feed_forward: Layer) -> Block:
    """One decoder layer."""
    heads, kv_heads, head_dim = head_sizes(config)
    bias = config.attention_bias
    attention = Attention(
        config.hidden_size, heads, kv_heads, head_dim, bias, output_bias=bias, query_norm=head_dim, key_norm=head_dim,
        dropout=config.attention_dropout, window=config.sliding_window if config.use_sliding_window else None,
        rotary=rotated(config, head_dim),
    )  # fmt: skip
    return Block(
        (
            ("self_attn", attention),
            ("mlp", feed_forward),
            ("input_layernorm", rms_norm(config.hidden_size)),
            ("post_attention_layernorm", rms_norm(config.hidden_size)),
        )
    )


def dense_mlp(config: Qwen3MoeConfig) -> GatedMLP:
    """The feed-forward of a layer without experts."""
    return GatedMLP(config.hidden_size, config.intermediate_size, activation=config.hidden_act)


def build(config: Qwen3MoeConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    *_, head_dim = head_sizes(config)
    total = config.num_hidden_layers
    sparse = periodic(
        total, config.decoder_sparse_step, offset=1, never=config.mlp_only_layers or (), present=config.num_experts > 0
    )
    layers = alternating((block(config, mixture(config)), sparse), (block(config, dense_mlp(config)), others(total, sparse)))
    table = RotaryTable(rotated(config, head_dim))
    return decoder_architecture(config, architecture, layers, rms_norm(config.hidden_size), rotary=table)


def play(machine: Machine, architecture: str, config: Qwen3MoeConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    check_mixture(config)
    *_, head_dim = head_sizes(config)
    total, step, never = config.num_hidden_layers, config.decoder_sparse_step, config.mlp_only_layers or ()
    style = Style(
        pre_norm, rotary_of(config, rotated(config, head_dim)),
        window=config.sliding_window if config.use_sliding_window else None,
        order=lambda machine: in_steps(machine, total, step, never, config.num_experts > 0),
        kinds={"sparse": block(config, mixture(config)), "dense": block(config, dense_mlp(config))}, one_mask=True,
    )  # fmt: skip
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


FAMILY = Family(
    model_type="qwen3_moe",
    config=Qwen3MoeConfig,
    architectures=(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeModel",
        "Qwen3MoeForSequenceClassification",
        "Qwen3MoeForTokenClassification",
        "Qwen3MoeForQuestionAnswering",
    ),
    usual="Qwen3MoeForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/qwen3_moe/modeling_qwen3_moe.py; separate experts: conversion_mapping.py",
)
