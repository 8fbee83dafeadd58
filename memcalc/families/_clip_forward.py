"""How CLIP's towers run, alone and side by side.

source: transformers 5.23.0 models/clip/modeling_clip.py
"""

from __future__ import annotations

from typing import Any

from memcalc.families import _paired_heads as heads
from memcalc.families import _vision_forward as vision
from memcalc.families._forward import Batch, eager_mask
from memcalc.layers.base import Module
from memcalc.play import losses
from memcalc.play.machine import Machine
from memcalc.play.matmul import linear
from memcalc.play.picking import picked
from memcalc.play.pointwise import add, div, exp, mul, power, scaled
from memcalc.play.reduce import mean_over, sum_last
from memcalc.play.reshape import narrow, select, transpose
from memcalc.play.values import Value

NAMES = ("layer_norm1", "self_attn", "layer_norm2")
SMALL_END = 2
"""The end of a text that configs of before transformers 4.32 give, and that is looked for otherwise (CLIPTextModel.forward)."""


def text(machine: Machine, root: Module, ids: Value, batch: Batch, end: Any) -> tuple[Value, Value]:
    """States of every token, and that of each text's end.

    source: modeling_clip.py:CLIPTextModel.forward
    """
    hidden = machine.call("embeddings", _words, machine, root.part("embeddings"), ids)
    mask = eager_mask(machine, batch, hidden.dtype) if machine.policy.attention == "eager" else None
    given = vision.run(machine, "encoder.layers", root.part("encoder.layers"), hidden, vision.Tower(NAMES, mask))
    states = machine.call("final_layer_norm", root.part("final_layer_norm").play, machine, given)
    rows = machine.new((ids.shape[0],), "int64", "arange")
    found = machine.like(ids, "_to_copy", "int32")
    if end != SMALL_END:
        found = machine.like(found, "eq.Scalar", "bool")
        found = machine.like(found, "_to_copy", "int32")
    last = machine.new((ids.shape[0],), "int64", "argmax")
    del found
    pooled = picked(machine, states, 0, rows, last)
    del hidden, mask, given
    return states, pooled


def _words(machine: Machine, layer: Any, ids: Value) -> Value:
    """source: modeling_clip.py:CLIPTextEmbeddings.forward"""
    tables = dict(layer.tables)
    place = machine.constant((1, ids.shape[1]), "int64")
    embeds = machine.call("token_embedding", tables["token_embedding"].play, machine, ids)
    places = machine.call("position_embedding", tables["position_embedding"].play, machine, place)
    return add(machine, embeds, places)


def image(machine: Machine, root: Module, pixels: Value) -> tuple[Value, Value]:
    """States of every patch, and that of the class token.

    source: modeling_clip.py:CLIPVisionModel.forward
    """
    hidden = machine.call("embeddings", _patches, machine, root.part("embeddings"), pixels)
    hidden = machine.call("pre_layrnorm", root.part("pre_layrnorm").play, machine, hidden)
    states = vision.run(machine, "encoder.layers", root.part("encoder.layers"), hidden, vision.Tower(NAMES))
    pooled = machine.call("post_layernorm", root.part("post_layernorm").play, machine, select(machine, states, 1))
    return states, pooled


def _patches(machine: Machine, tokens: Any, pixels: Value) -> Value:
    """source: modeling_clip.py:CLIPVisionEmbeddings.forward"""
    vision.check_sides(machine, tokens, pixels)
    held = dict(tokens.parts)
    embeds = vision.flattened(machine, machine.call("patch_embedding", held["patch_embedding"].play, machine, pixels))
    embedded = vision.behind_class(machine, vision.parameter(machine, "class_embedding", held["class_embedding"]), embeds)
    place = machine.constant((1, embedded.shape[1]), "int64")
    places = machine.call("position_embedding", held["position_embedding"].play, machine, place)
    return add(machine, embedded, places)


def _projected(machine: Machine, root: Module, name: str, pooled: Value) -> Value:
    return machine.call(name, root.part(name).play, machine, pooled)  # type: ignore[no-any-return]


def _normed(machine: Machine, value: Value) -> Value:
    """source: modeling_clip.py:_get_vector_norm"""
    squares = power(machine, value)
    total = sum_last(machine, squares, keep=True)
    return power(machine, total)


def both(machine: Machine, root: Module, batch: Batch, end: Any) -> tuple[Value, Any]:
    """The contrastive loss of texts and images.

    source: modeling_clip.py:CLIPModel.forward
    """
    seen, pooled = machine.call("vision_model", image, machine, root.part("vision_model"), batch["pixel_values"])
    pooled_image = _projected(machine, root, "visual_projection", pooled)
    read, pooled = machine.call("text_model", text, machine, root.part("text_model"), batch["input_ids"], batch, end)
    pooled_text = _projected(machine, root, "text_projection", pooled)
    del pooled
    image_embeds = div(machine, pooled_image, _normed(machine, pooled_image))
    text_embeds = div(machine, pooled_text, _normed(machine, pooled_text))
    logits = linear(machine, text_embeds, image_embeds)
    logits = mul(machine, logits, exp(machine, vision.parameter(machine, "logit_scale", root.part("logit_scale"))))
    turned = transpose(machine, logits, 0, 1)
    loss = _contrastive(machine, logits)
    return loss, (turned, logits, text_embeds, image_embeds, seen, read, pooled_image, pooled_text)


def _contrastive(machine: Machine, logits: Value) -> Value:
    """source: modeling_clip.py:image_text_contrastive_loss"""
    caption = _each_its_own(machine, logits)
    found = _each_its_own(machine, transpose(machine, logits, 0, 1))
    return scaled(machine, add(machine, caption, found), "div.Tensor")


def _each_its_own(machine: Machine, logits: Value) -> Value:
    """source: modeling_clip.py:contrastive_loss"""
    return losses.cross_entropy(machine, logits, machine.new((logits.shape[0],), "int64", "arange"))


def play(machine: Machine, architecture: str, config: Any, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward."""
    end = getattr(getattr(config, "text_config", config), "eos_token_id", None)
    if architecture == "CLIPModel":
        return both(machine, root, batch, end)
    if architecture == "CLIPTextModel":
        return heads.bare(machine, *text(machine, root, batch["input_ids"], batch, end))
    if architecture == "CLIPVisionModel":
        return heads.bare(machine, *image(machine, root, batch["pixel_values"]))
    if architecture == "CLIPTextModelWithProjection":
        states, pooled = machine.call("text_model", text, machine, root.part("text_model"), batch["input_ids"], batch, end)
        return heads.bare(machine, _projected(machine, root, "text_projection", pooled), states)
    if architecture == "CLIPVisionModelWithProjection":
        states, pooled = machine.call("vision_model", image, machine, root.part("vision_model"), batch["pixel_values"])
        return heads.bare(machine, _projected(machine, root, "visual_projection", pooled), states)
    assert architecture == "CLIPForImageClassification", architecture
    states, pooled = machine.call("vision_model", image, machine, root.part("vision_model"), batch["pixel_values"])
    mean = mean_over(machine, narrow(machine, states, 1, states.shape[1] - 1), (1,))
    loss, kept = heads.image_classes(machine, root, mean, config, batch)
    del states, pooled
    return loss, kept
