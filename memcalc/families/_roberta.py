"""RoBERTa and XLM-RoBERTa, which differ in their defaults, and in whether the head or the body is built first."""

from __future__ import annotations

from dataclasses import replace

from memcalc.families._encoder import (
    BertLikeConfig,
    Part,
    classification_head,
    embeddings,
    encoder_body,
    task_head,
    vocabulary_head,
)
from memcalc.families.base import Architecture
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Linear, Parameter, TiedEmbedding, layer_norm
from memcalc.layers.encoder import Transform, WordsLinear

WORDS = "roberta.embeddings.word_embeddings.weight"
BEFORE_POSITIONS = ("word_embeddings", "token_type_embeddings", "LayerNorm")
"""What RobertaEmbeddings builds before its positions, which are summed in before the norm all the same."""


def roberta(config: BertLikeConfig, kind: str, *, head_first: bool) -> Architecture:
    """The body, or the body under its head; a parameter shared by both goes by the name of whichever is built first.

    source: transformers 5.23.0 models/roberta/modeling_roberta.py, models/xlm_roberta/modeling_xlm_roberta.py
    """
    words: Layer | None = None
    tied: dict[str, str] = {}
    if kind in ("ForMaskedLM", "ForCausalLM"):
        head, tied, words = lm_head(config, head_first=head_first)
        parts: tuple[Part, ...] = (("lm_head", head),)
    elif kind == "ForSequenceClassification":
        parts = (("classifier", classification_head(config, "tanh")),)
    elif kind == "Model":
        parts = ()
    else:
        dropout = config.head_dropout if kind == "ForTokenClassification" else config.hidden_dropout_prob
        parts = task_head(kind, config.hidden_size, config.num_labels, dropout)
    embedded = replace(embeddings(config, config.hidden_size, words), registered=BEFORE_POSITIONS)
    body = encoder_body(config, embedded, pooler=kind in ("Model", "ForMultipleChoice"))
    if not parts:
        return Architecture(body)
    first = tuple(name for name, _ in parts) if head_first else ()
    return Architecture(Module([("roberta", body), *parts], first), tied)


def lm_head(config: BertLikeConfig, *, head_first: bool) -> tuple[Module, dict[str, str], Layer | None]:
    """The head over the vocabulary, what it ties, and what stands in for the body's word embeddings, if anything does.

    source: transformers 5.23.0 models/roberta/modeling_roberta.py RobertaLMHead.__init__
    """
    hidden, vocabulary = config.hidden_size, config.vocab_size
    transform: Part = ("", Transform(("dense", Linear(hidden, hidden)), "gelu", ("layer_norm", layer_norm(hidden))))
    if not (config.tie_word_embeddings and head_first):
        return *vocabulary_head(config, transform, at="lm_head", words=WORDS), None
    tied = {WORDS: "lm_head.decoder.weight", "lm_head.decoder.bias": "lm_head.bias"}
    bias: Part = ("bias", Parameter((vocabulary,), kind="linear"))
    head = Module([bias, transform, ("decoder", WordsLinear(hidden, vocabulary))])
    return head, tied, TiedEmbedding(vocabulary, hidden)
