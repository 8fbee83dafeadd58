"""Mistral: llama with grouped-query attention by default and a sliding window over every layer."""

from __future__ import annotations

from typing import Any

from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward, pre_norm
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import RotaryDecoderConfig, attention, rotary_width
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Family, MaybeZero, Size
from memcalc.layers.basic import RotaryTable, rms_norm
from memcalc.layers.transformer import Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class MistralConfig(RotaryDecoderConfig):
    """source: transformers 5.23.0 models/mistral/configuration_mistral.py"""

    vocab_size: Size = 32000
    hidden_size: Size = 4096
    intermediate_size: Size = 14336
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    hidden_act: str = "silu"
    sliding_window: MaybeZero | None = 4096


def block(config: MistralConfig) -> Block:
    """One decoder layer."""
    hidden = config.hidden_size
    return Block(
        (
            ("self_attn", attention(config, window=config.sliding_window)),
            ("mlp", GatedMLP(hidden, config.intermediate_size, activation=config.hidden_act)),
            ("input_layernorm", rms_norm(hidden)),
            ("post_attention_layernorm", rms_norm(hidden)),
        )
    )


def build(config: MistralConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    return decoder_architecture(
        config, architecture, block(config), rms_norm(config.hidden_size),
        rotary=RotaryTable(rotary_width(config)), names=Names(question_body="model"),
    )  # fmt: skip


def play(machine: Machine, architecture: str, config: MistralConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    style = Style(pre_norm, rotary_of(config, rotary_width(config)), window=config.sliding_window)
    return headed_forward(machine, architecture, config, root, batch, Names(question_body="model"), style)


FAMILY = Family(
    model_type="mistral",
    config=MistralConfig,
    architectures=(
        "MistralForCausalLM",
        "MistralModel",
        "MistralForSequenceClassification",
        "MistralForTokenClassification",
        "MistralForQuestionAnswering",
    ),
    usual="MistralForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/mistral/modeling_mistral.py",
)
