"""Gemma: llama with wide heads, scaled and tied embeddings, and norms that scale by one plus their weight."""

from __future__ import annotations

from typing import Any

from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward, pre_norm
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import RotaryDecoderConfig, attention, rotary_width
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Family, Flag, Size
from memcalc.layers.basic import Norm, RotaryTable, ScaledEmbedding, rms_norm
from memcalc.layers.transformer import Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value

GELU = {"gelu": "gelu_pytorch_tanh"}
"""``gelu`` in an older config stands for the tanh approximation (configuration_gemma.py GemmaConfig.__post_init__)."""


class GemmaConfig(RotaryDecoderConfig):
    """source: transformers 5.23.0 models/gemma/configuration_gemma.py"""

    vocab_size: Size = 256000
    hidden_size: Size = 3072
    intermediate_size: Size = 24576
    num_hidden_layers: Size = 28
    num_attention_heads: Size = 16
    num_key_value_heads: Size = 16
    head_dim: Size = 256
    hidden_act: str = "gelu_pytorch_tanh"
    attention_bias: Flag = False
    tie_word_embeddings: Flag = True
    use_bidirectional_attention: Flag | None = None


def gemma_norm(width: int) -> Norm:
    """The family's RMSNorm."""
    return rms_norm(width, function="rms_plus_one")


def block(config: GemmaConfig) -> Block:
    """One decoder layer."""
    hidden, bias = config.hidden_size, config.attention_bias
    causal = not config.use_bidirectional_attention
    activation = GELU.get(config.hidden_act, config.hidden_act)
    return Block(
        (
            ("self_attn", attention(config, bias=bias, output_bias=bias, causal=causal)),
            ("mlp", GatedMLP(hidden, config.intermediate_size, activation=activation)),
            ("input_layernorm", gemma_norm(hidden)),
            ("post_attention_layernorm", gemma_norm(hidden)),
        )
    )


def build(config: GemmaConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    return decoder_architecture(
        config, architecture, block(config), gemma_norm(config.hidden_size),
        rotary=RotaryTable(rotary_width(config)), embedding=ScaledEmbedding(config.vocab_size, config.hidden_size),
    )  # fmt: skip


def play(machine: Machine, architecture: str, config: GemmaConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    style = Style(pre_norm, rotary_of(config, rotary_width(config)))
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


FAMILY = Family(
    model_type="gemma",
    config=GemmaConfig,
    architectures=("GemmaForCausalLM", "GemmaModel", "GemmaForSequenceClassification", "GemmaForTokenClassification"),
    usual="GemmaForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/gemma/modeling_gemma.py",
)
