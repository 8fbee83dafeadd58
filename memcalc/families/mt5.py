"""mT5: T5 v1.1 over many languages."""

from __future__ import annotations

from typing import Any

from memcalc.families._forward import Batch
from memcalc.families._t5 import FeedForward, T5LikeConfig, t5
from memcalc.families._t5_forward import play as t5_forward
from memcalc.families.base import PAIRS, Architecture, Family, Size
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class MT5Config(T5LikeConfig):
    """source: transformers 5.23.0 models/mt5/configuration_mt5.py"""

    vocab_size: Size = 250112
    num_hidden_layers: Size = 8
    num_attention_heads: Size = 6
    d_ff: Size = 1024
    feed_forward_proj: FeedForward = "gated-gelu"


def build(config: MT5Config, architecture: str) -> Architecture:
    """The body under its head."""
    return t5(config, architecture.removeprefix("MT5"))


def play(machine: Machine, architecture: str, config: MT5Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it; what the decoder gives is never scaled."""
    return t5_forward(machine, architecture.removeprefix("MT5"), config, root, batch, scale=False)


FAMILY = Family(
    model_type="mt5",
    config=MT5Config,
    architectures=(
        "MT5ForConditionalGeneration",
        "MT5Model",
        "MT5EncoderModel",
        "MT5ForSequenceClassification",
        "MT5ForTokenClassification",
        "MT5ForQuestionAnswering",
    ),
    usual="MT5ForConditionalGeneration",
    build=build,
    source="transformers 5.23.0 models/mt5/modeling_mt5.py",
    inputs=PAIRS,
    play=play,
    caches=True,
)
