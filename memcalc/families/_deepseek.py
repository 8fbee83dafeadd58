"""What DeepSeek-V2 and -V3 share: latent attention, dense layers first, then mixtures with shared experts."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from memcalc.arrays import Count
from memcalc.errors import NotModelledError
from memcalc.families._alternating import alternating, others, periodic
from memcalc.families._decoder import decoder_architecture
from memcalc.families._decoder_forward import Style, pre_norm
from memcalc.families._kinds_forward import dense_first
from memcalc.families._mixture import EXPERTS, MixtureConfig, check_mixture
from memcalc.families._rotary import rotated
from memcalc.families._rotary_forward import Rotary
from memcalc.families.base import Architecture, Depth, Flag, MaybeZero, Size
from memcalc.layers.base import Layer
from memcalc.layers.basic import RotaryTable, rms_norm
from memcalc.layers.latent_attention import LatentAttention
from memcalc.layers.moe import Experts, Mixture, Router, SharedExperts
from memcalc.layers.transformer import Block, GatedMLP
from memcalc.play.machine import Machine


class DeepseekConfig(MixtureConfig):
    """Keys of both."""

    aliases = EXPERTS
    divides: ClassVar[tuple[tuple[str, str], ...]] = ()

    intermediate_size: Size
    moe_intermediate_size: Size
    num_hidden_layers: Depth
    num_experts: MaybeZero
    n_shared_experts: MaybeZero
    first_k_dense_replace: MaybeZero
    moe_layer_freq: Size = 1
    """Every how many layers a mixture stands. DeepSeek's own code reads it (modeling_deepseek.py, DeepseekV3DecoderLayer) and
    all published models have 1; transformers 5.23.0 does not read it."""
    n_group: MaybeZero | None = None
    topk_group: MaybeZero | None = None
    num_key_value_heads: Size | None = None
    """As many as heads, whatever it says: what keys and values share is the latent they are made from."""
    head_dim: Size | None = None
    """Of the rotary table alone."""
    q_lora_rank: Size | None = 1536
    kv_lora_rank: Size = 512
    qk_nope_head_dim: MaybeZero = 128
    qk_rope_head_dim: Size = 64
    v_head_dim: Size = 128
    attention_bias: Flag = False
    rope_interleave: Flag = True
    """Whether a pair of rotated dimensions stands side by side; V2 has them so whatever it says."""
    norm_topk_prob: Flag = True
    """Whether the weights of the chosen experts are brought to a sum of 1; V2 never does."""
    topk_method: str = "greedy"
    """Of V2: whether experts are chosen among all, or among the best groups."""


def attention(config: Any, turned: Literal["pairs", "complex"] = "pairs") -> LatentAttention:
    """The attention of a layer."""
    return LatentAttention(
        config.hidden_size, config.num_attention_heads, config.q_lora_rank, config.kv_lora_rank,
        config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim, config.attention_bias, config.attention_dropout,
        config.rope_interleave, turned,
    )  # fmt: skip


def mixture(config: Any, router: Router, *, mlp_bias: bool) -> Mixture:
    """The feed-forward of a sparse layer: ``n_shared_experts`` experts as one feed-forward beside the chosen ones."""
    hidden, width = config.hidden_size, config.moe_intermediate_size
    shared = GatedMLP(hidden, width * config.n_shared_experts, mlp_bias, activation=config.hidden_act)
    return Mixture(
        router,
        Experts(config.num_experts, hidden, width, config.expert_layout, activation=config.hidden_act),
        SharedExperts(shared, config.n_shared_experts),
        names=(("experts", "experts"), ("router", "gate")),
        order="beside",
    )


def block(config: Any, feed_forward: Layer, turned: Literal["pairs", "complex"] = "pairs") -> Block:
    """One decoder layer."""
    return Block(
        (
            ("self_attn", attention(config, turned)),
            ("mlp", feed_forward),
            ("input_layernorm", rms_norm(config.hidden_size)),
            ("post_attention_layernorm", rms_norm(config.hidden_size)),
        )
    )


def dense_mlp(config: Any, *, mlp_bias: bool) -> GatedMLP:
    """The feed-forward of the first layers."""
    return GatedMLP(config.hidden_size, config.intermediate_size, mlp_bias, activation=config.hidden_act)


def deepseek_architecture(
    config: Any, architecture: str, sparse: Mixture, rotary_dim: Count, *, mlp_bias: bool = False
) -> Architecture:
    """The decoder under its head."""
    total = config.num_hidden_layers
    mixtures = periodic(total, config.moe_layer_freq, first=config.first_k_dense_replace)
    dense = dense_mlp(config, mlp_bias=mlp_bias)
    layers = alternating((block(config, dense), others(total, mixtures)), (block(config, sparse), mixtures))
    table = RotaryTable(rotated(config, rotary_dim))
    return decoder_architecture(config, architecture, layers, rms_norm(config.hidden_size), rotary=table)


def deepseek_style(
    machine: Machine,
    config: Any,
    sparse: Mixture,
    rotary: Rotary,
    turned: Literal["pairs", "complex"],
    *,
    mlp_bias: bool = False,
) -> Style:
    """How the body runs.

    Raises:
        NotModelledError: mixtures in every so many layers, which transformers does not build.
    """
    check_mixture(config)
    if not machine.same(config.moe_layer_freq, 1):
        raise NotModelledError("model.moe_layer_freq", config.moe_layer_freq, "is not what transformers runs", "set it to 1")
    kinds = {"dense": block(config, dense_mlp(config, mlp_bias=mlp_bias), turned), "sparse": block(config, sparse, turned)}
    return Style(
        pre_norm, rotary, order=lambda _: dense_first(config.num_hidden_layers, config.first_k_dense_replace), kinds=kinds,
        one_mask=True,
    )  # fmt: skip
