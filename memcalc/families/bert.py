"""BERT: post-norm encoder with learned positions, token types and a pooler."""

from __future__ import annotations

from functools import partial
from typing import Any

from memcalc.families import _encoder_heads as heads
from memcalc.families._encoder import BertLikeConfig, Part, embeddings, encoder_body, on_body, task_head, vocabulary_head
from memcalc.families._encoder_forward import encoder
from memcalc.families._encoder_heads import Output
from memcalc.families._forward import Batch
from memcalc.families._idle import under
from memcalc.families._places import learned
from memcalc.families.base import Architecture, Family
from memcalc.layers.base import Module
from memcalc.layers.basic import Linear, layer_norm
from memcalc.layers.encoder import Transform
from memcalc.play.machine import Machine


class BertConfig(BertLikeConfig):
    """source: transformers 5.23.0 models/bert/configuration_bert.py"""


POOLED = ("Model", "ForPreTraining", "ForNextSentencePrediction", "ForSequenceClassification", "ForMultipleChoice")
"""The heads whose body keeps its pooler (modeling_bert.py: add_pooling_layer)."""


def predictions(config: BertConfig) -> tuple[Module, dict[str, str]]:
    """The masked language model's head and what it ties.

    source: transformers 5.23.0 models/bert/modeling_bert.py BertLMPredictionHead.__init__
    """
    hidden = config.hidden_size
    transform = Transform(("dense", Linear(hidden, hidden)), config.hidden_act, ("LayerNorm", layer_norm(hidden)))
    words = "bert.embeddings.word_embeddings.weight"
    return vocabulary_head(config, ("transform", transform), at="cls.predictions", words=words)


def build(config: BertConfig, architecture: str) -> Architecture:
    """The encoder under its head."""
    kind = architecture.removeprefix("Bert")
    body = encoder_body(config, embeddings(config, config.hidden_size), pooler=kind in POOLED)
    next_sentence: Part = ("cls.seq_relationship", Linear(config.hidden_size, 2))
    if kind == "Model":
        return Architecture(body)
    if kind in ("ForPreTraining", "ForMaskedLM", "LMHeadModel"):
        head, tied = predictions(config)
        parts: list[Part] = [("cls.predictions", head)]
        if kind == "ForPreTraining":
            parts.append(next_sentence)
        return on_body("bert", body, parts, tied)
    if kind == "ForNextSentencePrediction":
        return on_body("bert", body, [next_sentence])
    return on_body("bert", body, task_head(kind, config.hidden_size, config.num_labels, config.head_dropout))


def play(machine: Machine, architecture: str, config: BertConfig, root: Any, batch: Batch) -> Output:
    """A training forward, as transformers runs it.

    source: transformers 5.23.0 models/bert/modeling_bert.py, each class's forward
    """
    kind = architecture.removeprefix("Bert")
    if kind == "Model":
        return heads.bare(machine, *encoder(machine, root, batch["input_ids"], decoder=config.is_decoder))
    if kind in heads.TASKS:
        body = partial(encoder, decoder=config.is_decoder)
        return heads.task(machine, root, "bert", body, kind, config.num_labels, batch)
    hidden, pooled = machine.call("bert", encoder, machine, root.part("bert"), batch["input_ids"], decoder=config.is_decoder)
    if kind == "ForNextSentencePrediction":
        pair = machine.call("cls.seq_relationship", root.part("cls.seq_relationship").play, machine, pooled)
        return heads.scored(machine, pair, batch["labels"])
    at = "cls.predictions"
    scores = machine.call(at, heads.vocabulary, machine, root.part(at), "transform", hidden)
    if kind == "ForPreTraining":
        pair = machine.call("cls.seq_relationship", root.part("cls.seq_relationship").play, machine, pooled)
        return heads.two(machine, scores, batch["labels"], pair, batch["next_sentence_label"])
    loss = heads.causal if kind == "LMHeadModel" else heads.scored
    return loss(machine, scores, batch["labels"])


FAMILY = Family(
    model_type="bert",
    config=BertConfig,
    architectures=(
        "BertForMaskedLM",
        "BertModel",
        "BertForPreTraining",
        "BertLMHeadModel",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "BertForMultipleChoice",
    ),
    usual="BertForMaskedLM",
    build=build,
    source="transformers 5.23.0 models/bert/modeling_bert.py",
    play=play,
    places=learned,
    idle=under(BertModel=("pooler",)),  # the loss is of the last states
)
