"""StableLM: llama with layer normalisations, quarter-rotated heads, and a norm for each head or parallel parts if asked for."""

from __future__ import annotations

from typing import Any, ClassVar

from memcalc.families._block_orders import stablelm
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import RotaryDecoderConfig, head_sizes, rotary_width
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Family, Flag, Probability, Size
from memcalc.layers.base import Layer
from memcalc.layers.basic import Dropout, RotaryTable, layer_norm
from memcalc.layers.norms import NormPerHead
from memcalc.layers.transformer import QKVO, Attention, Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value

NAMES = {**QKVO, "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
ROTATED = 0.25
"""The fraction of a head that is rotated (configuration_stablelm.py StableLmConfig.__post_init__)."""


class StableLmConfig(RotaryDecoderConfig):
    """source: transformers 5.23.0 models/stablelm/configuration_stablelm.py"""

    divides: ClassVar[tuple[tuple[str, str], ...]] = (
        ("num_attention_heads", "hidden_size"),
        ("num_key_value_heads", "num_attention_heads"),
    )

    vocab_size: Size = 50304
    hidden_size: Size = 2560
    intermediate_size: Size = 6912
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size = 32
    hidden_act: str = "silu"
    use_qkv_bias: Flag = False
    qk_layernorm: Flag = False
    use_parallel_residual: Flag = False
    hidden_dropout: Probability = 0.0


def block(config: StableLmConfig) -> Block:
    """One decoder layer; in parallel its parts share the first norm."""
    hidden = config.hidden_size
    heads, kv_heads, _ = head_sizes(config)
    # unlike its neighbours this attention derives its head size whatever the config says (StableLmAttention.__init__)
    head_dim = hidden // heads
    self_attention = Attention(
        hidden, heads, kv_heads, head_dim, config.use_qkv_bias, names=NAMES, dropout=config.attention_dropout or 0.0,
        query_norm=NormPerHead(heads, head_dim) if config.qk_layernorm else None,
        key_norm=NormPerHead(kv_heads, head_dim) if config.qk_layernorm else None,
        rotary=rotary_width(config, ROTATED), normed="moved", turn="part",
    )  # fmt: skip
    parts: list[tuple[str, Layer]] = [
        ("self_attn", self_attention),
        ("mlp", GatedMLP(hidden, config.intermediate_size, activation=config.hidden_act)),
        ("input_layernorm", layer_norm(hidden)),
    ]
    if not config.use_parallel_residual:
        parts.append(("post_attention_layernorm", layer_norm(hidden)))
    return Block((*parts, ("dropout", Dropout(config.hidden_dropout))), parallel=config.use_parallel_residual)


def build(config: StableLmConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    rotary = RotaryTable(rotary_width(config, ROTATED))
    return decoder_architecture(config, architecture, block(config), layer_norm(config.hidden_size), rotary=rotary)


def play(machine: Machine, architecture: str, config: StableLmConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    style = Style(stablelm, rotary_of(config, rotary_width(config, ROTATED)))
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


FAMILY = Family(
    model_type="stablelm",
    config=StableLmConfig,
    architectures=(
        "StableLmForCausalLM",
        "StableLmModel",
        "StableLmForSequenceClassification",
        "StableLmForTokenClassification",
    ),
    usual="StableLmForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/stablelm/modeling_stablelm.py",
)
