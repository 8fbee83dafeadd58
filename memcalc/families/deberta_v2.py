"""DeBERTa v2 and v3: BERT's layers around disentangled attention, with a table of distances shared by all of them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from memcalc.arrays import Count, where
from memcalc.families._deberta_forward import play
from memcalc.families._encoder import EncoderConfig, Part, on_body, task_head, vocabulary_head
from memcalc.families._places import unless_relative
from memcalc.families.base import Architecture, Family, Flag, MaybeZero, Probability, Size
from memcalc.layers.base import Maybe, Module, Stack
from memcalc.layers.basic import Buffer, Conv, Dropout, Embedding, Linear, Parameter, TiedLinear, layer_norm
from memcalc.layers.encoder import DisentangledAttention, SummedEmbeddings, Transform
from memcalc.layers.pointwise import Activation
from memcalc.layers.transformer import MLP, Block

Unset = Annotated[int, Field(strict=True, ge=-1, le=2**40)]
"""A count that configs leave out by writing -1."""


def _words(value: Any) -> Any:
    """``p2c|c2p`` as the list it stands for."""
    return [word.strip() for word in value.lower().split("|")] if isinstance(value, str) else value


class DebertaV2Config(EncoderConfig):
    """source: transformers 5.23.0 models/deberta_v2/configuration_deberta_v2.py; keys it omits, modeling_deberta_v2.py"""

    divides: ClassVar = (("num_attention_heads", "hidden_size"), ("conv_groups", "hidden_size"))

    vocab_size: Size = 128100
    hidden_size: Size = 1536
    num_hidden_layers: Size = 24
    num_attention_heads: Size = 24
    attention_head_size: Size | None = None
    intermediate_size: Size = 6144
    embedding_size: Size | None = None
    type_vocab_size: MaybeZero = 0
    position_biased_input: Flag = True
    relative_attention: Flag = False
    max_relative_positions: Unset = -1
    position_buckets: Unset = -1
    pos_att_type: Annotated[tuple[str, ...], BeforeValidator(_words)] | None = None
    share_att_key: Flag = False
    norm_rel_ebd: Annotated[tuple[str, ...], BeforeValidator(_words)] = ("none",)
    conv_kernel_size: MaybeZero = 0
    conv_groups: Size = 1
    conv_act: str = "tanh"
    pooler_hidden_size: Size | None = None
    pooler_hidden_act: str = "gelu"
    pooler_dropout: Probability = 0.0
    cls_dropout: Probability | None = None
    legacy: Flag = True


def distances(config: DebertaV2Config) -> Count:
    """Rows of the table of distances: both ways, as far as the buckets, the longest distance or the longest sequence reach.

    source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py DebertaV2Encoder.__init__
    """
    longest = where(config.max_relative_positions < 1, config.max_position_embeddings, config.max_relative_positions)
    return 2 * where(config.position_buckets > 0, config.position_buckets, longest)


def block(config: DebertaV2Config) -> Block:
    """One layer; every norm comes after its residual.

    source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py DebertaV2Layer.__init__
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    kinds = config.pos_att_type or ()
    attention = DisentangledAttention(
        hidden,
        heads,
        hidden // heads if config.attention_head_size is None else config.attention_head_size,
        positions=distances(config) if config.relative_attention else None,
        to_position="c2p" in kinds,
        from_position="p2c" in kinds,
        share=config.share_att_key,
        dropout=config.attention_probs_dropout_prob,
        position_dropout=config.hidden_dropout_prob,
    )
    norm, dropout = layer_norm(hidden), Dropout(config.hidden_dropout_prob)
    names = ("intermediate.dense", "output.dense")
    return Block(
        (
            ("attention", attention),
            ("attention.output.dropout", dropout),
            ("attention.output.LayerNorm", norm),
            ("", MLP(hidden, config.intermediate_size, names=names, activation=config.hidden_act)),
            ("output.dropout", dropout),
            ("output.LayerNorm", norm),
        ),
        norms="post",
    )


def embeddings(config: DebertaV2Config, width: Count) -> SummedEmbeddings:
    """Words, perhaps positions and token types, widened where they are narrower than the hidden states.

    source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py DebertaV2Embeddings.__init__
    """
    hidden, positions, types = config.hidden_size, config.max_position_embeddings, config.type_vocab_size
    tables: list[Part] = [("word_embeddings", Embedding(config.vocab_size, width))]
    if config.position_biased_input:
        tables.append(("position_embeddings", Embedding(positions, width)))
    tables.append(("token_type_embeddings", Maybe(types > 0, Embedding(types, width))))
    return SummedEmbeddings(
        tables=tuple(tables),
        projection=(("embed_proj", Maybe(width != hidden, Linear(width, hidden, bias=False))),),
        norm=(("LayerNorm", layer_norm(hidden)),),
        buffers=(("position_ids", Buffer((1, positions), "int64")),),
        dropout=config.hidden_dropout_prob,
    )


