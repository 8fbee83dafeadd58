"""Gemma 3 with its eyes: a SigLIP tower, a projector that pools and multiplies, and the language model of gemma3_text."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from memcalc.errors import InputError
from memcalc.families import _siglip_forward as siglip
from memcalc.families import gemma3_text
from memcalc.families._decoder import Names
from memcalc.families._decoder_forward import Masks, Style, decoded, other_heads
from memcalc.families._forward import Batch, causal_loss, eager_mask
from memcalc.families._kinds_forward import kinds_in
from memcalc.families._masks import block_numbers, blocks, blocks_in_window, seen, unpacked_window
from memcalc.families._siglip import SiglipVisionConfig, siglip_vision_tower
from memcalc.families.base import IMAGE, TEXT, Architecture, Family, FamilyConfig, Flag, MaybeZero, Size
from memcalc.families.gemma import gemma_norm
from memcalc.families.gemma3_text import Gemma3TextConfig, style_of
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Linear, Parameter, TiedLinear
from memcalc.layers.pointwise import AveragePool
from memcalc.play.machine import Machine
from memcalc.play.pointwise import compare, to
from memcalc.play.reshape import clone, unsqueeze
from memcalc.play.scattered import masked_scatter
from memcalc.play.values import Value


def _empty_for_none(section: Any) -> Any:
    """A section left out, or null, stands for its defaults (configuration_utils.py SubConfigSpec.create_subconfig)."""
    return {} if section is None else section


class Gemma3Config(FamilyConfig):
    """source: transformers 5.23.0 models/gemma3/configuration_gemma3.py Gemma3Config"""

    aliases: ClassVar[Mapping[str, str]] = {"image_token_id": "image_token_index"}

    text_config: Annotated[Gemma3TextConfig, BeforeValidator(_empty_for_none)] = Field(default_factory=Gemma3TextConfig)
    vision_config: Annotated[SiglipVisionConfig, BeforeValidator(_empty_for_none)] = Field(default_factory=SiglipVisionConfig)
    mm_tokens_per_image: Size = 256
    """Positions the projector leaves of an image."""
    image_token_index: MaybeZero = 262_144
    """Where it is no word of the vocabulary, the body looks up another in its place."""
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


def play(machine: Machine, architecture: str, config: Gemma3Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward; of text alone the tower and the projector do not run, and get no gradient."""
    names = Names()

    def run(machine: Machine, part: Module, batch: Batch) -> Value:
        return body(machine, part, batch, names, config)

    if architecture != "Gemma3ForConditionalGeneration":
        return other_heads(machine, architecture, config, root, batch, names, run)
    kept: list[Value] = []
    hidden = machine.call("model", body, machine, root.part("model"), batch, names, config, kept)
    logits = machine.call("lm_head", root.part("lm_head").play, machine, hidden)
    return causal_loss(machine, logits, batch["labels"]), (logits, kept)


def body(
    machine: Machine, root: Module, batch: Batch, names: Names, config: Gemma3Config, kept: list[Value] | None = None
) -> Value:
    """Embeddings, image features among them, masks of both kinds, the language model; ``kept`` is what the output holds.

    source: transformers 5.23.0 models/gemma3/modeling_gemma3.py:Gemma3Model.forward
    """
    text, language = config.text_config, root.part("language_model")
    ids, special = batch["input_ids"], None
    if machine.decide(config.image_token_index >= text.vocab_size):
        special = compare(machine, ids, operator="eq.Scalar")
        ids = clone(machine, ids)
        machine.scratch(8, "scalar_tensor")
    at = f"language_model.{names.embedding}"
    embeds = machine.call(at, language.part(names.embedding).play, machine, ids)
    seen: Any = None
    if "pixel_values" in batch.values:
        embeds, seen = _merged(machine, root, batch, config, embeds)
        if kept is not None:
            kept.append(seen[1])
    else:
        machine.idle.add(f"{machine.path}.vision_tower" if machine.path else "vision_tower")
    eager, style = machine.policy.attention == "eager", style_of(text)
    masks, numbers = _masks(machine, batch, embeds.dtype, style, eager=eager)
    hidden, _ = machine.call(
        "language_model", decoded, machine, language, batch, names, style, embeds, eager=eager, masks=masks
    )
    del numbers, special, ids, seen
    return hidden  # type: ignore[no-any-return]


def _merged(machine: Machine, root: Module, batch: Batch, config: Gemma3Config, embeds: Value) -> tuple[Value, Any]:
    """Embeddings with an image's features in each row, and the locals that live as long as the language model runs.

    source: transformers 5.23.0 models/gemma3/modeling_gemma3.py:Gemma3Model.forward, get_placeholder_mask

    Raises:
        InputError: a row that has no room for an image.
    """
    if not machine.decide(batch.tokens >= config.mm_tokens_per_image):
        rule = f"is shorter than the {config.mm_tokens_per_image} tokens of an image"
        raise InputError("training.sequence_length", batch.tokens, rule, "use that many or more")
    machine.assumed["each row has one image among its words"] = None
    vision, pixels = config.vision_config, batch["pixel_values"]
    states = machine.call("vision_tower", siglip.states, machine, root.part("vision_tower"), vision, pixels)
    side, places = vision.image_size // vision.patch_size, isqrt(config.mm_tokens_per_image)
    projector_of = root.part("multi_modal_projector")
    pooled = machine.call("multi_modal_projector", siglip.projected, machine, projector_of, states, side, places)
    features = to(machine, pooled, embeds.dtype)
    mask = compare(machine, batch["input_ids"], operator="eq.Scalar")
    number = machine.new((), "int64", "sum")
    del number
    return masked_scatter(machine, embeds, unsqueeze(machine, mask, 2), features), (states, features, pooled, mask)


def _masks(machine: Machine, batch: Batch, dtype: str, style: Style, *, eager: bool) -> tuple[Masks, Value | None]:
    """By blocks where token types are given, else those made without positions.

    source: transformers 5.23.0 masking_utils.py:create_masks_for_generate
    """
    if "token_type_ids" in batch.values:
        numbers = block_numbers(machine, batch)
        full = seen(machine, batch, dtype, blocks, eager=eager)
        return (full, seen(machine, batch, dtype, blocks_in_window, eager=eager)), numbers
    assert style.order is not None
    assert style.window is not None
    there = kinds_in(machine, style.order(machine))
    whole = eager_mask(machine, batch, dtype) if eager and "full_attention" in there else None
    slides = "sliding_attention" in there
    return (whole, unpacked_window(machine, batch, dtype, style.window, eager=eager) if slides else None), None


FAMILY = Family(
    model_type="gemma3",
    config=Gemma3Config,
    architectures=("Gemma3ForConditionalGeneration", "Gemma3Model", "Gemma3ForSequenceClassification"),
    usual="Gemma3ForConditionalGeneration",
    build=build,
    source="transformers 5.23.0 models/gemma3/modeling_gemma3.py, models/siglip/modeling_siglip.py",
    inputs=TEXT | IMAGE,
    play=play,
    idle=lambda config, architecture, sees: () if sees else ("vision_tower", "multi_modal_projector"),
)
