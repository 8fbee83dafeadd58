"""What decoders with rotary positions share: the keys of their configs, the sizes those imply, and their attention."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from memcalc.arrays import Count
from memcalc.families._rotary import RotaryConfig, rotated
from memcalc.families.base import Flag, Probability, Size
from memcalc.layers.base import Layer
from memcalc.layers.transformer import Attention


class RotaryDecoderConfig(RotaryConfig):
    """The keys common to decoders with rotary positions; each family gives them its class's defaults."""

    divides: ClassVar[tuple[tuple[str, str], ...]] = (("num_key_value_heads", "num_attention_heads"),)
    """The heads need not divide the hidden size: the head size is its own key, or the quotient cut to a whole number."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    """Read by these models even where their config class does not declare it (``getattr(config, "head_dim", ...)``)."""
    attention_dropout: Probability | None = 0.0
    tie_word_embeddings: Flag = False
    classifier_dropout: Probability | None = None
    """Before a token classifier (transformers 5.23.0 modeling_layers.py GenericForTokenClassification)."""
    token_classification_bias: Flag = True
    """Of a token classifier (the same place)."""


class Heads(NamedTuple):
    """How attention divides its width."""

    heads: Count
    kv_heads: Count
    head_dim: Count


def head_sizes(config: RotaryDecoderConfig) -> Heads:
    """Query heads, key-value heads and head dimension, the last two derived where the config leaves them out."""
    heads = config.num_attention_heads
    kv_heads = heads if config.num_key_value_heads is None else config.num_key_value_heads
    head_dim = config.hidden_size // heads if config.head_dim is None else config.head_dim
    return Heads(heads, kv_heads, head_dim)


def rotary_width(config: RotaryDecoderConfig, share: float | None = None) -> Count:
    """How many of a head's dimensions are rotated.

    ``share`` is the fraction a family rotates unless told otherwise; None for one whose plain rotary embedding rotates the
    whole head whatever the config says.
    """
    head_dim = head_sizes(config).head_dim
    if share is None:
        return rotated(config, head_dim)
    return rotated(config, head_dim, default_is_partial=True, share=share)


def attention(
    config: RotaryDecoderConfig,
    *,
    rotary: Count | None = None,
    query_norm: Count | Layer | None = None,
    key_norm: Count | Layer | None = None,
    **more: Any,
) -> Attention:
    """The family's attention; ``rotary`` where it is not the plain :func:`rotary_width`, ``more`` for its further fields."""
    heads, kv_heads, head_dim = head_sizes(config)
    return Attention(
        config.hidden_size, heads, kv_heads, head_dim,
        dropout=config.attention_dropout or 0.0,
        rotary=rotary_width(config) if rotary is None else rotary,
        query_norm=query_norm,
        key_norm=key_norm,
        **more,
    )  # fmt: skip
