"""What each family's module reads, and the labels its head wants, so that its forward gives the loss it is trained by.

source: transformers 5.23.0, each model's ``forward``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from memcalc.errors import InputError
from memcalc.job import Training
from memcalc.runtime.inputs import Input

SEQUENCE, IMAGE = 128, 224
"""Where neither the job nor the model says: tokens, and pixels of a side."""
CPU_SEQUENCE = 8
"""The same on a CPU, whose half-precision arithmetic is slow; nothing that is kept depends on it."""


class Sizes(NamedTuple):
    """The sizes of a batch, every default filled in; None for those a model has no use for."""

    batch: int
    sequence: int
    source: int
    image: tuple[int, int]
    sees: bool = False
    """Whether the job asks for images, of a model that can do without."""


def sizes_of(training: Training, config: Any, usual: int = SEQUENCE) -> Sizes:
    """What the job says, and what the model's config makes of the rest; ``usual`` tokens where nobody says."""
    longest = _first(config, "max_position_embeddings", "n_positions", "max_target_positions", "n_ctx") or usual
    sequence = training.sequence_length or min(usual, int(longest))
    frames = 2 * config.max_source_positions if _is_audio(config) else None
    image = _sides(training.image_size or _first(config, "image_size") or IMAGE)
    return Sizes(
        training.micro_batch_size or 1,
        sequence,
        training.source_length or frames or sequence,
        image,
        training.image_size is not None,
    )


def family_inputs(architecture: str, config: Any, sizes: Sizes) -> list[Input]:
    """The inputs of a transformers class, labels among them."""
    text = _text_config(config)
    vocabulary = int(getattr(text, "vocab_size", 0) or 0)
    read = _read(architecture, config, sizes, vocabulary)
    return [*read, *_labels(architecture, config, sizes, vocabulary)]


def batch_inputs(kind: str, sizes: Sizes) -> list[Input]:
    """What a batch of text comes with that is padded, or packed: positions that start anew wherever they do not follow."""
    shape = (sizes.batch, sizes.sequence)
    given = {"padded": Input("attention_mask", "int64", shape, 2), "packed": Input("position_ids", "int64", shape, shape[1])}
    return [given[kind]] if kind in given else []


def _read(architecture: str, config: Any, sizes: Sizes, vocabulary: int) -> list[Input]:
    """What the body reads."""
    tokens = Input("input_ids", "int64", (sizes.batch, sizes.sequence), vocabulary)
    if architecture == "CLIPModel":
        return [tokens, _pixels(config.vision_config, sizes)]
    if architecture.startswith(("CLIPVision", "CLIPForImage", "ViT", "ResNet")):
        return [_pixels(getattr(config, "vision_config", config), sizes)]
    if architecture.startswith("Gemma3ForConditionalGeneration"):
        kinds = Input("token_type_ids", "int64", tokens.shape, 1)
        if not sizes.sees:
            return [tokens, kinds]
        places = tokens._replace(first=(config.mm_tokens_per_image, config.image_token_id))
        return [places, kinds, _pixels(config.vision_config, sizes)]
    if _is_audio(config) and architecture != "WhisperForCausalLM":
        return [Input("input_features", "float", (sizes.batch, config.num_mel_bins, sizes.source))]
    if getattr(config, "is_encoder_decoder", False) and "ForCausalLM" not in architecture:
        return [tokens._replace(shape=(sizes.batch, sizes.source))]
    if architecture.endswith(("ForMultipleChoice", "DoubleHeadsModel")):
        return [tokens._replace(shape=(sizes.batch, 2, sizes.sequence))]
    return [tokens]


