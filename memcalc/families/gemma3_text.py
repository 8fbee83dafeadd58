"""Gemma 3, its language model: five sliding layers to one full, each type with rotary frequencies of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from memcalc.families import _kinds_forward as turns
from memcalc.families._alternating import Order, in_turns
from memcalc.families._block_orders import both_norms
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Masks, Style, headed_forward
from memcalc.families._forward import Batch, find_packed
from memcalc.families._masks import both_ways, seen, unbounded
from memcalc.families._rotary_decoder import attention
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
from memcalc.families.gemma import gemma_norm
from memcalc.families.gemma2 import caps, gemma_block
from memcalc.layers.basic import ScaledEmbedding
from memcalc.layers.transformer import Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class Gemma3TextConfig(TypedRotaryConfig):
    """source: transformers 5.23.0 models/gemma3/configuration_gemma3.py Gemma3TextConfig"""

    aliases: ClassVar[Mapping[str, str]] = {"_sliding_window_pattern": "sliding_window_pattern"}
    """transformers 5 writes it so, beside the ``layer_types`` it made of it."""
    divides: ClassVar[tuple[tuple[str, str], ...]] = (
        ("num_attention_heads", "hidden_size"),
        ("num_key_value_heads", "num_attention_heads"),
    )
    """transformers refuses other heads even though the head size is a key of its own (validate_architecture)."""

    vocab_size: Size = 262208
    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    num_hidden_layers: Depth = 26
    num_attention_heads: Size = 8
    num_key_value_heads: Size = 4
    head_dim: Size = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: Flag = False
    tie_word_embeddings: Flag = True
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    use_bidirectional_attention: Flag | None = False
    sliding_window_pattern: Size = 6
    """Every so many-th layer is full; the older way to say ``layer_types``, and still its default."""


def layer_kinds(config: Gemma3TextConfig) -> Kinds:
    """The types as listed, or by the pattern."""
    if config.layer_types is not None:
        return listed(config.layer_types)
    return every(config.num_hidden_layers, config.sliding_window_pattern)


def layer_order(machine: Machine, config: Gemma3TextConfig) -> Order:
    """The same from first to last."""
    if config.layer_types is not None:
        return in_turns(config.layer_types)
    return turns.every(machine, config.num_hidden_layers, config.sliding_window_pattern)


def block(config: Gemma3TextConfig, layer_type: LayerType) -> Block:
    """One decoder layer of a type."""
    reach = window(config, layer_type)
    if config.use_bidirectional_attention and reach is not None:
        # half to either side, and itself (Gemma3TextConfig.__post_init__)
        reach = reach // 2 + 1
    self_attention = attention(
        config, bias=config.attention_bias, output_bias=config.attention_bias, window=reach,
        rotary=typed_rotary_width(config, layer_type), causal=not config.use_bidirectional_attention,
        softcap=config.attn_logit_softcapping, query_norm=gemma_norm(config.head_dim), key_norm=gemma_norm(config.head_dim),
        normed="moved",
    )  # fmt: skip
    mlp = GatedMLP(config.hidden_size, config.intermediate_size, activation=config.hidden_activation)
    return gemma_block(config.hidden_size, self_attention, mlp)


def build(config: Gemma3TextConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    kinds = layer_kinds(config)
    layers = stacked(kinds, lambda layer_type: block(config, layer_type))
    return decoder_architecture(
        config, architecture, layers, gemma_norm(config.hidden_size), rotary=rotary_tables(kinds, config),
        embedding=ScaledEmbedding(config.vocab_size, config.hidden_size), after_head=caps(config.final_logit_softcapping),
    )  # fmt: skip


def style_of(config: Gemma3TextConfig) -> Style:
    """How the body runs."""
    kinds = layer_kinds(config)
    return Style(
        both_norms, typed_rotaries(config, kinds), window=config.sliding_window,
        order=lambda machine: layer_order(machine, config), kinds={kind: block(config, kind) for kind in kinds},
        masks=both_ways_masks if config.use_bidirectional_attention else None,
    )  # fmt: skip


def both_ways_masks(machine: Machine, place: Value, batch: Batch, dtype: str, *, eager: bool) -> Masks:
    """Masks of a body that looks ahead too (modeling_gemma3.py:Gemma3TextModel.forward)."""
    find_packed(machine, place, batch)
    full = seen(machine, batch, dtype, unbounded, eager=eager)
    find_packed(machine, place, batch)
    return full, seen(machine, batch, dtype, both_ways, eager=eager)


def play(machine: Machine, architecture: str, config: Gemma3TextConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    return headed_forward(machine, architecture, config, root, batch, Names(), style_of(config))


FAMILY = Family(
    model_type="gemma3_text",
    config=Gemma3TextConfig,
    architectures=("Gemma3ForCausalLM", "Gemma3TextModel", "Gemma3TextForSequenceClassification"),
    usual="Gemma3ForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/gemma3/modeling_gemma3.py",
)
