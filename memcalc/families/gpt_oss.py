"""gpt-oss: mixtures with biases throughout, attention sinks, and a sliding window in every other layer."""

from __future__ import annotations

from typing import Any, Literal

from memcalc.arrays import Count
from memcalc.families._alternating import Order, alternating, in_turns, listed, others, periodic
from memcalc.families._classic_forward import only_written
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward, pre_norm
from memcalc.families._forward import Batch
from memcalc.families._mixture import EXPERTS, MixtureConfig, check_layer_types, check_mixture, head_sizes
from memcalc.families._rotary import rotated
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Depth, Family, Flag, MaybeZero, Size
from memcalc.layers.basic import Norm, Parameter, RotaryTable, rms_norm
from memcalc.layers.moe import Experts, Mixture, Router
from memcalc.layers.transformer import Attention, Block
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class GptOssConfig(MixtureConfig):
    """source: transformers 5.23.0 models/gpt_oss/configuration_gpt_oss.py"""

    aliases = EXPERTS

    vocab_size: Size = 201088
    hidden_size: Size = 2880
    intermediate_size: Size = 2880
    num_hidden_layers: Depth = 36
    num_attention_heads: Size = 64
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 64
    attention_bias: Flag = True
    sliding_window: MaybeZero | None = 128
    layer_types: list[str] | None = None
    num_experts_per_tok: MaybeZero | None = 4
    num_experts: Size = 128
    expert_layout: Literal["stacked"] = "stacked"
    """Stacked alone: transformers 4, 5 and the checkpoints on the Hub all keep these experts so."""

    def check(self) -> tuple[str, str, str] | None:
        """One type for each layer."""
        return check_layer_types(self) or super().check()


def gpt_oss_norm(width: Count) -> Norm:
    """A root-mean-square normalisation scaled in FP32 (modeling_gpt_oss.py:GptOssRMSNorm)."""
    return rms_norm(width, function="rms_float_scale")


def block(config: GptOssConfig, window: Count | None) -> Block:
    """One decoder layer."""
    heads, kv_heads, head_dim = head_sizes(config)
    hidden, experts, bias = config.hidden_size, config.num_experts, config.attention_bias
    attention = Attention(
        hidden, heads, kv_heads, head_dim, bias, output_bias=bias, extra=(("sinks", Parameter((heads,))),),
        dropout=config.attention_dropout, window=window, rotary=rotated(config, head_dim), turn="chunks",
    )  # fmt: skip
    mixture = Mixture(
        Router(hidden, experts, config.num_experts_per_tok, bias=True, route="softmax_of_best"),
        # a clamped SwiGLU whatever hidden_act says
        Experts(experts, hidden, config.intermediate_size, bias=True, transposed=True, activation="swiglu_clamped"),
        names=(("router", "router"), ("experts", "experts")),
    )
    return Block(
        (
            ("self_attn", attention),
            ("mlp", mixture),
            ("input_layernorm", gpt_oss_norm(hidden)),
            ("post_attention_layernorm", gpt_oss_norm(hidden)),
        )
    )


def build(config: GptOssConfig, architecture: str) -> Architecture:
    """The decoder under its head: sliding and full attention take turns, sliding first, unless ``layer_types`` says."""
    *_, head_dim = head_sizes(config)
    total = config.num_hidden_layers
    sliding = periodic(total, 2) if config.layer_types is None else listed(config.layer_types, "sliding_attention")
    layers = alternating((block(config, config.sliding_window), sliding), (block(config, window=None), others(total, sliding)))
    table = RotaryTable(rotated(config, head_dim))
    return decoder_architecture(config, architecture, layers, gpt_oss_norm(config.hidden_size), rotary=table)


def layer_order(machine: Machine, config: GptOssConfig) -> Order:
    """The kinds of layers from first to last."""
    if config.layer_types is not None:
        return in_turns(config.layer_types)
    total = config.num_hidden_layers
    rest = ((("sliding_attention",), 1),) if machine.decide(total % 2 == 1) else ()
    return ((("sliding_attention", "full_attention"), total // 2), *rest)


def play(machine: Machine, architecture: str, config: GptOssConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it: attention is always written out, as no kernel of torch's knows sinks."""
    check_mixture(config)
    only_written(machine)
    *_, head_dim = head_sizes(config)
    style = Style(
        pre_norm, rotary_of(config, rotated(config, head_dim), half=True), window=config.sliding_window,
        order=lambda machine: layer_order(machine, config),
        kinds={"sliding_attention": block(config, config.sliding_window), "full_attention": block(config, None)},
        placed_masks=False,
    )  # fmt: skip
    return headed_forward(machine, architecture, config, root, batch, Names(), style, eager=True)


FAMILY = Family(
    model_type="gpt_oss",
    config=GptOssConfig,
    architectures=(
        "GptOssForCausalLM",
        "GptOssModel",
        "GptOssForSequenceClassification",
        "GptOssForTokenClassification",
    ),
    usual="GptOssForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/gpt_oss/modeling_gpt_oss.py",
)
