"""RoBERTa: BERT's layers, a head of its own over the vocabulary, and positions that start after the padding index."""

from __future__ import annotations

from memcalc.families._encoder import BertLikeConfig
from memcalc.families._roberta import roberta
from memcalc.families.base import Architecture, Family, Size


class RobertaConfig(BertLikeConfig):
    """source: transformers 5.23.0 models/roberta/configuration_roberta.py"""

    vocab_size: Size = 50265


def build(config: RobertaConfig, architecture: str) -> Architecture:
    """The encoder under its head."""
    return roberta(config, architecture.removeprefix("Roberta"), head_first=False)


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
)
