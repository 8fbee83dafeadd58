"""CLIP's text tower alone, as it stands in the config of its own."""

from __future__ import annotations

from memcalc.families._clip import ClipTextConfig, projected_text, text_tower
from memcalc.families._clip_forward import play
from memcalc.families._places import of_words
from memcalc.families.base import Architecture, Family


def build(config: ClipTextConfig, architecture: str) -> Architecture:
    """The tower, projected or not."""
    if architecture == "CLIPTextModelWithProjection":
        return Architecture(projected_text(config))
    assert architecture == "CLIPTextModel", architecture
    return Architecture(text_tower(config))


FAMILY = Family(
    model_type="clip_text_model",
    config=ClipTextConfig,
    architectures=("CLIPTextModel", "CLIPTextModelWithProjection"),
    usual="CLIPTextModel",
    build=build,
    source="transformers 5.23.0 models/clip/modeling_clip.py",
    play=play,
    places=of_words,
)
