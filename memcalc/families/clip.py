"""CLIP: a tower for text and one for images, projected into one space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from memcalc.families._clip import (
    ClipTextConfig,
    ClipVisionConfig,
    projected_text,
    projected_vision,
    projection,
    text_tower,
    vision_tower,
)
from memcalc.families._clip_forward import play
from memcalc.families._idle import under
from memcalc.families._places import of_words
from memcalc.families.base import IMAGE, TEXT, Architecture, Family, FamilyConfig, Size
from memcalc.layers.base import Maybe, Module
from memcalc.layers.basic import Linear, Parameter


class ClipConfig(FamilyConfig):
    """source: transformers 5.23.0 models/clip/configuration_clip.py CLIPConfig"""

    text_config: ClipTextConfig = Field(default_factory=ClipTextConfig)
    vision_config: ClipVisionConfig = Field(default_factory=ClipVisionConfig)
    text_config_dict: Mapping[str, Any] | None = None
    vision_config_dict: Mapping[str, Any] | None = None
    projection_dim: Size = 512

    @model_validator(mode="before")
    @classmethod
    def older_spelling(cls, values: Any) -> Any:
        """A tower left out takes its defaults; ``text_config_dict`` of the first releases replaces what ``text_config`` says.

        source: transformers 5.23.0 models/clip/configuration_clip.py CLIPConfig.__post_init__
        """
        if not isinstance(values, Mapping):
            return values
        settled = dict(values)
        for tower in ("text_config", "vision_config"):
            if settled.get(f"{tower}_dict") is not None:
                settled[tower] = settled[f"{tower}_dict"]
            if settled.get(tower) is None:
                settled.pop(tower, None)
        return settled


def build(config: ClipConfig, architecture: str) -> Architecture:
    """Both towers, one of them, or the vision tower under a classifier."""
    text, vision = config.text_config, config.vision_config
    alone = {
        "CLIPTextModel": lambda: text_tower(text),
        "CLIPTextModelWithProjection": lambda: projected_text(text),
        "CLIPVisionModel": lambda: vision_tower(vision),
        "CLIPVisionModelWithProjection": lambda: projected_vision(vision),
    }
    if architecture in alone:
        return Architecture(alone[architecture]())
    if architecture == "CLIPForImageClassification":
        classifier = Maybe(config.num_labels > 0, Linear(vision.hidden_size, config.num_labels))
        return Architecture(Module([("vision_model", vision_tower(vision)), ("classifier", classifier)]))
    assert architecture == "CLIPModel", architecture
    # source: transformers 5.23.0 models/clip/modeling_clip.py CLIPModel.__init__
    return Architecture(
        Module(
            [
                ("logit_scale", Parameter(())),
                ("text_model", text_tower(text)),
                ("vision_model", vision_tower(vision)),
                ("visual_projection", projection(vision.hidden_size, config.projection_dim)),
                ("text_projection", projection(text.hidden_size, config.projection_dim)),
            ]
        )
    )


FAMILY = Family(
    model_type="clip",
    config=ClipConfig,
    architectures=(
        "CLIPModel",
        "CLIPForImageClassification",
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "CLIPVisionModel",
        "CLIPVisionModelWithProjection",
    ),
    usual="CLIPModel",
    build=build,
    source="transformers 5.23.0 models/clip/modeling_clip.py",
    inputs=TEXT | IMAGE,
    play=play,
    places=of_words,
    # a loss of the last states, or of their mean, is taken before it
    idle=under(CLIPVisionModel=("post_layernorm",), CLIPForImageClassification=("post_layernorm",)),
)
