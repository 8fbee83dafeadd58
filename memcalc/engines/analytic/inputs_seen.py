"""What models read that see images or hear sound: pixels and spectra, with the tokens and labels beside them."""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Condition, Count, is_array
from memcalc.errors import InputError
from memcalc.families.base import IMAGE, Family

SIDE = 224
"""Pixels of a side, where neither the job nor the model says (as runtime/family_inputs.py has them)."""
Shapes = dict[str, tuple[tuple[Count, ...], str]]


def sees_or_hears(architecture: str, family: Family) -> bool:
    """Whether a model reads anything but tokens; Gemma 3 is given none of the images it could."""
    if "Text" in architecture or family.model_type == "gemma3":
        return False
    return bool(family.inputs & IMAGE) or (family.model_type == "whisper" and architecture != "WhisperForCausalLM")


def seen_shapes(
    training: Any, architecture: str, family: Family, config: Any, rows: Count, tokens: Count, floating: str
) -> tuple[Shapes, list[str]]:
    """The inputs' shapes and dtypes by name, and what was assumed.

    source: memcalc/runtime/family_inputs.py, which makes them for the engines that run the module

    Raises:
        InputError: sound of another length than the model reads.
    """
    if not family.inputs & IMAGE:
        return _sound(training, architecture, config, rows, tokens, floating), []
    assumed: list[str] = []
    vision = getattr(config, "vision_config", config)
    height, width = _sides(training, vision, assumed)
    shapes: Shapes = {}
    if architecture == "CLIPModel":
        shapes["input_ids"] = ((rows, tokens), "int64")
    shapes["pixel_values"] = ((rows, getattr(vision, "num_channels", 3), height, width), floating)
    if architecture.endswith("ForImageClassification"):
        shapes["labels"] = ((rows,), "int64")
    if architecture.endswith("ForMaskedImageModeling"):
        patch = config.patch_size
        down, across = patch if isinstance(patch, list | tuple) else (patch, patch)
        shapes["bool_masked_pos"] = ((rows, (height // down) * (width // across)), "bool")
    return shapes, assumed


def _sound(training: Any, architecture: str, config: Any, rows: Count, tokens: Count, floating: str) -> Shapes:
    frames, given = 2 * config.max_source_positions, training.source_length
    if given is not None and _any(given != frames):
        raise InputError("training.source_length", given, f"is not the {frames} frames this model reads", "leave it out")
    shapes: Shapes = {"input_features": ((rows, config.num_mel_bins, frames), floating)}
    if architecture.endswith("ForAudioClassification"):
        return {**shapes, "labels": ((rows,), "int64")}
    name = "labels" if architecture.endswith("ForConditionalGeneration") else "decoder_input_ids"
    return {**shapes, name: ((rows, tokens), "int64")}


def _any(condition: Condition) -> bool:
    return bool(condition.any()) if is_array(condition) else bool(condition)  # type: ignore[union-attr]


def _sides(training: Any, vision: Any, assumed: list[str]) -> tuple[Count, Count]:
    given = training.image_size
    if given is None:
        given = getattr(vision, "image_size", None)
    if given is None:
        given = SIDE
        assumed.append(f"image_size is {given}")
    return (given[0], given[1]) if isinstance(given, list | tuple) else (given, given)
