"""OLMo 2: llama with its norms after attention and MLP, and queries and keys normalised over their whole width."""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Count
from memcalc.families._block_orders import output_norm
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import RotaryDecoderConfig, attention, head_sizes, rotary_width
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Family, Flag, Size
from memcalc.layers.basic import Norm, RotaryTable, rms_norm
from memcalc.layers.transformer import Attention, Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class Olmo2Config(RotaryDecoderConfig):
    """source: transformers 5.23.0 models/olmo2/configuration_olmo2.py"""

    vocab_size: Size = 50304
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    hidden_act: str = "silu"
    attention_bias: Flag = False


def olmo_norm(width: Count) -> Norm:
    """The family's RMSNorm."""
    return rms_norm(width, function="rms_float_scale")


def olmo_attention(config: Any, **more: Any) -> Attention:
    """Attention with normalised queries and keys; ``more`` are further fields of it."""
    heads, kv_heads, head_dim = head_sizes(config)
    return attention(
        config, bias=config.attention_bias, output_bias=config.attention_bias,
        query_norm=olmo_norm(heads * head_dim), key_norm=olmo_norm(kv_heads * head_dim), normed="width", turn="wide", **more,
    )  # fmt: skip


def olmo_block(config: Any, self_attention: Attention) -> Block:
    """One decoder layer around that attention."""
    return Block(
        (
            ("self_attn", self_attention),
            ("mlp", GatedMLP(config.hidden_size, config.intermediate_size, activation=config.hidden_act)),
            ("post_attention_layernorm", olmo_norm(config.hidden_size)),
            ("post_feedforward_layernorm", olmo_norm(config.hidden_size)),
        ),
        norms="output",
    )


def build(config: Olmo2Config, architecture: str) -> Architecture:
    """The decoder under its head."""
    block = olmo_block(config, olmo_attention(config))
    rotary = RotaryTable(rotary_width(config))
    return decoder_architecture(config, architecture, block, olmo_norm(config.hidden_size), rotary=rotary)


def play(machine: Machine, architecture: str, config: Olmo2Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    style = Style(output_norm, rotary_of(config, rotary_width(config), wide=True))
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


FAMILY = Family(
    model_type="olmo2",
    config=Olmo2Config,
    architectures=("Olmo2ForCausalLM", "Olmo2Model", "Olmo2ForSequenceClassification"),
    usual="Olmo2ForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/olmo2/modeling_olmo2.py",
)
