"""Qwen2-MoE: qwen2's decoder, with a mixture and a gated shared expert in the layers that ``decoder_sparse_step`` picks."""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Condition, both, not_
from memcalc.families._alternating import Order, alternating, in_turns, matching, others, periodic
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward, pre_norm
from memcalc.families._forward import Batch
from memcalc.families._kinds_forward import in_steps
from memcalc.families._mixture import EXPERTS, MixtureConfig, check_layer_types, check_mixture, head_sizes
from memcalc.families._rotary import rotated
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Depth, Family, Flag, MaybeZero, Size
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import RotaryTable, rms_norm
from memcalc.layers.moe import Experts, Mixture, Router, SharedExperts
from memcalc.layers.transformer import Attention, Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class Qwen2MoeConfig(MixtureConfig):
    """source: transformers 5.23.0 models/qwen2_moe/configuration_qwen2_moe.py"""

    aliases = EXPERTS

    vocab_size: Size = 151936
    hidden_size: Size = 2048
    intermediate_size: Size = 5632
    num_hidden_layers: Depth = 24
    num_attention_heads: Size = 16
    num_key_value_heads: Size | None = 16
    head_dim: Size | None = None
    qkv_bias: Flag = True
    use_sliding_window: Flag = False
    sliding_window: MaybeZero | None = 4096
    max_window_layers: MaybeZero = 28
    layer_types: list[str] | None = None
    decoder_sparse_step: Size = 1
    mlp_only_layers: list[MaybeZero] | None = None
    moe_intermediate_size: Size = 1408
    shared_expert_intermediate_size: MaybeZero = 5632
    num_experts_per_tok: MaybeZero | None = 4
    num_experts: MaybeZero = 60
    norm_topk_prob: Flag = False
    """Whether the weights of the chosen experts are brought to a sum of 1."""

    def check(self) -> tuple[str, str, str] | None:
        """One type for each layer."""
        return check_layer_types(self) or super().check()


def mixture(config: Qwen2MoeConfig) -> Mixture:
    """The feed-forward of a sparse layer."""
    hidden, shared = config.hidden_size, config.shared_expert_intermediate_size
    return Mixture(
        Router(hidden, config.num_experts, config.num_experts_per_tok, normalised=config.norm_topk_prob, route="softmax_cast"),
        Experts(config.num_experts, hidden, config.moe_intermediate_size, config.expert_layout, activation=config.hidden_act),
        SharedExperts(GatedMLP(hidden, shared, activation=config.hidden_act), name="shared_expert", gate="shared_expert_gate"),
        order="gated",
    )


def block(config: Qwen2MoeConfig, feed_forward: Layer, *, window: bool) -> Block:
    """One decoder layer."""
    heads, kv_heads, head_dim = head_sizes(config)
    attention = Attention(
        config.hidden_size, heads, kv_heads, head_dim, config.qkv_bias,
        dropout=config.attention_dropout, window=config.sliding_window if window else None, rotary=rotated(config, head_dim),
    )  # fmt: skip
    return Block(
        (
            ("self_attn", attention),
            ("mlp", feed_forward),
            ("input_layernorm", rms_norm(config.hidden_size)),
            ("post_attention_layernorm", rms_norm(config.hidden_size)),
        )
    )


def dense_mlp(config: Qwen2MoeConfig) -> GatedMLP:
    """The feed-forward of a layer without experts."""
    return GatedMLP(config.hidden_size, config.intermediate_size, activation=config.hidden_act)


def layers(config: Qwen2MoeConfig) -> Module:
    """The decoder layers: sparse or dense, and with a sliding window or without where the config asks for any."""
    total, never = config.num_hidden_layers, config.mlp_only_layers or ()
    step, any_experts = config.decoder_sparse_step, config.num_experts > 0
    sparse, dense = mixture(config), dense_mlp(config)
    if not windowed(config):
        span = periodic(total, step, offset=1, never=never, present=any_experts)
        return alternating(
            (block(config, sparse, window=False), span), (block(config, dense, window=False), others(total, span))
        )

    def is_sparse(index: int) -> Condition:
        return both(both(index not in never, (index + 1) % step == 0), any_experts)

    def slides(index: int) -> Condition:
        if config.layer_types is not None:
            return config.layer_types[index] == "sliding_attention"
        return both(index % 2 == 0, index < config.max_window_layers)

    return alternating(
        (block(config, sparse, window=True), matching(total, lambda i: both(is_sparse(i), slides(i)))),
        (block(config, dense, window=True), matching(total, lambda i: both(not_(is_sparse(i)), slides(i)))),
        (block(config, sparse, window=False), matching(total, lambda i: both(is_sparse(i), not_(slides(i))))),
        (block(config, dense, window=False), matching(total, lambda i: not_(is_sparse(i) | slides(i)))),
    )


def windowed(config: Qwen2MoeConfig) -> bool:
    """Whether any layer may have a sliding window (transformers keeps none where ``use_sliding_window`` is false)."""
    return config.use_sliding_window and (config.layer_types is None or "sliding_attention" in config.layer_types)


def build(config: Qwen2MoeConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    *_, head_dim = head_sizes(config)
    table = RotaryTable(rotated(config, head_dim))
    return decoder_architecture(
        config, architecture, layers(config), rms_norm(config.hidden_size), rotary=table, names=Names(question_body="model")
    )


def layer_order(machine: Machine, config: Qwen2MoeConfig) -> Order:
    """The layers from first to last: sparse or dense, and their masks where any has a window."""
    total, step, never = config.num_hidden_layers, config.decoder_sparse_step, config.mlp_only_layers or ()
    steps = in_steps(machine, total, step, never, config.num_experts > 0)
    if not windowed(config):
        return tuple((tuple(f"{kind}_full_attention" for kind in turn), times) for turn, times in steps)
    fed: list[str] = []
    for turn, times in steps:
        done = 0
        while machine.decide(done < times):
            fed += turn
            done += 1

    def mask(index: int) -> str:
        if config.layer_types is not None:
            return config.layer_types[index]
        slides = index % 2 == 0 and machine.decide(index < config.max_window_layers)
        return "sliding_attention" if slides else "full_attention"

    return in_turns([f"{kind}_{mask(index)}" for index, kind in enumerate(fed)])


def play(machine: Machine, architecture: str, config: Qwen2MoeConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    check_mixture(config)
    *_, head_dim = head_sizes(config)
    parts: dict[str, Layer] = {"sparse": mixture(config), "dense": dense_mlp(config)}
    # without use_sliding_window it is 0, and a mask of it is made all the same (configuration_qwen2_moe.py:__post_init__)
    reach = config.sliding_window if config.use_sliding_window else 0
    style = Style(
        pre_norm, rotary_of(config, rotated(config, head_dim)), window=reach,
        order=lambda machine: layer_order(machine, config),
        kinds={
            f"{kind}_{mask}": block(config, part, window=mask == "sliding_attention")
            for kind, part in parts.items()
            for mask in ("sliding_attention", "full_attention")
        },
    )  # fmt: skip
    return headed_forward(machine, architecture, config, root, batch, Names(question_body="model"), style)


FAMILY = Family(
    model_type="qwen2_moe",
    config=Qwen2MoeConfig,
    architectures=(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeModel",
        "Qwen2MoeForSequenceClassification",
        "Qwen2MoeForTokenClassification",
        "Qwen2MoeForQuestionAnswering",
    ),
    usual="Qwen2MoeForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/qwen2_moe/modeling_qwen2_moe.py; separate experts: conversion_mapping.py",
)
