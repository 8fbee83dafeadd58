"""DeepSeek-V2: latent attention, and mixtures after the first dense layers."""

from __future__ import annotations

from memcalc.families._deepseek import DeepseekConfig, deepseek_architecture, mixture
from memcalc.families.base import Architecture, Depth, Family, Flag, MaybeZero, Size
from memcalc.layers.moe import Router


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


def build(config: DeepseekV2Config, architecture: str) -> Architecture:
    """The decoder under its head."""
    router = Router(
        config.hidden_size, config.num_experts, config.num_experts_per_tok,
        groups=config.n_group, top_groups=config.topk_group,
    )  # fmt: skip
    bias = config.mlp_bias
    sparse = mixture(config, router, mlp_bias=bias)
    return deepseek_architecture(config, architecture, sparse, config.qk_rope_head_dim, mlp_bias=bias)


FAMILY = Family(
    model_type="deepseek_v2",
    config=DeepseekV2Config,
    architectures=("DeepseekV2ForCausalLM", "DeepseekV2Model", "DeepseekV2ForSequenceClassification"),
    usual="DeepseekV2ForCausalLM",
    build=build,
    source="transformers 5.23.0 models/deepseek_v2/modeling_deepseek_v2.py; separate experts: conversion_mapping.py",
)
