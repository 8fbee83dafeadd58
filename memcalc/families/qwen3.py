"""Qwen3: qwen2 without its biases by default, with each head of queries and keys normalised, and a head size of its own."""

from __future__ import annotations

from typing import Any

from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward, pre_norm
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import attention, rotary_width
from memcalc.families._rotary_forward import rotary_of
from memcalc.families._windows import LayerType, stacked, window
from memcalc.families.base import Architecture, Family, Flag, Size
from memcalc.families.qwen2 import Qwen2Config, layer_kinds, layer_order
from memcalc.layers.basic import RotaryTable, rms_norm
from memcalc.layers.transformer import Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value


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


def play(machine: Machine, architecture: str, config: Qwen3Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    style = Style(
        pre_norm, rotary_of(config, rotary_width(config)), window=config.sliding_window,
        order=lambda machine: layer_order(machine, config),
        kinds={kind: block(config, kind) for kind in layer_kinds(config)}, both_masks=False,
    )  # fmt: skip
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


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
    play=play,
    caches=True,
    source="transformers 5.23.0 models/qwen3/modeling_qwen3.py",
)
