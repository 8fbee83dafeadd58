"""What BART and Whisper share: the keys of an encoder and a decoder side by side, and their layers."""

from __future__ import annotations

from typing import ClassVar, Literal

from memcalc.arrays import Count
from memcalc.families.base import FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Layer
from memcalc.layers.basic import Dropout, layer_norm
from memcalc.layers.transformer import MLP, Attention, Block

Norms = Literal["pre", "post"]


class Seq2SeqConfig(FamilyConfig):
    """The keys both have; each sets its own defaults.

    source: transformers 5.23.0 models/bart/configuration_bart.py, models/whisper/configuration_whisper.py (attribute_map)
    """

    aliases: ClassVar = {
        "d_model": "hidden_size", "encoder_layers": "num_hidden_layers", "encoder_attention_heads": "num_attention_heads",
    }  # fmt: skip
    divides: ClassVar = (("num_attention_heads", "hidden_size"), ("decoder_attention_heads", "hidden_size"))

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    encoder_ffn_dim: Size
    decoder_layers: Size
    decoder_attention_heads: Size
    decoder_ffn_dim: Size
    activation_function: str = "gelu"
    dropout: Probability
    attention_dropout: Probability = 0.0
    activation_dropout: Probability = 0.0
    tie_word_embeddings: Flag = True


def attention(config: Seq2SeqConfig, heads: Count, *, key_bias: bool, causal: bool = False, cross: bool = False) -> Attention:
    """Attention whose matrices are registered keys first.

    source: transformers 5.23.0 models/bart/modeling_bart.py BartAttention, models/whisper/modeling_whisper.py WhisperAttention
    """
    return Attention(
        config.hidden_size, heads, heads, config.hidden_size // heads, bias=True, output_bias=True, key_bias=key_bias,
        names={"k": "k_proj", "v": "v_proj", "q": "q_proj", "o": "out_proj"},
        dropout=config.attention_dropout, causal=causal, cross=cross,
    )  # fmt: skip


def block(config: Seq2SeqConfig, *, decoder: bool, norms: Norms, key_bias: bool = True) -> Block:
    """One layer of the encoder or of the decoder, which attends to the encoder as well.

    source: transformers 5.23.0 models/bart/modeling_bart.py BartEncoderLayer, BartDecoderLayer; Whisper's likewise
    """
    hidden, dropout, norm = config.hidden_size, Dropout(config.dropout), layer_norm(config.hidden_size)
    heads = config.decoder_attention_heads if decoder else config.num_attention_heads
    branches = {"self_attn": attention(config, heads, key_bias=key_bias, causal=decoder)}
    if decoder:
        branches["encoder_attn"] = attention(config, heads, key_bias=key_bias, cross=True)
    feed_forward = MLP(
        hidden, config.decoder_ffn_dim if decoder else config.encoder_ffn_dim, names=("fc1", "fc2"),
        activation=config.activation_function, dropout=config.activation_dropout,
    )  # fmt: skip
    parts: list[tuple[str, Layer]] = []
    for name, branch in branches.items():
        parts += [(name, branch), ("dropout", dropout), (f"{name}_layer_norm", norm)]
    return Block((*parts, ("", feed_forward), ("dropout", dropout), ("final_layer_norm", norm)), norms=norms)
