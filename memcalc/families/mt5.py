"""mT5: T5 v1.1 over many languages."""

from __future__ import annotations

from memcalc.families._t5 import FeedForward, T5LikeConfig, t5
from memcalc.families.base import PAIRS, Architecture, Family, Size


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
)
