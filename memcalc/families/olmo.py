"""OLMo: llama with layer normalisations that hold no weight at all."""

from __future__ import annotations

from typing import Any

from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward, pre_norm
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import RotaryDecoderConfig, attention, rotary_width
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Family, Flag, Size
from memcalc.layers.basic import Norm, RotaryTable
from memcalc.layers.transformer import Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class OlmoConfig(RotaryDecoderConfig):
    """source: transformers 5.23.0 models/olmo/configuration_olmo.py"""

    vocab_size: Size = 50304
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    hidden_act: str = "silu"
    attention_bias: Flag = False
    clip_qkv: float | None = None


def bare_norm(width: int) -> Norm:
    """A layer normalisation on an fp32 copy, without scale or shift."""
    return Norm(width, weight=False, function="layer_float")


def block(config: OlmoConfig) -> Block:
    """One decoder layer."""
    hidden, bias = config.hidden_size, config.attention_bias
    return Block(
        (
            ("self_attn", attention(config, bias=bias, output_bias=bias, clip=config.clip_qkv, normed="width", turn="wide")),
            ("mlp", GatedMLP(hidden, config.intermediate_size, activation=config.hidden_act)),
            ("input_layernorm", bare_norm(hidden)),
            ("post_attention_layernorm", bare_norm(hidden)),
        )
    )


def build(config: OlmoConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    rotary = RotaryTable(rotary_width(config))
    return decoder_architecture(config, architecture, block(config), bare_norm(config.hidden_size), rotary=rotary)


def play(machine: Machine, architecture: str, config: OlmoConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    style = Style(pre_norm, rotary_of(config, rotary_width(config), wide=True))
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


FAMILY = Family(
    model_type="olmo",
    config=OlmoConfig,
    architectures=("OlmoForCausalLM", "OlmoModel", "OlmoForSequenceClassification"),
    usual="OlmoForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/olmo/modeling_olmo.py",
)
