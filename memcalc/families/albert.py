"""ALBERT: a few groups of layers, each run many times, behind embeddings narrower than the hidden states."""

from __future__ import annotations

from memcalc.families._encoder import EncoderConfig, Part, embeddings, on_body, task_head, vocabulary_head
from memcalc.families.base import Architecture, Family, Flag, Probability, Size
from memcalc.layers.base import Module, Stack
from memcalc.layers.basic import Dropout, Linear, layer_norm
from memcalc.layers.encoder import Reused, Transform
from memcalc.layers.pointwise import Activation
from memcalc.layers.transformer import MLP, Attention, Block


class AlbertConfig(EncoderConfig):
    """source: transformers 5.23.0 models/albert/configuration_albert.py"""

    vocab_size: Size = 30000
    embedding_size: Size = 128
    hidden_size: Size = 4096
    num_hidden_layers: Size = 12
    num_hidden_groups: Size = 1
    inner_group_num: Size = 1
    num_attention_heads: Size = 64
    intermediate_size: Size = 16384
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: Probability = 0.0
    attention_probs_dropout_prob: Probability = 0.0
    classifier_dropout_prob: Probability = 0.1
    tie_word_embeddings: Flag = True


def block(config: AlbertConfig) -> Block:
    """One layer; every norm comes after its residual.

    source: transformers 5.23.0 models/albert/modeling_albert.py AlbertLayer.__init__, AlbertAttention.__init__
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    attention = Attention(
        hidden, heads, heads, hidden // heads, bias=True, output_bias=True, dropout=config.attention_probs_dropout_prob,
        names={"q": "query", "k": "key", "v": "value", "o": "dense"}, causal=False,
    )  # fmt: skip
    norm, dropout = layer_norm(hidden), Dropout(config.hidden_dropout_prob)
    return Block(
        (
            ("attention", attention),
            ("attention.output_dropout", dropout),
            ("attention.LayerNorm", norm),
            ("", MLP(hidden, config.intermediate_size, names=("ffn", "ffn_output"), activation=config.hidden_act)),
            ("dropout", dropout),
            ("full_layer_layer_norm", norm),
        ),
        norms="post",
        registered=("full_layer_layer_norm",),
    )


def body(config: AlbertConfig, *, pooler: bool) -> Module:
    """Embeddings, the matrix that widens them, the groups, and perhaps a pooler.

    source: transformers 5.23.0 models/albert/modeling_albert.py AlbertTransformer.forward, AlbertModel.__init__
    """
    group = Stack(block(config), config.inner_group_num)
    groups = Stack(Module([("albert_layers", group)]), config.num_hidden_groups)
    parts: list[Part] = [
        ("embeddings", embeddings(config, config.embedding_size)),
        ("encoder.embedding_hidden_mapping_in", Linear(config.embedding_size, config.hidden_size)),
        # every pass is a whole group, inner layers and all
        ("encoder.albert_layer_groups", Reused(groups, config.num_hidden_layers)),
    ]
    if pooler:
        parts += [("pooler", Linear(config.hidden_size, config.hidden_size)), ("pooler_activation", Activation("tanh"))]
    return Module(parts)


def predictions(config: AlbertConfig) -> tuple[Module, dict[str, str]]:
    """The head over the vocabulary, which narrows first, and what it ties.

    source: transformers 5.23.0 models/albert/modeling_albert.py AlbertMLMHead.__init__
    """
    width = config.embedding_size
    norm = ("LayerNorm", layer_norm(width))
    transform = Transform(("dense", Linear(config.hidden_size, width)), config.hidden_act, norm, norm_first=True)
    words = "albert.embeddings.word_embeddings.weight"
    return vocabulary_head(config, ("", transform), at="predictions", words=words, width=width)


POOLED = ("Model", "ForPreTraining", "ForSequenceClassification", "ForMultipleChoice")
"""The heads whose body keeps its pooler (modeling_albert.py: add_pooling_layer)."""


def build(config: AlbertConfig, architecture: str) -> Architecture:
    """The encoder under its head."""
    kind = architecture.removeprefix("Albert")
    encoder = body(config, pooler=kind in POOLED)
    dropout = config.classifier_dropout_prob
    if kind == "Model":
        return Architecture(encoder)
    if kind in ("ForMaskedLM", "ForPreTraining"):
        head, tied = predictions(config)
        parts: list[Part] = [("predictions", head)]
        if kind == "ForPreTraining":
            order = Module([("dropout", Dropout(dropout)), ("classifier", Linear(config.hidden_size, config.num_labels))])
            parts.append(("sop_classifier", order))
        return on_body("albert", encoder, parts, tied)
    return on_body("albert", encoder, task_head(kind, config.hidden_size, config.num_labels, dropout))


FAMILY = Family(
    model_type="albert",
    config=AlbertConfig,
    architectures=(
        "AlbertForMaskedLM",
        "AlbertModel",
        "AlbertForPreTraining",
        "AlbertForSequenceClassification",
        "AlbertForTokenClassification",
        "AlbertForQuestionAnswering",
        "AlbertForMultipleChoice",
    ),
    usual="AlbertForMaskedLM",
    build=build,
    source="transformers 5.23.0 models/albert/modeling_albert.py",
)
