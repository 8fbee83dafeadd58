"""StarCoder2: layer normalisations, a plain MLP, biases throughout and two key-value heads, its embeddings tied."""

from __future__ import annotations

from memcalc.families._decoder import decoder_architecture
from memcalc.families._rotary_decoder import RotaryDecoderConfig, attention, rotary_width
from memcalc.families.base import Architecture, Family, Flag, MaybeZero, Probability, Size
from memcalc.layers.base import Module
from memcalc.layers.basic import Dropout, RotaryTable, layer_norm
from memcalc.layers.transformer import MLP, Block


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
    source="transformers 5.23.0 models/starcoder2/modeling_starcoder2.py",
)
