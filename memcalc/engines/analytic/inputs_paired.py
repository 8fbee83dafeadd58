"""What models read that read more than tokens: a source beside the decoder's tokens, an image, a spectrogram."""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Condition, Count, is_array, minimum
from memcalc.errors import InputError
from memcalc.families.base import Family
from memcalc.models import Model

SEQUENCE, IMAGE = 128, 224
"""Where neither the job nor the model says: tokens, and pixels of a side (as runtime/family_inputs.py has them)."""
Shapes = dict[str, tuple[tuple[Count, ...], str]]


def paired_shapes(training: Any, family: Family, model: Model, rows: Count, floating: str) -> tuple[Count, Shapes, list[str]]:
    """Tokens of a row, the inputs' shapes and dtypes by name, and what was assumed.

    source: memcalc/runtime/family_inputs.py, which makes them for the engines that run the module
    """
    architecture, config = str(_name(model)), model.config
    assumed: list[str] = []
    if family.inputs == frozenset({"sequence_length"}):
        tokens = _tokens(training, config, assumed)
        return tokens, {"input_ids": ((rows, tokens), "int64")}, assumed
    if "image_size" in family.inputs:
        return _images(training, architecture, config, rows, floating, assumed)
    tokens = _tokens(training, config, assumed)
    source = _source(training, architecture, config, tokens, assumed)
    shapes: Shapes = {}
    if hasattr(config, "num_mel_bins") and architecture != "WhisperForCausalLM":
        shapes["input_features"] = ((rows, config.num_mel_bins, source), floating)
    else:
        shapes["input_ids"] = ((rows, tokens if architecture.endswith("ForCausalLM") else source), "int64")
    shapes.update(_paired_labels(architecture, rows, tokens, source, config))
    return tokens, shapes, assumed


def _name(model: Model) -> Any:
    return model.architecture


def _tokens(training: Any, config: Any, assumed: list[str]) -> Count:
    tokens: Count | None = training.sequence_length
    if tokens is None:
        places = (config, getattr(config, "text_config", None))
        keys = ("max_position_embeddings", "max_target_positions")
        longest = next((getattr(p, key) for p in places for key in keys if hasattr(p, key)), None)
        tokens = SEQUENCE if longest is None else minimum(SEQUENCE, longest)
        assumed.append(f"sequence_length is {tokens}")
    return tokens


def _source(training: Any, architecture: str, config: Any, tokens: Count, assumed: list[str]) -> Count:
    if hasattr(config, "max_source_positions"):
        frames = 2 * config.max_source_positions
        given = training.source_length
        if given is not None and architecture != "WhisperForCausalLM" and _any(given != frames):
            raise InputError(
                "training.source_length", given, f"is not the {frames} frames this model reads", "leave it out"
            )
        return frames  # type: ignore[no-any-return]
    if training.source_length is None:
        assumed.append(f"source_length is {tokens}")
        return tokens
    return training.source_length  # type: ignore[no-any-return]


def _any(condition: Condition) -> bool:
    return bool(condition.any()) if is_array(condition) else bool(condition)  # type: ignore[union-attr]


def _paired_labels(architecture: str, rows: Count, tokens: Count, source: Count, config: Any) -> Shapes:
    """The head's labels, or what the decoder of a body alone reads."""
    each = ((rows, tokens), "int64")
    if architecture.endswith("SequenceClassification"):
        return {"labels": ((rows,), "int64")} if config.num_labels else {}
    if architecture.endswith("AudioClassification"):
        return {"labels": ((rows,), "int64")} if config.num_labels else {}
    if architecture.endswith("TokenClassification"):
        return {"labels": each} if config.num_labels else {}
    if architecture.endswith("QuestionAnswering"):
        ends = {f"{end}_positions": ((rows,), "int64") for end in ("start", "end")}
        # T5 and Bart shift the source where no tokens are given, as they do for a classification
        return ends
    if architecture.endswith(("ForConditionalGeneration", "ForCausalLM", "LMHeadModel")):
        return {"labels": each}
    return {} if architecture.endswith("EncoderModel") else {"decoder_input_ids": each}


def _images(
    training: Any, architecture: str, config: Any, rows: Count, floating: str, assumed: list[str]
) -> tuple[Count, Shapes, list[str]]:
    """Pixels, perhaps tokens and labels."""
    vision = getattr(config, "vision_config", config)
    height, width = _sides(training, vision, assumed)
    channels = getattr(vision, "num_channels", 3)
    shapes: Shapes = {}
    tokens: Count = 0
    if architecture in ("CLIPModel", "CLIPTextModel", "CLIPTextModelWithProjection"):
        tokens = _tokens(training, config, assumed)
        shapes["input_ids"] = ((rows, tokens), "int64")
    if "Text" not in architecture:
        shapes["pixel_values"] = ((rows, channels, height, width), floating)
    if architecture.endswith("ForImageClassification"):
        shapes["labels"] = ((rows,), "int64")
    if architecture.endswith("ForMaskedImageModeling"):
        patch = config.patch_size
        down, across = patch if isinstance(patch, list | tuple) else (patch, patch)
        shapes["bool_masked_pos"] = ((rows, (height // down) * (width // across)), "bool")
    return tokens, shapes, assumed


def _sides(training: Any, vision: Any, assumed: list[str]) -> tuple[Count, Count]:
    given = training.image_size
    if given is None:
        given = getattr(vision, "image_size", None)
        if given is None:
            given = IMAGE
            assumed.append(f"image_size is {given}")
    return (given[0], given[1]) if isinstance(given, list | tuple) else (given, given)



