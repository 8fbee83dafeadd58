"""DeepSeek-V3 (and R1): latent attention, mixtures chosen with a correction that is no parameter.

The multi-token-prediction module of the checkpoint (``num_nextn_predict_layers``) is no part of transformers' training classes.
"""

from __future__ import annotations

from memcalc.families._deepseek import DeepseekConfig, deepseek_architecture, mixture
from memcalc.families.base import Architecture, Depth, Family, MaybeZero, Size
from memcalc.layers.moe import Router


class DeepseekV3Config(DeepseekConfig):
    """source: transformers 5.23.0 models/deepseek_v3/configuration_deepseek_v3.py"""

    vocab_size: Size = 129280
    hidden_size: Size = 7168
    intermediate_size: Size = 18432
    moe_intermediate_size: Size = 2048
    num_hidden_layers: Depth = 61
    num_attention_heads: Size = 128
    num_experts: MaybeZero = 256
    n_shared_experts: MaybeZero = 1
    num_experts_per_tok: MaybeZero | None = 8
    first_k_dense_replace: MaybeZero = 3
    n_group: MaybeZero | None = 8
    topk_group: MaybeZero | None = 4


def build(config: DeepseekV3Config, architecture: str) -> Architecture:
    """The decoder under its head."""
    router = Router(
        config.hidden_size, config.num_experts, config.num_experts_per_tok,
        correction=True, groups=config.n_group, top_groups=config.topk_group, scoring="sigmoid",
    )  # fmt: skip
    # the rotated part of a head, unless a config says otherwise; V2 does not listen
    rotary_dim = config.qk_rope_head_dim if config.head_dim is None else config.head_dim
    return deepseek_architecture(config, architecture, mixture(config, router, mlp_bias=False), rotary_dim)


FAMILY = Family(
    model_type="deepseek_v3",
    config=DeepseekV3Config,
    architectures=(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Model",
        "DeepseekV3ForSequenceClassification",
        "DeepseekV3ForTokenClassification",
    ),
    usual="DeepseekV3ForCausalLM",
    build=build,
    source="transformers 5.23.0 models/deepseek_v3/modeling_deepseek_v3.py; separate experts: conversion_mapping.py",
)