def body(config: DebertaV2Config, width: Count) -> Module:
    """Embeddings, layers, the table of distances and perhaps a convolution beside the first layer.

    source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py DebertaV2Encoder.__init__, ConvLayer.__init__
    """
    hidden, kernel = config.hidden_size, config.conv_kernel_size
    parts: list[Part] = [("embeddings", embeddings(config, width))]
    parts.append(("encoder.layer", Stack(block(config), config.num_hidden_layers)))
    if config.relative_attention:
        parts.append(("encoder.rel_embeddings", Embedding(distances(config), hidden)))
    if "layer_norm" in config.norm_rel_ebd:
        parts.append(("encoder.LayerNorm", layer_norm(hidden)))
    convolution = Module(
        [
            ("conv", Conv(hidden, hidden, (kernel,), groups=config.conv_groups, padding=((kernel - 1) // 2,))),
            ("dropout", Dropout(config.hidden_dropout_prob)),
            ("activation", Activation(config.conv_act)),
            ("LayerNorm", layer_norm(hidden)),
        ]
    )
    return Module([*parts, ("encoder.conv", Maybe(kernel > 0, convolution))])


def legacy_head(config: DebertaV2Config, width: Count) -> tuple[Part, dict[str, str]]:
    """BERT's head over the vocabulary, as wide as the embeddings.

    source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py LegacyDebertaV2LMPredictionHead.__init__
    """
    transform = Transform(("dense", Linear(config.hidden_size, width)), config.hidden_act, ("LayerNorm", layer_norm(width)))
    words, at = "deberta.embeddings.word_embeddings.weight", "cls.predictions"
    head, tied = vocabulary_head(config, ("transform", transform), at=at, words=words, width=width)
    return (at, head), tied


def head_on_words(config: DebertaV2Config) -> Part:
    """The newer head, which multiplies by the words' table without owning a matrix of its own, tied or not.

    source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py DebertaV2LMPredictionHead
    """
    hidden = config.hidden_size
    transform = Transform(("dense", Linear(hidden, hidden)), config.hidden_act, ("LayerNorm", layer_norm(hidden)))
    bias = Parameter((config.vocab_size,), kind="linear")
    return ("lm_predictions.lm_head", Module([("bias", bias), ("", transform), ("", TiedLinear(hidden, config.vocab_size))]))


def pooled_head(config: DebertaV2Config, kind: str) -> tuple[Part, ...]:
    """The first token through a matrix of its own width, then the classes.

    source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py ContextPooler.__init__
    """
    width = config.hidden_size if config.pooler_hidden_size is None else config.pooler_hidden_size
    pooler: list[Part] = [
        ("dropout", Dropout(config.pooler_dropout)),
        ("dense", Linear(width, width)),
        ("activation", Activation(config.pooler_hidden_act)),
    ]
    dropout = config.hidden_dropout_prob if config.cls_dropout is None else config.cls_dropout
    return (("pooler", Module(pooler)), *task_head(kind, config.hidden_size, config.num_labels, dropout))


def build(config: DebertaV2Config, architecture: str) -> Architecture:
    """The encoder under its head."""
    kind = architecture.removeprefix("DebertaV2")
    width = config.hidden_size if config.embedding_size is None else config.embedding_size
    encoder = body(config, width)
    if kind == "Model":
        return Architecture(encoder)
    if kind == "ForMaskedLM" and config.legacy:
        head, tied = legacy_head(config, width)
        return on_body("deberta", encoder, [head], tied)
    if kind == "ForMaskedLM":
        return on_body("deberta", encoder, [head_on_words(config)])
    if kind in ("ForSequenceClassification", "ForMultipleChoice"):
        return on_body("deberta", encoder, pooled_head(config, kind))
    return on_body("deberta", encoder, task_head(kind, config.hidden_size, config.num_labels, config.hidden_dropout_prob))


FAMILY = Family(
    model_type="deberta-v2",
    config=DebertaV2Config,
    architectures=(
        "DebertaV2ForMaskedLM",
        "DebertaV2Model",
        "DebertaV2ForSequenceClassification",
        "DebertaV2ForTokenClassification",
        "DebertaV2ForQuestionAnswering",
        "DebertaV2ForMultipleChoice",
    ),
    usual="DebertaV2ForMaskedLM",
    build=build,
    source="transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py",
    play=play,
    places=unless_relative,
)
