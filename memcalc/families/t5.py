"""T5, v1.1 and Flan among them: encoder and decoder with relative positions."""

from __future__ import annotations

from memcalc.families._t5 import T5LikeConfig, t5
from memcalc.families.base import PAIRS, Architecture, Family


class T5Config(T5LikeConfig):
    """source: transformers 5.23.0 models/t5/configuration_t5.py"""


def build(config: T5Config, architecture: str) -> Architecture:
    """The body under its head."""
    # the name T5ForConditionalGeneration went by before transformers 3, still found on the Hub
    kind = "ForConditionalGeneration" if architecture == "T5WithLMHeadModel" else architecture.removeprefix("T5")
    return t5(config, kind)


FAMILY = Family(
    model_type="t5",
    config=T5Config,
    architectures=(
        "T5ForConditionalGeneration",
        "T5Model",
        "T5EncoderModel",
        "T5ForSequenceClassification",
        "T5ForTokenClassification",
        "T5ForQuestionAnswering",
        "T5WithLMHeadModel",
    ),
    usual="T5ForConditionalGeneration",
    build=build,
    source="transformers 5.23.0 models/t5/modeling_t5.py",
    inputs=PAIRS,
)