def _labels(architecture: str, config: Any, sizes: Sizes, vocabulary: int) -> list[Input]:
    """What the head is held against; for a body alone what its decoder needs to run."""
    batch, tokens = (sizes.batch,), (sizes.batch, sizes.sequence)
    classes = int(getattr(config, "num_labels", 2))
    if not classes and architecture.endswith("Classification"):
        return []  # transformers then puts nothing in the head's place, and there is no loss
    one_each = Input("labels", "int64", batch, classes)
    each_token = Input("labels", "int64", tokens, vocabulary)
    by_ending: Mapping[str, list[Input]] = {
        "ForCausalLM": [each_token],
        "LMHeadModel": [each_token],
        "ForMaskedLM": [each_token],
        "ForConditionalGeneration": [each_token],
        "ForSequenceClassification": [one_each],
        "ForImageClassification": [one_each],
        "ForAudioClassification": [one_each],
        "ForMultipleChoice": [Input("labels", "int64", batch, 2)],
        "ForNextSentencePrediction": [Input("labels", "int64", batch, 2)],
        "ForTokenClassification": [Input("labels", "int64", tokens, classes)],
        "ForQuestionAnswering": [Input(f"{end}_positions", "int64", batch, sizes.source) for end in ("start", "end")],
        "BertForPreTraining": [each_token, Input("next_sentence_label", "int64", batch, 2)],
        "AlbertForPreTraining": [each_token, Input("sentence_order_label", "int64", batch, 2)],
        "ElectraForPreTraining": [Input("labels", "int64", tokens, 2)],
        "DoubleHeadsModel": [
            Input("labels", "int64", (sizes.batch, 2, sizes.sequence), vocabulary),
            Input("mc_token_ids", "int64", (sizes.batch, 2), sizes.sequence),
            Input("mc_labels", "int64", batch, 2),
        ],
        "ForMaskedImageModeling": [_patches_masked(config, sizes)] if architecture.endswith("ForMaskedImageModeling") else [],
    }
    found = next((inputs for ending, inputs in by_ending.items() if architecture.endswith(ending)), [])
    if architecture == "T5ForSequenceClassification" or (architecture.startswith("Bart") and "Classification" in architecture):
        return found
    if not found and getattr(config, "is_encoder_decoder", False) and not architecture.endswith("EncoderModel"):
        return [Input("decoder_input_ids", "int64", tokens, vocabulary)]
    return found


def extra_arguments(architecture: str) -> dict[str, Any]:
    """Arguments of forward that are no tensors, without which it gives no loss."""
    return {"return_loss": True} if architecture == "CLIPModel" else {}


def settle_config(architecture: str, config: Any, sizes: Sizes) -> None:
    """What a config has to say before its module can train: no cache of keys and values, a padding token, a stride.

    Raises:
        InputError: the job's sizes do not fit the model.
    """
    for part in {id(each): each for each in (config, _text_config(config))}.values():
        if hasattr(part, "use_cache"):
            part.use_cache = False
    if architecture.endswith("ForSequenceClassification") and getattr(_text_config(config), "pad_token_id", None) is None:
        config.pad_token_id = 0
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    if architecture.endswith("ForMaskedImageModeling"):
        config.encoder_stride = config.patch_size
    if _is_audio(config) and sizes.source != 2 * config.max_source_positions and architecture != "WhisperForCausalLM":
        raise InputError(
            "training.source_length", sizes.source, f"is not the {2 * config.max_source_positions} frames this model reads",
            "leave it out",
        )  # fmt: skip


def _pixels(vision: Any, sizes: Sizes) -> Input:
    channels = int(getattr(vision, "num_channels", 3))
    return Input("pixel_values", "float", (sizes.batch, channels, *sizes.image))


def _patches_masked(config: Any, sizes: Sizes) -> Input:
    (height, width), (patch_height, patch_width) = sizes.image, _sides(config.patch_size)
    return Input("bool_masked_pos", "bool", (sizes.batch, (height // patch_height) * (width // patch_width)))


def _is_audio(config: Any) -> bool:
    return getattr(config, "model_type", "") == "whisper"


def _text_config(config: Any) -> Any:
    return getattr(config, "text_config", None) or config


def _first(config: Any, *names: str) -> Any:
    """The first of these keys that the config, or a part of it, has."""
    for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        for name in names:
            if getattr(part, name, None) is not None:
                return getattr(part, name)
    return None


def _sides(side: Any) -> tuple[int, int]:
    """Height and width, of a square where one number is given."""
    return (int(side[0]), int(side[1])) if isinstance(side, list | tuple) else (int(side), int(side))
