"""Qwen3: qwen2 without its biases by default, with each head of queries and keys normalised, and a head size of its own."""

from __future__ import annotations

from memcalc.families._decoder import decoder_architecture
from memcalc.families._rotary_decoder import attention, rotary_width
from memcalc.families._windows import LayerType, stacked, window
from memcalc.families.base import Architecture, Family, Flag, Size
from memcalc.families.qwen2 import Qwen2Config, layer_kinds
from memcalc.layers.basic import RotaryTable, rms_norm
from memcalc.layers.transformer import Block, GatedMLP


class Qwen3Config(Qwen2Config):
    """The same keys with the same defaults, and two more.

    source: transformers 5.23.0 models/qwen3/configuration_qwen3.py
    """

    head_dim: Size = 128
    attention_bias: Flag = False


def block(config: Qwen3Config, layer_type: LayerType) -> Block:
    """One decoder layer."""
    hidden, bias = config.hidden_size, config.attention_bias
    reach = window(config, layer_type) if config.use_sliding_window else None
    self_attention = attention(
        config, bias=bias, output_bias=bias, window=reach, query_norm=config.head_dim, key_norm=config.head_dim
    )
    return Block(
        (
            ("self_attn", self_attention),
            ("mlp", GatedMLP(hidden, config.intermediate_size, activation=config.hidden_act)),
            ("input_layernorm", rms_norm(hidden)),
            ("post_attention_layernorm", rms_norm(hidden)),
        )
    )


def build(config: Qwen3Config, architecture: str) -> Architecture:
    """The decoder under its head."""
    layers = stacked(layer_kinds(config), lambda layer_type: block(config, layer_type))
    rotary = RotaryTable(rotary_width(config))
    return decoder_architecture(config, architecture, layers, rms_norm(config.hidden_size), rotary=rotary)


FAMILY = Family(
    model_type="qwen3",
    config=Qwen3Config,
    architectures=(
        "Qwen3ForCausalLM",
        "Qwen3Model",
        "Qwen3ForSequenceClassification",
        "Qwen3ForTokenClassification",
        "Qwen3ForQuestionAnswering",
    ),
    usual="Qwen3ForCausalLM",
    build=build,
    source="transformers 5.23.0 models/qwen3/modeling_qwen3.py",
)
