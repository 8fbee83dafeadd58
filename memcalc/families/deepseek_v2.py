"""DeepSeek-V2: latent attention, and mixtures after the first dense layers."""

from __future__ import annotations

from typing import Any

from memcalc.errors import NotModelledError
from memcalc.families._decoder import Names
from memcalc.families._decoder_forward import headed_forward
from memcalc.families._deepseek import DeepseekConfig, deepseek_architecture, deepseek_style, mixture
from memcalc.families._forward import Batch
from memcalc.families._rotary import rotated
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Depth, Family, Flag, MaybeZero, Size
from memcalc.layers.moe import Mixture, Router
from memcalc.play.machine import Machine
from memcalc.play.values import Value
from memcalc.records import replace


class DeepseekV2Config(DeepseekConfig):
    """source: transformers 5.23.0 models/deepseek_v2/configuration_deepseek_v2.py"""

    divides = (("num_attention_heads", "hidden_size"),)

    vocab_size: Size = 102400
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    moe_intermediate_size: Size = 1407
    num_hidden_layers: Depth = 32
    num_attention_heads: Size = 32
    num_experts: MaybeZero = 64
    n_shared_experts: MaybeZero = 2
    first_k_dense_replace: MaybeZero = 0
    mlp_bias: Flag = False
    """On the dense and the shared feed-forwards; the experts have none."""


def sparse(config: DeepseekV2Config) -> Mixture:
    """The feed-forward of a layer with experts."""
    router = Router(
        config.hidden_size, config.num_experts, config.num_experts_per_tok,
        groups=config.n_group, top_groups=config.topk_group, grouped=config.topk_method == "group_limited_greedy",
        route="softmax_in_float",
    )  # fmt: skip
    return mixture(config, router, mlp_bias=config.mlp_bias)


def build(config: DeepseekV2Config, architecture: str) -> Architecture:
    """The decoder under its head."""
    rotary_dim, bias = config.qk_rope_head_dim, config.mlp_bias
    return deepseek_architecture(config, architecture, sparse(config), rotary_dim, mlp_bias=bias)


def play(machine: Machine, architecture: str, config: DeepseekV2Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it.

    Raises:
        NotModelledError: a choice of experts that transformers does not know, or one by groups without their number.
    """
    by_group = config.topk_method == "group_limited_greedy"
    if not by_group and config.topk_method != "greedy":
        raise NotModelledError("model.topk_method", config.topk_method, "is not what transformers runs", "set it to greedy")
    if by_group and (config.n_group is None or config.topk_group is None):
        raise NotModelledError("model.n_group", config.n_group, "has to be there with topk_group", "set topk_method to greedy")
    width = rotated(config, config.qk_rope_head_dim)
    rotary = replace(rotary_of(config, width), complex=True)
    style = deepseek_style(machine, config, sparse(config), rotary, "complex", mlp_bias=config.mlp_bias)
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


FAMILY = Family(
    model_type="deepseek_v2",
    config=DeepseekV2Config,
    architectures=("DeepseekV2ForCausalLM", "DeepseekV2Model", "DeepseekV2ForSequenceClassification"),
    usual="DeepseekV2ForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/deepseek_v2/modeling_deepseek_v2.py; separate experts: conversion_mapping.py",
)
