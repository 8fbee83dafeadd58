"""OLMo 3: olmo2 with three sliding layers to one full, each type with rotary frequencies of its own."""

from __future__ import annotations

from typing import Any

from memcalc.families import _kinds_forward as turns
from memcalc.families._alternating import Order, in_turns
from memcalc.families._block_orders import output_norm
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward
from memcalc.families._forward import Batch
from memcalc.families._windows import (
    Kinds,
    LayerType,
    TypedRotaryConfig,
    every,
    listed,
    rotary_tables,
    stacked,
    typed_rotary_width,
    window,
)
from memcalc.families._windows_forward import typed_rotaries
from memcalc.families.base import Architecture, Depth, Family, Flag, Size
from memcalc.families.olmo2 import olmo_attention, olmo_block, olmo_norm
from memcalc.layers.transformer import Block
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class Olmo3Config(TypedRotaryConfig):
    """source: transformers 5.23.0 models/olmo3/configuration_olmo3.py"""

    vocab_size: Size = 50304
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Depth = 32
    num_attention_heads: Size = 32
    hidden_act: str = "silu"
    attention_bias: Flag = False


def layer_kinds(config: Olmo3Config) -> Kinds:
    """Every fourth layer is full, unless the config lists the types."""
    return every(config.num_hidden_layers, 4) if config.layer_types is None else listed(config.layer_types)


def layer_order(machine: Machine, config: Olmo3Config) -> Order:
    """The same from first to last."""
    if config.layer_types is not None:
        return in_turns(config.layer_types)
    return turns.every(machine, config.num_hidden_layers, 4)


def block(config: Olmo3Config, layer_type: LayerType) -> Block:
    """One decoder layer of a type."""
    rotary = typed_rotary_width(config, layer_type)
    return olmo_block(config, olmo_attention(config, rotary=rotary, window=window(config, layer_type)))


def build(config: Olmo3Config, architecture: str) -> Architecture:
    """The decoder under its head."""
    kinds = layer_kinds(config)
    layers = stacked(kinds, lambda layer_type: block(config, layer_type))
    rotary = rotary_tables(kinds, config)
    return decoder_architecture(config, architecture, layers, olmo_norm(config.hidden_size), rotary=rotary)


def play(machine: Machine, architecture: str, config: Olmo3Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    kinds = layer_kinds(config)
    style = Style(
        output_norm, typed_rotaries(config, kinds, wide=True), window=config.sliding_window,
        order=lambda machine: layer_order(machine, config),
        kinds={kind: block(config, kind) for kind in kinds},
    )  # fmt: skip
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


FAMILY = Family(
    model_type="olmo3",
    config=Olmo3Config,
    architectures=("Olmo3ForCausalLM", "Olmo3Model", "Olmo3ForSequenceClassification"),
    usual="Olmo3ForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/olmo3/modeling_olmo3.py",
)
