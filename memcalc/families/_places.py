"""Families that look positions up in a table, or make a bias for so many: no longer sequence runs. Rotary ones know no end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memcalc.arrays import Count

Places = Callable[[Any, str], Mapping[str, Count]]
"""Of (config, architecture's name): the setting that sizes a sequence -> positions there are for it."""


def learned(config: Any, architecture: str) -> Mapping[str, Count]:
    """One table of ``max_position_embeddings`` rows, beside those that a family reserves."""
    return {"sequence_length": config.max_position_embeddings}


def after_padding(config: Any, architecture: str) -> Mapping[str, Count]:
    """The same where positions begin after the padding index.

    source: transformers 5.23.0 models/roberta/modeling_roberta.py:create_position_ids_from_input_ids
    """
    before = 0 if config.pad_token_id is None else config.pad_token_id + 1
    return {"sequence_length": config.max_position_embeddings - before}


def both_sides(config: Any, architecture: str) -> Mapping[str, Count]:
    """A table of each side's own, as long as the other's; a decoder alone reads no source."""
    mine = learned(config, architecture)
    return mine if architecture.endswith("ForCausalLM") else {**mine, "source_length": config.max_position_embeddings}


def of_decoder(config: Any, architecture: str) -> Mapping[str, Count]:
    """Whisper's decoder; what its encoder reads is of one length (``max_source_positions``)."""
    return {} if architecture.endswith("AudioClassification") else {"sequence_length": config.max_target_positions}


def of_words(config: Any, architecture: str) -> Mapping[str, Count]:
    """CLIP's text tower, where the head reads words."""
    text = getattr(config, "text_config", config)
    return {} if "Vision" in architecture or "Image" in architecture else learned(text, architecture)


def unless_relative(config: Any, architecture: str) -> Mapping[str, Count]:
    """DeBERTa's, which ``position_biased_input`` has or leaves out."""
    return learned(config, architecture) if config.position_biased_input else {}
