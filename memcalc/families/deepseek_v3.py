"""DeepSeek-V3 (and R1): latent attention, mixtures chosen with a correction that is no parameter.

The multi-token-prediction module of the checkpoint (``num_nextn_predict_layers``) is no part of transformers' training classes.
"""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Count
from memcalc.errors import NotModelledError
from memcalc.families._decoder import Names
from memcalc.families._decoder_forward import headed_forward
from memcalc.families._deepseek import DeepseekConfig, deepseek_architecture, deepseek_style, mixture
from memcalc.families._forward import Batch
from memcalc.families._rotary import rotated
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Depth, Family, MaybeZero, Size
from memcalc.layers.moe import Mixture, Router
from memcalc.play.machine import Machine
from memcalc.play.values import Value


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


def sparse(config: DeepseekV3Config) -> Mixture:
    """The feed-forward of a layer with experts."""
    router = Router(
        config.hidden_size, config.num_experts, config.num_experts_per_tok,
        correction=True, groups=config.n_group, top_groups=config.topk_group, scoring="sigmoid",
        normalised=config.norm_topk_prob, route="sigmoid",
    )  # fmt: skip
    return mixture(config, router, mlp_bias=False)


def rotary_width(config: DeepseekV3Config) -> Count:
    """The rotated part of a head, unless a config says otherwise; V2 does not listen."""
    return config.qk_rope_head_dim if config.head_dim is None else config.head_dim


def build(config: DeepseekV3Config, architecture: str) -> Architecture:
    """The decoder under its head."""
    return deepseek_architecture(config, architecture, sparse(config), rotary_width(config))


def play(machine: Machine, architecture: str, config: DeepseekV3Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it.

    Raises:
        NotModelledError: no groups of experts, which transformers does not run.
    """
    if config.n_group is None or config.topk_group is None:
        raise NotModelledError("model.n_group", config.n_group, "has to be there with topk_group", "set both to 1")
    rotary = rotary_of(config, rotated(config, rotary_width(config)))
    style = deepseek_style(machine, config, sparse(config), rotary, "pairs")
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


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
    play=play,
    caches=True,
    source="transformers 5.23.0 models/deepseek_v3/modeling_deepseek_v3.py; separate experts: conversion_mapping.py",
)
