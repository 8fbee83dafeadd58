"""ELECTRA: BERT's layers behind embeddings of their own width, as a discriminator or a generator."""

from __future__ import annotations

from functools import partial
from typing import Any

from memcalc.families import _encoder_heads as heads
from memcalc.families._encoder import (
    BertLikeConfig,
    Part,
    block,
    classification_head,
    embeddings,
    on_body,
    task_head,
)
from memcalc.families._encoder_forward import encoder
from memcalc.families._encoder_heads import Output
from memcalc.families._forward import Batch
from memcalc.families._idle import under
from memcalc.families._places import learned
from memcalc.families._roberta import by_first_token
from memcalc.families.base import Architecture, Family, Flag, Probability, Size
from memcalc.layers.base import Layer, Maybe, Module, Stack
from memcalc.layers.basic import Dropout, Linear, TiedLinear, layer_norm
from memcalc.layers.encoder import Transform
from memcalc.layers.pointwise import Activation
from memcalc.play.losses import binary_cross_entropy
from memcalc.play.machine import Machine
from memcalc.play.pointwise import to
from memcalc.play.reshape import select
from memcalc.play.values import Value


class ElectraConfig(BertLikeConfig):
    """source: transformers 5.23.0 models/electra/configuration_electra.py"""

    embedding_size: Size = 128
    hidden_size: Size = 256
    num_attention_heads: Size = 4
    intermediate_size: Size = 1024
    summary_use_proj: Flag = True
    summary_proj_to_labels: Flag = False
    summary_activation: str | None = "gelu"
    summary_last_dropout: Probability = 0.1


def body(config: ElectraConfig) -> Module:
    """Embeddings, widened where they are narrower, and the layers; no pooler.

    source: transformers 5.23.0 models/electra/modeling_electra.py ElectraModel.__init__
    """
    widens = config.embedding_size != config.hidden_size
    return Module(
        [
            ("embeddings", embeddings(config, config.embedding_size)),
            ("embeddings_project", Maybe(widens, Linear(config.embedding_size, config.hidden_size))),
            ("encoder.layer", Stack(block(config), config.num_hidden_layers)),
        ]
    )


