"""RoBERTa and XLM-RoBERTa, which differ in their defaults, and in whether the head or the body is built first."""

from __future__ import annotations

from functools import partial
from typing import Any

from memcalc.families import _encoder_heads as heads
from memcalc.families._encoder import (
    BertLikeConfig,
    Part,
    classification_head,
    embeddings,
    encoder_body,
    task_head,
    vocabulary_head,
)
from memcalc.families._encoder_forward import encoder, roberta_embeddings
from memcalc.families._encoder_heads import Output
from memcalc.families._forward import Batch
from memcalc.families.base import Architecture
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Linear, Parameter, TiedEmbedding, layer_norm
from memcalc.layers.encoder import Transform, WordsLinear
from memcalc.play.machine import Machine
from memcalc.play.reshape import select
from memcalc.play.values import Value
from memcalc.records import replace

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


def play_roberta(machine: Machine, kind: str, config: BertLikeConfig, root: Any, batch: Batch) -> Output:
    """A training forward, as transformers runs it.

    source: transformers 5.23.0 models/roberta/modeling_roberta.py, each class's forward
    """
    body = partial(encoder, embed=roberta_embeddings, decoder=config.is_decoder)
    if kind == "Model":
        return heads.bare(machine, *body(machine, root, batch["input_ids"]))
    if kind in heads.TASKS:
        score = by_first_token if kind == "ForSequenceClassification" else None
        return heads.task(machine, root, "roberta", body, kind, config.num_labels, batch, score)
    hidden, _ = machine.call("roberta", body, machine, root.part("roberta"), batch["input_ids"])
    scores = machine.call("lm_head", heads.vocabulary, machine, root.part("lm_head"), "", hidden)
    loss = heads.causal if kind == "ForCausalLM" else heads.scored
    return loss(machine, scores, batch["labels"])


def by_first_token(machine: Machine, root: Module, hidden: Value, pooled: Any) -> Value:
    """Scores by RoBERTa's or ELECTRA's head (RobertaClassificationHead.forward, ElectraClassificationHead.forward)."""
    return machine.call("classifier", _classified, machine, root.part("classifier"), hidden)  # type: ignore[no-any-return]


def _classified(machine: Machine, head: Module, hidden: Value) -> Value:
    token = select(machine, hidden, 1)
    token = head.part("dropout").play(machine, token)
    token = head.part("").play(machine, token)
    token = head.part("dropout").play(machine, token)
    return machine.call("out_proj", head.part("out_proj").play, machine, token)  # type: ignore[no-any-return]
