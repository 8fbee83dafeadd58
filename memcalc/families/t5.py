"""T5, v1.1 and Flan among them: encoder and decoder with relative positions."""

from __future__ import annotations

from typing import Any

from memcalc.families._forward import Batch
from memcalc.families._t5 import T5LikeConfig, t5
from memcalc.families._t5_forward import play as t5_forward
from memcalc.families.base import PAIRS, Architecture, Family
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class T5Config(T5LikeConfig):
    """source: transformers 5.23.0 models/t5/configuration_t5.py"""


def kind_of(architecture: str) -> str:
    """A class name without its family."""
    # the name T5ForConditionalGeneration went by before transformers 3, still found on the Hub
    return "ForConditionalGeneration" if architecture == "T5WithLMHeadModel" else architecture.removeprefix("T5")


def build(config: T5Config, architecture: str) -> Architecture:
    """The body under its head."""
    return t5(config, kind_of(architecture))


def play(machine: Machine, architecture: str, config: T5Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it.

    What the decoder gives is scaled where words are tied, as in the first T5 (T5Config.__post_init__: scale_decoder_outputs).
    """
    return t5_forward(machine, kind_of(architecture), config, root, batch, scale=config.tie_word_embeddings)


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
    play=play,
    caches=True,
)