def generator_head(config: ElectraConfig) -> tuple[tuple[Part, ...], dict[str, str]]:
    """The head over the vocabulary, which narrows first, and what it ties.

    source: transformers 5.23.0 models/electra/modeling_electra.py ElectraGeneratorPredictions, ElectraForMaskedLM
    """
    width, tied = config.embedding_size, config.tie_word_embeddings
    dense = ("dense", Linear(config.hidden_size, width))
    transform = Transform(dense, "gelu", ("LayerNorm", layer_norm(width)), norm_first=True)
    head: Layer = TiedLinear(width, config.vocab_size, bias=True) if tied else Linear(width, config.vocab_size)
    shared = {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"} if tied else {}
    return (("generator_predictions", transform), ("generator_lm_head", head)), shared


def discriminator_head(config: ElectraConfig) -> tuple[Part, ...]:
    """One score a token: replaced or not.

    source: transformers 5.23.0 models/electra/modeling_electra.py ElectraDiscriminatorPredictions.__init__
    """
    transform = Transform(("dense", Linear(config.hidden_size, config.hidden_size)), config.hidden_act)
    return (("discriminator_predictions", Module([("", transform), ("dense_prediction", Linear(config.hidden_size, 1))])),)


def choice_head(config: ElectraConfig) -> tuple[Part, ...]:
    """A summary of each choice and its score.

    source: transformers 5.23.0 models/electra/modeling_electra.py ElectraSequenceSummary.__init__
    """
    parts: list[Part] = []
    if config.summary_use_proj:
        # a projection to labels asks for there being any
        to_labels = Maybe(config.num_labels > 0, Linear(config.hidden_size, config.num_labels))
        to_hidden = Maybe(config.num_labels == 0, Linear(config.hidden_size, config.hidden_size))
        if config.summary_proj_to_labels:
            parts += [("summary", to_labels), ("summary", to_hidden)]
        else:
            parts.append(("summary", Linear(config.hidden_size, config.hidden_size)))
    if config.summary_activation:
        parts.append(("activation", Activation(config.summary_activation)))
    parts.append(("last_dropout", Dropout(config.summary_last_dropout)))
    return (("sequence_summary", Module(parts)), ("classifier", Linear(config.hidden_size, 1)))


def build(config: ElectraConfig, architecture: str) -> Architecture:
    """The encoder under its head."""
    kind = architecture.removeprefix("Electra")
    encoder = body(config)
    if kind == "Model":
        return Architecture(encoder)
    if kind in ("ForMaskedLM", "ForCausalLM"):
        return on_body("electra", encoder, *generator_head(config))
    if kind == "ForPreTraining":
        return on_body("electra", encoder, discriminator_head(config))
    if kind == "ForMultipleChoice":
        return on_body("electra", encoder, choice_head(config))
    if kind == "ForSequenceClassification":
        return on_body("electra", encoder, [("classifier", classification_head(config, "gelu"))])
    return on_body("electra", encoder, task_head(kind, config.hidden_size, config.num_labels, config.head_dropout))


def discriminator(machine: Machine, head: Module, hidden: Value) -> Value:
    """One score a token (ElectraDiscriminatorPredictions.forward)."""
    hidden = head.part("").play(machine, hidden)
    scores = machine.call("dense_prediction", head.part("dense_prediction").play, machine, hidden)
    return select(machine, scores, 2)


def by_summary(machine: Machine, root: Module, hidden: Value, pooled: Any) -> Value:
    """A score by the first token's summary (ElectraForMultipleChoice.forward)."""
    summed = machine.call("sequence_summary", _summary, machine, root.part("sequence_summary"), hidden)
    return heads.classified(machine, root, summed)


def _summary(machine: Machine, head: Module, hidden: Value) -> Value:
    """source: transformers 5.23.0 models/electra/modeling_electra.py:ElectraSequenceSummary.forward"""
    token = select(machine, hidden, 1)
    for name, part in head.parts:
        if isinstance(part, Maybe) and not machine.decide(part.condition):
            continue
        layer: Any = part.layer if isinstance(part, Maybe) else part
        token = machine.call(name, layer.play, machine, token)
    return token


def play(machine: Machine, architecture: str, config: ElectraConfig, root: Any, batch: Batch) -> Output:
    """A training forward, as transformers runs it.

    source: transformers 5.23.0 models/electra/modeling_electra.py, each class's forward
    """
    kind = architecture.removeprefix("Electra")
    body = partial(encoder, decoder=config.is_decoder)
    if kind == "Model":
        return heads.bare(machine, *body(machine, root, batch["input_ids"]))
    if kind in heads.TASKS:
        score = by_summary if kind == "ForMultipleChoice" else by_first_token
        return heads.task(machine, root, "electra", body, kind, config.num_labels, batch, score)
    hidden, _ = machine.call("electra", body, machine, root.part("electra"), batch["input_ids"])
    if kind == "ForPreTraining":
        name = "discriminator_predictions"
        logits = machine.call(name, discriminator, machine, root.part(name), hidden)
        return binary_cross_entropy(machine, logits, to(machine, batch["labels"], "float32")), logits
    scores = machine.call("generator_predictions", root.part("generator_predictions").play, machine, hidden)
    scores = machine.call("generator_lm_head", root.part("generator_lm_head").play, machine, scores)
    loss = heads.causal if kind == "ForCausalLM" else heads.scored
    return loss(machine, scores, batch["labels"])


FAMILY = Family(
    model_type="electra",
    config=ElectraConfig,
    architectures=(
        "ElectraForPreTraining",
        "ElectraForMaskedLM",
        "ElectraForCausalLM",
        "ElectraModel",
        "ElectraForSequenceClassification",
        "ElectraForTokenClassification",
        "ElectraForQuestionAnswering",
        "ElectraForMultipleChoice",
    ),
    usual="ElectraForPreTraining",
    build=build,
    source="transformers 5.23.0 models/electra/modeling_electra.py",
    play=play,
    places=learned,
    idle=under(),
)
