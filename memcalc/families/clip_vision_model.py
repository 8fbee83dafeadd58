"""CLIP's vision tower alone, as it stands in the config of its own."""

from __future__ import annotations

from memcalc.families._clip import ClipVisionConfig, projected_vision, vision_tower
from memcalc.families._clip_forward import play
from memcalc.families._idle import under
from memcalc.families.base import IMAGE, Architecture, Family


def build(config: ClipVisionConfig, architecture: str) -> Architecture:
    """The tower, projected or not."""
    if architecture == "CLIPVisionModelWithProjection":
        return Architecture(projected_vision(config))
    assert architecture == "CLIPVisionModel", architecture
    return Architecture(vision_tower(config))


FAMILY = Family(
    model_type="clip_vision_model",
    config=ClipVisionConfig,
    architectures=("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    usual="CLIPVisionModel",
    build=build,
    source="transformers 5.23.0 models/clip/modeling_clip.py",
    inputs=IMAGE,
    play=play,
    idle=under(CLIPVisionModel=("post_layernorm",)),  # a loss of the last states is taken before it
)
