"""Phi-3, phi-3.5 and phi-4: llama with one matrix for queries, keys and values and one for gate and up-projection."""

from __future__ import annotations

from typing import Any

from memcalc.families._block_orders import dropped
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import RotaryDecoderConfig, head_sizes, rotary_width
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Family, MaybeZero, Probability, Size
from memcalc.layers.basic import Dropout, RotaryTable, rms_norm
from memcalc.layers.transformer import Block, FusedAttention, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value

NAMES = {"o": "o_proj", "qkv": "qkv_proj"}
ROTATED = 1.0
"""The fraction of a head that is rotated (configuration_phi3.py Phi3Config.convert_rope_params_to_dict)."""


class Phi3Config(RotaryDecoderConfig):
    """source: transformers 5.23.0 models/phi3/configuration_phi3.py"""

    vocab_size: Size = 32064
    hidden_size: Size = 3072
    intermediate_size: Size = 8192
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    hidden_act: str = "silu"
    resid_pdrop: Probability = 0.0
    sliding_window: MaybeZero | None = None


def block(config: Phi3Config) -> Block:
    """One decoder layer."""
    hidden = config.hidden_size
    heads, kv_heads, head_dim = head_sizes(config)
    self_attention = FusedAttention(
        hidden, heads, kv_heads, head_dim, bias=False, output_bias=False, names=NAMES, dropout=config.attention_dropout or 0.0,
        window=config.sliding_window, rotary=rotary_width(config, ROTATED),
    )  # fmt: skip
    return Block(
        (
            ("self_attn", self_attention),
            ("mlp", GatedMLP(hidden, config.intermediate_size, fused="gate_up_proj", activation=config.hidden_act)),
            ("input_layernorm", rms_norm(hidden)),
            ("post_attention_layernorm", rms_norm(hidden)),
            ("resid_attn_dropout", Dropout(config.resid_pdrop)),
            ("resid_mlp_dropout", Dropout(config.resid_pdrop)),
        )
    )


def build(config: Phi3Config, architecture: str) -> Architecture:
    """The decoder under its head."""
    rotary = RotaryTable(rotary_width(config, ROTATED))
    return decoder_architecture(config, architecture, block(config), rms_norm(config.hidden_size), rotary=rotary)


def play(machine: Machine, architecture: str, config: Phi3Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    style = Style(dropped, rotary_of(config, rotary_width(config, ROTATED)), window=config.sliding_window)
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


FAMILY = Family(
    model_type="phi3",
    config=Phi3Config,
    architectures=("Phi3ForCausalLM", "Phi3Model", "Phi3ForSequenceClassification", "Phi3ForTokenClassification"),
    usual="Phi3ForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/phi3/modeling_phi3.py",
)
