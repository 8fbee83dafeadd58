"""StarCoder2: layer normalisations, a plain MLP, biases throughout and two key-value heads, its embeddings tied."""

from __future__ import annotations

from typing import Any

from memcalc.families._block_orders import ending_in_dropout
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import RotaryDecoderConfig, attention, rotary_width
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Family, Flag, MaybeZero, Probability, Size
from memcalc.layers.base import Module
from memcalc.layers.basic import Dropout, RotaryTable, layer_norm
from memcalc.layers.transformer import MLP, Block
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class Starcoder2Config(RotaryDecoderConfig):
    """source: transformers 5.23.0 models/starcoder2/configuration_starcoder2.py"""

    vocab_size: Size = 49152
    hidden_size: Size = 3072
    intermediate_size: Size = 12288
    num_hidden_layers: Size = 30
    num_attention_heads: Size = 24
    num_key_value_heads: Size = 2
    hidden_act: str = "gelu_pytorch_tanh"
    sliding_window: MaybeZero | None = None
    residual_dropout: Probability = 0.0
    embedding_dropout: Probability = 0.0
    use_bias: Flag = True
    tie_word_embeddings: Flag = True


def block(config: Starcoder2Config) -> Block:
    """One decoder layer; a dropout that is a plain function ends attention and MLP alike."""
    hidden, bias = config.hidden_size, config.use_bias
    self_attention = attention(config, bias=bias, output_bias=bias, window=config.sliding_window)
    mlp = MLP(hidden, config.intermediate_size, bias, activation=config.hidden_act)
    dropout = Dropout(config.residual_dropout)
    return Block(
        (
            ("self_attn", Module([("", self_attention), ("", dropout)])),
            ("mlp", Module([("", mlp), ("", dropout)])),
            ("input_layernorm", layer_norm(hidden)),
            ("post_attention_layernorm", layer_norm(hidden)),
        )
    )


def build(config: Starcoder2Config, architecture: str) -> Architecture:
    """The decoder under its head."""
    return decoder_architecture(
        config, architecture, block(config), layer_norm(config.hidden_size), rotary=RotaryTable(rotary_width(config)),
        before_layers=(("", Dropout(config.embedding_dropout)),),
    )  # fmt: skip


def play(machine: Machine, architecture: str, config: Starcoder2Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    style = Style(ending_in_dropout, rotary_of(config, rotary_width(config)), window=config.sliding_window, dropout="")
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


FAMILY = Family(
    model_type="starcoder2",
    config=Starcoder2Config,
    architectures=(
        "Starcoder2ForCausalLM",
        "Starcoder2Model",
        "Starcoder2ForSequenceClassification",
        "Starcoder2ForTokenClassification",
    ),
    usual="Starcoder2ForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/starcoder2/modeling_starcoder2.py",
)
