"""XLM-RoBERTa: RoBERTa over many languages; its defaults differ, and its heads are built before the body."""

from __future__ import annotations

from typing import Any

from memcalc.families._encoder import BertLikeConfig
from memcalc.families._encoder_heads import Output
from memcalc.families._forward import Batch
from memcalc.families._idle import under
from memcalc.families._places import after_padding
from memcalc.families._roberta import play_roberta, roberta
from memcalc.families.base import Architecture, Family
from memcalc.play.machine import Machine


class XLMRobertaConfig(BertLikeConfig):
    """source: transformers 5.23.0 models/xlm_roberta/configuration_xlm_roberta.py"""

    pad_token_id: int | None = 1
    """Positions begin behind it."""


def build(config: XLMRobertaConfig, architecture: str) -> Architecture:
    """The encoder under its head."""
    return roberta(config, architecture.removeprefix("XLMRoberta"), head_first=True)


def play(machine: Machine, architecture: str, config: XLMRobertaConfig, root: Any, batch: Batch) -> Output:
    """A training forward, as transformers runs it."""
    return play_roberta(machine, architecture.removeprefix("XLMRoberta"), config, root, batch)


FAMILY = Family(
    model_type="xlm-roberta",
    config=XLMRobertaConfig,
    architectures=(
        "XLMRobertaForMaskedLM",
        "XLMRobertaModel",
        "XLMRobertaForCausalLM",
        "XLMRobertaForSequenceClassification",
        "XLMRobertaForTokenClassification",
        "XLMRobertaForQuestionAnswering",
        "XLMRobertaForMultipleChoice",
    ),
    usual="XLMRobertaForMaskedLM",
    build=build,
    source="transformers 5.23.0 models/xlm_roberta/modeling_xlm_roberta.py",
    play=play,
    places=after_padding,
    idle=under(XLMRobertaModel=("pooler",)),  # the loss is of the last states
)
