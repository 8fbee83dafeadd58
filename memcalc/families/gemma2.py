"""Gemma 2: gemma with every other layer on a sliding window, norms before and after each part, and capped scores and logits."""

from __future__ import annotations

from typing import Any, ClassVar

from memcalc.families import _kinds_forward as turns
from memcalc.families._alternating import Order, in_turns
from memcalc.families._block_orders import both_norms
from memcalc.families._classic_forward import only_written
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import attention, rotary_width
from memcalc.families._rotary_forward import rotary_of
from memcalc.families._windows import Kinds, LayerType, WindowedConfig, every, listed, stacked, window
from memcalc.families.base import Architecture, Depth, Family, Flag, Size
from memcalc.families.gemma import gemma_norm
from memcalc.layers.basic import RotaryTable, ScaledEmbedding
from memcalc.layers.pointwise import Softcap
from memcalc.layers.transformer import Attention, Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.policy import FLASH_ATTN
from memcalc.play.values import Value


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


def layer_order(machine: Machine, config: Gemma2Config) -> Order:
    """The same from first to last."""
    if config.layer_types is not None:
        return in_turns(config.layer_types)
    return turns.every(machine, config.num_hidden_layers, 2)


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


def play(machine: Machine, architecture: str, config: Gemma2Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A forward, as transformers runs it: attention is written out, as no kernel of torch's caps scores; flash-attn's do."""
    flash = machine.policy.attention == FLASH_ATTN
    if not flash:
        only_written(machine)
    style = Style(
        both_norms, rotary_of(config, rotary_width(config)), window=config.sliding_window,
        order=lambda machine: layer_order(machine, config),
        kinds={kind: block(config, kind) for kind in layer_kinds(config)},
    )  # fmt: skip
    return headed_forward(machine, architecture, config, root, batch, Names(), style, eager=not flash)


FAMILY = Family(
    model_type="gemma2",
    config=Gemma2Config,
    architectures=("Gemma2ForCausalLM", "Gemma2Model", "Gemma2ForSequenceClassification", "Gemma2ForTokenClassification"),
    usual="Gemma2ForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/gemma2/modeling_gemma2.py",
)
