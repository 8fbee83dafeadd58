"""How SigLIP's tower runs, and Gemma 3's projector behind it.

source: transformers 5.23.0 models/siglip/modeling_siglip.py, models/gemma3/modeling_gemma3.py
"""

from __future__ import annotations

from memcalc.arrays import Count
from memcalc.errors import InputError, NotModelledError
from memcalc.families import _vision_forward as vision
from memcalc.families._siglip import SiglipVisionConfig
from memcalc.layers.base import Module
from memcalc.layers.basic import Conv, Embedding
from memcalc.layers.vision import PatchPositions
from memcalc.play.machine import Machine
from memcalc.play.matmul import linear
from memcalc.play.pointwise import add, to
from memcalc.play.reshape import contiguous, merge_dims, split_dim, transpose
from memcalc.play.scattered import average_pool
from memcalc.play.values import Value

NAMES = ("layer_norm1", "self_attn", "layer_norm2")


def states(machine: Machine, root: Module, config: SiglipVisionConfig, pixels: Value) -> Value:
    """Those of every patch (modeling_siglip.py:SiglipVisionModel.forward).

    Raises:
        InputError: images of another side than the model's.
        NotModelledError: a pooling head, which Gemma 3 as published is without.
    """
    if not all(machine.same(side, config.image_size) for side in pixels.shape[2:]):
        rule = f"is not the {config.image_size} pixels the model is made for"
        raise InputError("training.image_size", pixels.shape[2], rule, "use that, or leave it out for text alone")
    if root.has("head"):
        raise NotModelledError("model.vision_config.vision_use_head", True, "has activations that are not modelled yet",
                               "use false, or engine trace")  # fmt: skip
    hidden = machine.call("embeddings", _patches, machine, root.part("embeddings"), pixels)
    given = vision.run(machine, "encoder.layers", root.part("encoder.layers"), hidden, vision.Tower(NAMES))
    made: Value = machine.call("post_layernorm", root.part("post_layernorm").play, machine, given)
    del hidden, given
    return made


def _patches(machine: Machine, layer: PatchPositions, pixels: Value) -> Value:
    """source: modeling_siglip.py:SiglipVisionEmbeddings.forward"""
    kernel = (layer.patch, layer.patch)
    conv = Conv(layer.channels, layer.hidden, kernel, stride=kernel)
    pixels = to(machine, pixels, machine.policy.dtype_of("conv"))
    embeds = machine.call("patch_embedding", conv.play, machine, pixels)
    tokens = vision.flattened(machine, embeds)
    place = machine.constant((1, layer.positions), "int64")
    places = machine.call("position_embedding", Embedding(layer.positions, layer.hidden).play, machine, place)
    out = add(machine, tokens, places)
    del embeds, pixels
    return out


def projected(machine: Machine, root: Module, hidden: Value, side: Count, places: int) -> Value:
    """Pooled to ``places`` a side, normalised, multiplied (modeling_gemma3.py:Gemma3MultiModalProjector.forward)."""
    turned = transpose(machine, hidden, 1, 2)
    image = contiguous(machine, split_dim(machine, turned, 2, (side, side)))
    pooled = transpose(machine, merge_dims(machine, average_pool(machine, image, places, places), 2, 3), 1, 2)
    normed = machine.call("mm_soft_emb_norm", root.part("mm_soft_emb_norm").play, machine, pooled)
    weight = vision.parameter(machine, "mm_input_projection_weight", root.part("mm_input_projection_weight"))
    out = to(machine, linear(machine, normed, weight, transposed=True), hidden.dtype)
    del turned, image, pooled, normed
    return out
