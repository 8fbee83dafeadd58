"""Phi-1, phi-1.5 and phi-2: attention and MLP in parallel on one layer normalisation, biases throughout, half-rotated heads."""

from __future__ import annotations

from typing import Any

from memcalc.families._block_orders import parallel_dropped
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import RotaryDecoderConfig, attention, rotary_width
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Family, Flag, Probability, Size
from memcalc.layers.basic import Dropout, RotaryTable, layer_norm
from memcalc.layers.transformer import MLP, Block
from memcalc.play.machine import Machine
from memcalc.play.values import Value

NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "dense", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
ROTATED = 0.5
"""The fraction of a head that is rotated (configuration_phi.py PhiConfig.__post_init__)."""


class PhiConfig(RotaryDecoderConfig):
    """source: transformers 5.23.0 models/phi/configuration_phi.py"""

    vocab_size: Size = 51200
    hidden_size: Size = 2048
    intermediate_size: Size = 8192
    num_hidden_layers: Size = 24
    num_attention_heads: Size = 32
    hidden_act: str = "gelu_new"
    resid_pdrop: Probability = 0.0
    embd_pdrop: Probability = 0.0
    qk_layernorm: Flag = False


def block(config: PhiConfig) -> Block:
    """One decoder layer."""
    # the norms' width is the hidden size by heads even where head_dim says otherwise (PhiAttention.__init__)
    norm = layer_norm(config.hidden_size // config.num_attention_heads) if config.qk_layernorm else None
    rotary = rotary_width(config, ROTATED)
    self_attention = attention(
        config,
        rotary=rotary,
        bias=True,
        output_bias=True,
        names=NAMES,
        query_norm=norm,
        key_norm=norm,
        normed="moved",
        turn="part",
    )
    return Block(
        (
            ("self_attn", self_attention),
            ("mlp", MLP(config.hidden_size, config.intermediate_size, names=("fc1", "fc2"), activation=config.hidden_act)),
            ("input_layernorm", layer_norm(config.hidden_size)),
            ("resid_dropout", Dropout(config.resid_pdrop)),
        ),
        parallel=True,
    )


def build(config: PhiConfig, architecture: str) -> Architecture:
    """The decoder under its head, whose language model's has a bias."""
    return decoder_architecture(
        config, architecture, block(config), layer_norm(config.hidden_size),
        rotary=RotaryTable(rotary_width(config, ROTATED)), names=Names(norm="final_layernorm"),
        before_layers=(("embed_dropout", Dropout(config.embd_pdrop)),), head_bias=True,
    )  # fmt: skip


def play(machine: Machine, architecture: str, config: PhiConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    style = Style(parallel_dropped, rotary_of(config, rotary_width(config, ROTATED)), dropout="embed_dropout")
    return headed_forward(machine, architecture, config, root, batch, Names(norm="final_layernorm"), style)


FAMILY = Family(
    model_type="phi",
    config=PhiConfig,
    architectures=("PhiForCausalLM", "PhiModel", "PhiForSequenceClassification", "PhiForTokenClassification"),
    usual="PhiForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/phi/modeling_phi.py",
)
