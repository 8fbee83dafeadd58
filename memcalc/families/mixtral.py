"""Mixtral: the llama decoder with a mixture of experts in every layer."""

from __future__ import annotations

from typing import Any

from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward, pre_norm
from memcalc.families._forward import Batch
from memcalc.families._mixture import EXPERTS, MixtureConfig, check_mixture, head_sizes
from memcalc.families._rotary import rotated
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Family, MaybeZero, Size
from memcalc.layers.basic import RotaryTable, rms_norm
from memcalc.layers.moe import Experts, Mixture, Router
from memcalc.layers.transformer import Attention, Block
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class MixtralConfig(MixtureConfig):
    """source: transformers 5.23.0 models/mixtral/configuration_mixtral.py"""

    aliases = EXPERTS

    vocab_size: Size = 32000
    hidden_size: Size = 4096
    intermediate_size: Size = 14336
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = None
    sliding_window: MaybeZero | None = None
    num_experts_per_tok: MaybeZero | None = 2
    num_experts: Size = 8


def mixture(config: MixtralConfig) -> Mixture:
    """The feed-forward, under transformers 4's names for its parts where the experts are separate."""
    return Mixture(
        Router(config.hidden_size, config.num_experts, config.num_experts_per_tok),
        Experts(
            config.num_experts, config.hidden_size, config.intermediate_size, config.expert_layout,
            names=("w1", "w3", "w2"), activation=config.hidden_act,
        ),
    )  # fmt: skip


def block(config: MixtralConfig) -> Block:
    """One decoder layer."""
    heads, kv_heads, head_dim = head_sizes(config)
    attention = Attention(
        config.hidden_size, heads, kv_heads, head_dim,
        dropout=config.attention_dropout, window=config.sliding_window, rotary=rotated(config, head_dim),
    )  # fmt: skip
    return Block(
        (
            ("self_attn", attention),
            ("mlp" if config.expert_layout == "stacked" else "block_sparse_moe", mixture(config)),
            ("input_layernorm", rms_norm(config.hidden_size)),
            ("post_attention_layernorm", rms_norm(config.hidden_size)),
        )
    )


def build(config: MixtralConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    *_, head_dim = head_sizes(config)
    table = RotaryTable(rotated(config, head_dim))
    return decoder_architecture(
        config, architecture, block(config), rms_norm(config.hidden_size), rotary=table, names=Names(question_body="model")
    )


def play(machine: Machine, architecture: str, config: MixtralConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    check_mixture(config)
    *_, head_dim = head_sizes(config)
    style = Style(pre_norm, rotary_of(config, rotated(config, head_dim)), window=config.sliding_window)
    return headed_forward(machine, architecture, config, root, batch, Names(question_body="model"), style)


FAMILY = Family(
    model_type="mixtral",
    config=MixtralConfig,
    architectures=(
        "MixtralForCausalLM",
        "MixtralModel",
        "MixtralForSequenceClassification",
        "MixtralForTokenClassification",
        "MixtralForQuestionAnswering",
    ),
    usual="MixtralForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/mixtral/modeling_mixtral.py; separate experts: conversion_mapping.py",
)
