"""Gemma 3 with its eyes: a SigLIP tower, a projector that pools and multiplies, and the language model of gemma3_text."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from memcalc.families import gemma3_text
from memcalc.families._siglip import SiglipVisionConfig, siglip_vision_tower
from memcalc.families.base import IMAGE, TEXT, Architecture, Family, FamilyConfig, Flag, Size
from memcalc.families.gemma import gemma_norm
from memcalc.families.gemma3_text import Gemma3TextConfig
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Linear, Parameter, TiedLinear
from memcalc.layers.pointwise import AveragePool


def _empty_for_none(section: Any) -> Any:
    """A section left out, or null, stands for its defaults (configuration_utils.py SubConfigSpec.create_subconfig)."""
    return {} if section is None else section


class Gemma3Config(FamilyConfig):
    """source: transformers 5.23.0 models/gemma3/configuration_gemma3.py Gemma3Config"""

    text_config: Annotated[Gemma3TextConfig, BeforeValidator(_empty_for_none)] = Field(default_factory=Gemma3TextConfig)
    vision_config: Annotated[SiglipVisionConfig, BeforeValidator(_empty_for_none)] = Field(default_factory=SiglipVisionConfig)
    mm_tokens_per_image: Size = 256
    """Positions the projector leaves of an image."""
    tie_word_embeddings: Flag | None = True
    """This one decides, not that of ``text_config``."""


def projector(config: Gemma3Config) -> Module:
    """From the tower's positions to the language model's: pooled, normalised, multiplied by a bare matrix.

    source: transformers 5.23.0 models/gemma3/modeling_gemma3.py Gemma3MultiModalProjector.__init__
    """
    seen, read = config.vision_config.hidden_size, config.text_config.hidden_size
    return Module(
        [
            ("mm_input_projection_weight", Parameter((seen, read), kind="linear")),
            ("mm_soft_emb_norm", gemma_norm(seen)),
            ("avg_pool", AveragePool(config.mm_tokens_per_image)),
        ]
    )


def build(config: Gemma3Config, architecture: str) -> Architecture:
    """Tower, projector and language model, under a head."""
    text = config.text_config
    body = Module(
        [
            ("vision_tower", siglip_vision_tower(config.vision_config)),
            ("multi_modal_projector", projector(config)),
            ("language_model", gemma3_text.build(text, "Gemma3TextModel").root),
        ]
    )
    if architecture == "Gemma3Model":
        return Architecture(body)
    if architecture == "Gemma3ForSequenceClassification":
        score = Linear(text.hidden_size, config.num_labels, bias=False)
        return Architecture(Module([("model", body), ("score", score)]))
    head: Layer = Linear(text.hidden_size, text.vocab_size, bias=False)
    tied = {}
    if config.tie_word_embeddings:
        head = TiedLinear(text.hidden_size, text.vocab_size)
        tied = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    return Architecture(Module([("model", body), ("lm_head", head)]), tied)


FAMILY = Family(
    model_type="gemma3",
    config=Gemma3Config,
    architectures=("Gemma3ForConditionalGeneration", "Gemma3Model", "Gemma3ForSequenceClassification"),
    usual="Gemma3ForConditionalGeneration",
    build=build,
    source="transformers 5.23.0 models/gemma3/modeling_gemma3.py, models/siglip/modeling_siglip.py",
    inputs=TEXT | IMAGE,
)
