"""OLMo 3: olmo2 with three sliding layers to one full, each type with rotary frequencies of its own."""

from __future__ import annotations

from memcalc.families._decoder import decoder_architecture
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
from memcalc.families.base import Architecture, Depth, Family, Flag, Size
from memcalc.families.olmo2 import olmo_attention, olmo_block, olmo_norm
from memcalc.layers.transformer import Block


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


FAMILY = Family(
    model_type="olmo3",
    config=Olmo3Config,
    architectures=("Olmo3ForCausalLM", "Olmo3Model", "Olmo3ForSequenceClassification"),
    usual="Olmo3ForCausalLM",
    build=build,
    source="transformers 5.23.0 models/olmo3/modeling_olmo3.py",
)
