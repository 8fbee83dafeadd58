"""Qwen2 and Qwen2.5: llama with biases on queries, keys and values, and a window over the later layers if asked for."""

from __future__ import annotations

from typing import Any

from memcalc.families import _kinds_forward as turns
from memcalc.families._alternating import Order, in_turns
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward, pre_norm
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import attention, rotary_width
from memcalc.families._rotary_forward import rotary_of
from memcalc.families._windows import Kinds, LayerType, WindowedConfig, all_full, listed, sliding_from, stacked, window
from memcalc.families.base import Architecture, Depth, Family, Flag, MaybeZero, Size
from memcalc.layers.basic import RotaryTable, rms_norm
from memcalc.layers.transformer import Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class Qwen2Config(WindowedConfig):
    """source: transformers 5.23.0 models/qwen2/configuration_qwen2.py"""

    vocab_size: Size = 151936
    hidden_size: Size = 4096
    intermediate_size: Size = 22016
    num_hidden_layers: Depth = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 32
    hidden_act: str = "silu"
    use_sliding_window: Flag = False
    max_window_layers: MaybeZero = 28


def layer_kinds(config: Qwen2Config) -> Kinds:
    """Which layers slide: none unless ``use_sliding_window``, then those from ``max_window_layers`` on."""
    if config.layer_types is not None:
        return listed(config.layer_types)
    if config.use_sliding_window and config.sliding_window is not None:
        return sliding_from(config.num_hidden_layers, config.max_window_layers)
    return all_full(config.num_hidden_layers)


def layer_order(machine: Machine, config: Qwen2Config) -> Order:
    """The same from first to last."""
    if config.layer_types is not None:
        return in_turns(config.layer_types)
    if config.use_sliding_window and config.sliding_window is not None:
        return turns.sliding_from(config.num_hidden_layers, config.max_window_layers)
    return turns.all_full(config.num_hidden_layers)


def block(config: Qwen2Config, layer_type: LayerType) -> Block:
    """One decoder layer."""
    hidden = config.hidden_size
    reach = window(config, layer_type) if config.use_sliding_window else None
    return Block(
        (
            ("self_attn", attention(config, bias=True, window=reach)),
            ("mlp", GatedMLP(hidden, config.intermediate_size, activation=config.hidden_act)),
            ("input_layernorm", rms_norm(hidden)),
            ("post_attention_layernorm", rms_norm(hidden)),
        )
    )


def build(config: Qwen2Config, architecture: str) -> Architecture:
    """The decoder under its head."""
    layers = stacked(layer_kinds(config), lambda layer_type: block(config, layer_type))
    rotary = RotaryTable(rotary_width(config))
    return decoder_architecture(config, architecture, layers, rms_norm(config.hidden_size), rotary=rotary)


def play(machine: Machine, architecture: str, config: Qwen2Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    style = Style(
        pre_norm, rotary_of(config, rotary_width(config)), window=config.sliding_window,
        order=lambda machine: layer_order(machine, config),
        kinds={kind: block(config, kind) for kind in layer_kinds(config)}, both_masks=False,
    )  # fmt: skip
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


FAMILY = Family(
    model_type="qwen2",
    config=Qwen2Config,
    architectures=(
        "Qwen2ForCausalLM",
        "Qwen2Model",
        "Qwen2ForSequenceClassification",
        "Qwen2ForTokenClassification",
        "Qwen2ForQuestionAnswering",
    ),
    usual="Qwen2ForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/qwen2/modeling_qwen2.py",
)
