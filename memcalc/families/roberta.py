"""RoBERTa: BERT's layers, a head of its own over the vocabulary, and positions that start after the padding index."""

from __future__ import annotations

from typing import Any

from memcalc.families._encoder import BertLikeConfig
from memcalc.families._encoder_heads import Output
from memcalc.families._forward import Batch
from memcalc.families._idle import under
from memcalc.families._places import after_padding
from memcalc.families._roberta import play_roberta, roberta
from memcalc.families.base import Architecture, Family, Size
from memcalc.play.machine import Machine


class RobertaConfig(BertLikeConfig):
    """source: transformers 5.23.0 models/roberta/configuration_roberta.py"""

    vocab_size: Size = 50265
    pad_token_id: int | None = 1
    """Positions begin behind it."""


def build(config: RobertaConfig, architecture: str) -> Architecture:
    """The encoder under its head."""
    return roberta(config, architecture.removeprefix("Roberta"), head_first=False)


def play(machine: Machine, architecture: str, config: RobertaConfig, root: Any, batch: Batch) -> Output:
    """A training forward, as transformers runs it."""
    return play_roberta(machine, architecture.removeprefix("Roberta"), config, root, batch)


FAMILY = Family(
    model_type="roberta",
    config=RobertaConfig,
    architectures=(
        "RobertaForMaskedLM",
        "RobertaModel",
        "RobertaForCausalLM",
        "RobertaForSequenceClassification",
        "RobertaForTokenClassification",
        "RobertaForQuestionAnswering",
        "RobertaForMultipleChoice",
    ),
    usual="RobertaForMaskedLM",
    build=build,
    source="transformers 5.23.0 models/roberta/modeling_roberta.py",
    play=play,
    places=after_padding,
    idle=under(RobertaModel=("pooler",)),  # the loss is of the last states
)
