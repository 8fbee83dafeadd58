"""T5 and mT5: pre-norm encoder and decoder without biases, positions in a table the first layer of each adds to its scores."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from memcalc.families._alternating import alternating, periodic
from memcalc.families.base import Architecture, FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Dropout, Embedding, Linear, TiedEmbedding, TiedLinear, rms_norm
from memcalc.layers.encoder import Transform
from memcalc.layers.transformer import MLP, Attention, Block, GatedMLP
from memcalc.tensors import Span


def _feed_forward(words: str) -> str:
    kind, *rest = words.split("-")
    if rest and (kind != "gated" or len(rest) > 1):
        raise ValueError("is neither an activation nor gated-<activation>")
    return words


FeedForward = Annotated[str, AfterValidator(_feed_forward)]
"""An activation, or one that gates."""


class T5LikeConfig(FamilyConfig):
    """The keys of T5, which mT5 keeps.

    source: transformers 5.23.0 models/t5/configuration_t5.py

    ``tie_word_embeddings: false``, which the configs of T5 v1.1, Flan-T5, mT5 and mT0 carry, is taken at its word: their
    checkpoints hold a head of their own. transformers 5 builds them tied all the same when it is given the config alone
    (T5Config.__post_init__), and says so in the config it writes.

    A decoder's depth left out is the encoder's, whichever word the latter is spelled with.
    """

    aliases: ClassVar = {
        "d_model": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "d_kv": "head_dim",
        "intermediate_size": "d_ff",
    }  # fmt: skip
    divides: ClassVar = ()

    vocab_size: Size = 32128
    hidden_size: Size = 512
    num_hidden_layers: Size = 6
    num_decoder_layers: Size | None = None
    num_attention_heads: Size = 8
    head_dim: Size = 64
    d_ff: Size = 2048
    feed_forward_proj: FeedForward = "relu"
    relative_attention_num_buckets: Size = 32
    dropout_rate: Probability = 0.1
    classifier_dropout: Probability = 0.0
    tie_word_embeddings: Flag = True


def feed_forward(config: T5LikeConfig) -> Layer:
    """Two matrices, or three with a gate.

    source: transformers 5.23.0 models/t5/modeling_t5.py T5DenseActDense, T5DenseGatedActDense; T5Config.__post_init__
    """
    hidden, wide, dropout = config.hidden_size, config.d_ff, config.dropout_rate
    kind, _, activation = config.feed_forward_proj.rpartition("-")
    if kind != "gated":
        return MLP(hidden, wide, bias=False, names=("wi", "wo"), activation=activation, dropout=dropout)
    activation = "gelu_new" if activation == "gelu" else activation
    return GatedMLP(hidden, wide, names=("wi_0", "wi_1", "wo"), activation=activation, dropout=dropout)


def attention(config: T5LikeConfig, *, table: bool = False, causal: bool = False, cross: bool = False) -> Attention:
    """Attention to the sequence itself or to the encoder's; ``table`` for the layer that holds the biases all share.

    source: transformers 5.23.0 models/t5/modeling_t5.py T5Attention.__init__
    """
    heads = config.num_attention_heads
    biases = (("relative_attention_bias", Embedding(config.relative_attention_num_buckets, heads)),) if table else ()
    return Attention(
        config.hidden_size, heads, heads, config.head_dim, names={name: name for name in "qkvo"}, extra=biases,
        dropout=config.dropout_rate, causal=causal, cross=cross, added_bias=True,
    )  # fmt: skip


def block(config: T5LikeConfig, *, table: bool, decoder: bool) -> Block:
    """One layer.

    source: transformers 5.23.0 models/t5/modeling_t5.py T5Block.__init__
    """
    norm, dropout = rms_norm(config.hidden_size), Dropout(config.dropout_rate)
    branches: list[tuple[str, Layer]] = [("SelfAttention", attention(config, table=table, causal=decoder))]
    if decoder:
        branches.append(("EncDecAttention", attention(config, cross=True)))
    branches.append(("DenseReluDense", feed_forward(config)))
    parts: list[tuple[str, Layer]] = []
    for index, (name, branch) in enumerate(branches):
        at = f"layer.{index}"
        parts += [(f"{at}.{name}", branch), (f"{at}.dropout", dropout), (f"{at}.layer_norm", norm)]
    return Block(tuple(parts))


def stack(config: T5LikeConfig, *, decoder: bool) -> Module:
    """The encoder or the decoder, which looks words up in a table that is not its own.

    source: transformers 5.23.0 models/t5/modeling_t5.py T5Stack.__init__
    """
    depth = config.num_hidden_layers
    if decoder and config.num_decoder_layers is not None:
        depth = config.num_decoder_layers
    layers = alternating(
        (block(config, table=True, decoder=decoder), Span(1, (0,))),
        (block(config, table=False, decoder=decoder), periodic(depth, 1, first=1)),
    )
    dropout = Dropout(config.dropout_rate)
    return Module(
        [
            ("embed_tokens", TiedEmbedding(config.vocab_size, config.hidden_size)),
            ("dropout", dropout),
            ("block", layers),
            ("final_layer_norm", rms_norm(config.hidden_size)),
            ("dropout", dropout),
        ]
    )


def body(config: T5LikeConfig, *, decoder: bool = True) -> tuple[Module, dict[str, str]]:
    """The words' table, the encoder and perhaps the decoder, and what they share."""
    parts: list[tuple[str, Layer]] = [("shared", Embedding(config.vocab_size, config.hidden_size))]
    sides = ("encoder", "decoder") if decoder else ("encoder",)
    parts += [(side, stack(config, decoder=side == "decoder")) for side in sides]
    return Module(parts), {f"{side}.embed_tokens.weight": "shared.weight" for side in sides}


def t5(config: T5LikeConfig, kind: str) -> Architecture:
    """The body under the head that ``kind``, a class name without its family, asks for.

    source: transformers 5.23.0 models/t5/modeling_t5.py
    """
    hidden, dropout = config.hidden_size, Dropout(config.classifier_dropout)
    both, tied = body(config, decoder=kind not in ("EncoderModel", "ForTokenClassification"))
    inside = {f"transformer.{name}": f"transformer.{other}" for name, other in tied.items()}
    if kind in ("Model", "EncoderModel"):
        return Architecture(both, tied)
    if kind == "ForQuestionAnswering":
        return Architecture(Module([("", both), ("qa_outputs", Linear(hidden, config.num_labels))]), tied)
    if kind == "ForTokenClassification":
        classifier = Linear(hidden, config.num_labels)
        return Architecture(Module([("transformer", both), ("dropout", dropout), ("classifier", classifier)]), inside)
    if kind == "ForSequenceClassification":
        transform, classes = Transform(("dense", Linear(hidden, hidden)), "tanh"), Linear(hidden, config.num_labels)
        pooled = Module([("dropout", dropout), ("", transform), ("dropout", dropout), ("out_proj", classes)])
        return Architecture(Module([("transformer", both), ("classification_head", pooled)]), inside)
    assert kind == "ForConditionalGeneration", kind
    if config.tie_word_embeddings:
        tied = {**tied, "lm_head.weight": "shared.weight"}
        return Architecture(Module([("", both), ("lm_head", TiedLinear(hidden, config.vocab_size))]), tied)
    return Architecture(Module([("", both), ("lm_head", Linear(hidden, config.vocab_size, bias=False))]), tied)
