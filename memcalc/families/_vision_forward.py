"""How the pre-norm encoders of ViT and CLIP run, and the tokens that images are cut to.

source: transformers 5.23.0 models/vit/modeling_vit.py, models/clip/modeling_clip.py
"""

from __future__ import annotations

from typing import Any

from memcalc.errors import InputError
from memcalc.families._forward import run_layers
from memcalc.layers.base import Stack
from memcalc.layers.patches import ImageTokens
from memcalc.layers.transformer import Attention, Block
from memcalc.play import biased
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add
from memcalc.play.reshape import cat, contiguous, expand, merge_dims, split_dim, transpose
from memcalc.play.values import Value
from memcalc.records import dataclass


@dataclass
class Tower:
    """What an encoder hands to each of its layers.

    Attributes:
        names: of the first norm, attention, and the second norm.
        mask: the attention mask; None where none is made.
        at_once: whether each projection is parted into heads before the next is made, and the residual is the sum's second
            operand (ViT's way; CLIP's is the other in both).
    """

    names: tuple[str, str, str]
    mask: Value | None = None
    at_once: bool = False


def attention(machine: Machine, layer: Attention, hidden: Value, tower: Tower) -> tuple[Value, Value | None]:
    """What comes out, and the weights where they are written out.

    source: modeling_vit.py:ViTAttention.forward; modeling_clip.py:CLIPAttention.forward
    """
    matrices, names = layer.matrices(), layer.names
    made = []
    for each in "qkv":
        made.append(machine.call(names[each], matrices[each].play, machine, hidden))
        if tower.at_once:
            made[-1] = _headed(machine, layer, made[-1])
    if not tower.at_once:
        for place in range(3):
            made[place] = _headed(machine, layer, made[place])
    query, key, value = made
    del made
    mask, drop = tower.mask, layer.dropout
    out, weights = biased.plain(machine, query, key, value, mask, causal=layer.causal, probability=drop, upcast=True)
    out = contiguous(machine, merge_dims(machine, out, 2, 3))
    return machine.call(names["o"], matrices["o"].play, machine, out), weights


def _headed(machine: Machine, layer: Attention, made: Value) -> Value:
    return transpose(machine, split_dim(machine, made, 2, (layer.heads, layer.head_dim)), 1, 2)


def layer(machine: Machine, block: Block, hidden: Value, tower: Tower) -> Value:
    """source: modeling_vit.py:ViTLayer.forward; modeling_clip.py:CLIPEncoderLayer.forward"""
    before, attend, after = tower.names
    drops = block.part("dropout") if block.has("dropout") else None
    residual = hidden
    hidden = machine.call(before, block.part(before).play, machine, hidden)
    hidden, weights = machine.call(attend, attention, machine, block.part(attend), hidden, tower)
    if drops is not None:
        hidden = machine.call("dropout", drops.play, machine, hidden)
    hidden = add(machine, hidden, residual) if tower.at_once else add(machine, residual, hidden)
    residual = hidden
    hidden = machine.call(after, block.part(after).play, machine, hidden)
    hidden = machine.call("mlp", block.part("mlp").play, machine, hidden)
    if drops is not None:
        hidden = machine.call("dropout", drops.play, machine, hidden)
    hidden = add(machine, hidden, residual) if tower.at_once else add(machine, residual, hidden)
    del residual, weights  # the layer's locals, the last of them an underscore
    return hidden


def run(machine: Machine, name: str, stack: Stack, hidden: Value, tower: Tower) -> Value:
    """The list of layers."""
    return run_layers(machine, name, stack, layer, hidden, tower)


def flattened(machine: Machine, image: Value) -> Value:
    """``(rows, features, height, width)`` as ``(rows, patches, features)``."""
    return transpose(machine, merge_dims(machine, image, 2, 3), 1, 2)


def behind_class(machine: Machine, token: Value, tokens: Value) -> Value:
    """A class token before each row's patches."""
    rows, _, width = tokens.shape
    classes = expand(machine, token, (rows, 1, width))
    return cat(machine, (classes, tokens), 1)


def check_sides(machine: Machine, tokens: ImageTokens, pixels: Value) -> None:
    """Images are of the side the model was made for.

    Raises:
        InputError: they are not, which the module refuses too.
    """
    for given, due in zip(pixels.shape[2:], tokens.image, strict=True):
        if not machine.same(given, due):
            raise InputError("training.image_size", given, f"is not the {due} pixels the model is made for", "leave it out")


def parameter(machine: Machine, name: str, held: Any) -> Value:
    """A single parameter of the module at work."""
    return machine.parameter(name, tuple(held.shape), held.kind)
