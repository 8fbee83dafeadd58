"""Gemma 2: gemma with every other layer on a sliding window, norms before and after each part, and capped scores and logits."""

from __future__ import annotations

from typing import ClassVar

from memcalc.families._decoder import decoder_architecture
from memcalc.families._rotary_decoder import attention, rotary_width
from memcalc.families._windows import Kinds, LayerType, WindowedConfig, every, listed, stacked, window
from memcalc.families.base import Architecture, Depth, Family, Flag, Size
from memcalc.families.gemma import gemma_norm
from memcalc.layers.basic import RotaryTable, ScaledEmbedding
from memcalc.layers.pointwise import Softcap
from memcalc.layers.transformer import Attention, Block, GatedMLP


class Gemma2Config(WindowedConfig):
    """source: transformers 5.23.0 models/gemma2/configuration_gemma2.py"""

    divides: ClassVar[tuple[tuple[str, str], ...]] = (
        ("num_attention_heads", "hidden_size"),
        ("num_key_value_heads", "num_attention_heads"),
    )
    """transformers refuses other heads even though the head size is a key of its own (validate_architecture)."""

    vocab_size: Size = 256000
    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    num_hidden_layers: Depth = 26
    num_attention_heads: Size = 8
    num_key_value_heads: Size = 4
    head_dim: Size = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: Flag = False
    tie_word_embeddings: Flag = True
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    use_bidirectional_attention: Flag | None = None


def layer_kinds(config: Gemma2Config) -> Kinds:
    """The even layers slide, unless the config lists the types."""
    return every(config.num_hidden_layers, 2) if config.layer_types is None else listed(config.layer_types)


def gemma_block(hidden: int, self_attention: Attention, mlp: GatedMLP) -> Block:
    """One decoder layer, four norms around its two parts."""
    return Block(
        (
            ("self_attn", self_attention),
            ("mlp", mlp),
            ("input_layernorm", gemma_norm(hidden)),
            ("post_attention_layernorm", gemma_norm(hidden)),
            ("pre_feedforward_layernorm", gemma_norm(hidden)),
            ("post_feedforward_layernorm", gemma_norm(hidden)),
        ),
        norms="both",
    )


def block(config: Gemma2Config, layer_type: LayerType) -> Block:
    """One decoder layer of a type."""
    self_attention = attention(
        config, bias=config.attention_bias, output_bias=config.attention_bias, window=window(config, layer_type),
        causal=not config.use_bidirectional_attention, softcap=config.attn_logit_softcapping,
    )  # fmt: skip
    mlp = GatedMLP(config.hidden_size, config.intermediate_size, activation=config.hidden_activation)
    return gemma_block(config.hidden_size, self_attention, mlp)


def caps(final_logit_softcapping: float | None) -> tuple[Softcap, ...]:
    """What happens to the logits."""
    return () if final_logit_softcapping is None else (Softcap(final_logit_softcapping),)


def build(config: Gemma2Config, architecture: str) -> Architecture:
    """The decoder under its head."""
    layers = stacked(layer_kinds(config), lambda layer_type: block(config, layer_type))
    return decoder_architecture(
        config, architecture, layers, gemma_norm(config.hidden_size), rotary=RotaryTable(rotary_width(config)),
        embedding=ScaledEmbedding(config.vocab_size, config.hidden_size), after_head=caps(config.final_logit_softcapping),
    )  # fmt: skip


FAMILY = Family(
    model_type="gemma2",
    config=Gemma2Config,
    architectures=("Gemma2ForCausalLM", "Gemma2Model", "Gemma2ForSequenceClassification", "Gemma2ForTokenClassification"),
    usual="Gemma2ForCausalLM",
    build=build,
    source="transformers 5.23.0 models/gemma2/modeling_gemma2.py",
)
