"""ViT: a pre-norm encoder over the patches of an image and a class token."""

from __future__ import annotations

from typing import Any, ClassVar

from memcalc.errors import NotModelledError
from memcalc.families import _paired_heads as heads
from memcalc.families import _vision_forward as vision
from memcalc.families._forward import Batch
from memcalc.families._idle import under
from memcalc.families.base import IMAGE, Architecture, Family, FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Layer, Maybe, Module, Stack
from memcalc.layers.basic import Conv, Dropout, Linear, Parameter, layer_norm
from memcalc.layers.patches import Area, ImageTokens, patches
from memcalc.layers.pointwise import Activation
from memcalc.layers.transformer import MLP, Attention, Block
from memcalc.play.activations import activated
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, dropout
from memcalc.play.reshape import select
from memcalc.play.values import Value

Sides = Size | tuple[Size, Size]
"""One side of a square, or height and width."""


class ViTConfig(FamilyConfig):
    """source: transformers 5.23.0 models/vit/configuration_vit.py"""

    divides: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Any number of heads builds and runs: their size is a key of its own, or the quotient cut to a whole number."""

    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    head_dim: Size | None = None
    intermediate_size: Size = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: Probability = 0.0
    attention_probs_dropout_prob: Probability = 0.0
    image_size: Sides = 224
    patch_size: Sides = 16
    num_channels: Size = 3
    qkv_bias: Flag = True
    encoder_stride: Size = 16
    pooler_output_size: Size | None = None
    pooler_act: str = "tanh"


def area(sides: int | tuple[int, int]) -> Area:
    """Height and width."""
    return sides if isinstance(sides, list | tuple) else (sides, sides)


def block(config: ViTConfig) -> Block:
    """One layer.

    source: transformers 5.23.0 models/vit/modeling_vit.py ViTLayer.__init__, ViTAttention.__init__
    """
    hidden, heads, dropout = config.hidden_size, config.num_attention_heads, Dropout(config.hidden_dropout_prob)
    attention = Attention(
        hidden, heads, heads, hidden // heads if config.head_dim is None else config.head_dim,
        bias=config.qkv_bias, output_bias=True, dropout=config.attention_probs_dropout_prob, causal=False,
    )  # fmt: skip
    return Block(
        (
            ("layernorm_before", layer_norm(hidden)),
            ("attention", attention),
            ("dropout", dropout),
            ("layernorm_after", layer_norm(hidden)),
            ("mlp", MLP(hidden, config.intermediate_size, names=("fc1", "fc2"), activation=config.hidden_act)),
            ("dropout", dropout),
        ),
        registered=("attention",),
    )


def embeddings(config: ViTConfig, *, mask: bool) -> ImageTokens:
    """Patches, class token, positions, and the token that stands for a masked patch.

    source: transformers 5.23.0 models/vit/modeling_vit.py ViTEmbeddings.__init__
    """
    hidden, image, patch = config.hidden_size, area(config.image_size), area(config.patch_size)
    token = Parameter((1, 1, hidden))
    parts: list[tuple[str, Layer]] = [("cls_token", token), *([("mask_token", token)] if mask else [])]
    parts.append(("position_embeddings", Parameter((1, 1 + patches(image, patch), hidden))))
    parts.append(("patch_embeddings.projection", Conv(config.num_channels, hidden, patch, stride=patch)))
    return ImageTokens(image, patch, tuple(parts), dropout=config.hidden_dropout_prob)


def body(config: ViTConfig, *, pooler: bool, mask: bool) -> Module:
    """Tokens, layers, a final norm and perhaps a pooler.

    source: transformers 5.23.0 models/vit/modeling_vit.py ViTModel.__init__, ViTPooler.__init__
    """
    hidden = config.hidden_size
    width = hidden if config.pooler_output_size is None else config.pooler_output_size
    parts: list[tuple[str, Layer]] = [
        ("embeddings", embeddings(config, mask=mask)),
        ("layers", Stack(block(config), config.num_hidden_layers)),
        ("layernorm", layer_norm(hidden)),
    ]
    if pooler:
        parts += [("pooler.dense", Linear(hidden, width)), ("pooler.activation", Activation(config.pooler_act))]
    return Module(parts)


def build(config: ViTConfig, architecture: str) -> Architecture:
    """The body under its head."""
    kind, hidden = architecture.removeprefix("ViT"), config.hidden_size
    encoder = body(config, pooler=kind == "Model", mask=kind == "ForMaskedImageModeling")
    if kind == "Model":
        return Architecture(encoder)
    if kind == "ForImageClassification":
        classifier = Maybe(config.num_labels > 0, Linear(hidden, config.num_labels))
        return Architecture(Module([("vit", encoder), ("classifier", classifier)]))
    assert kind == "ForMaskedImageModeling", kind
    # every token becomes the pixels of one patch, which are then shuffled into place
    pixels = config.encoder_stride**2 * config.num_channels
    return Architecture(Module([("vit", encoder), ("decoder.0", Conv(hidden, pixels, (1, 1)))]))


def play(machine: Machine, architecture: str, config: ViTConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it.

    source: transformers 5.23.0 models/vit/modeling_vit.py: the architecture's forward
    """
    pixels = batch["pixel_values"]
    if architecture == "ViTModel":
        states, pooled = _body(machine, root, pixels, None)
        return heads.bare(machine, states, pooled)
    if architecture == "ViTForMaskedImageModeling":
        raise NotModelledError("model.architectures", architecture, "has a loss that is not played yet", "use engine trace")
    states, _ = machine.call("vit", _body, machine, root.part("vit"), pixels, None)
    pooled = select(machine, states, 1)
    return heads.image_classes(machine, root, pooled, config, batch)


def _body(machine: Machine, root: Any, pixels: Value, masked: Value | None) -> tuple[Value, Value | None]:
    """source: modeling_vit.py:ViTModel.forward"""
    embedded = machine.call("embeddings", _embedded, machine, root.part("embeddings"), pixels)
    tower = vision.Tower(("layernorm_before", "attention", "layernorm_after"), at_once=True)
    hidden = vision.run(machine, "layers", root.part("layers"), embedded, tower)
    states = machine.call("layernorm", root.part("layernorm").play, machine, hidden)
    if not root.has("pooler.dense"):
        return states, None
    pooled = machine.call("pooler.dense", root.part("pooler.dense").play, machine, select(machine, states, 1))
    return states, activated(machine, root.part("pooler.activation").function, pooled)


def _embedded(machine: Machine, tokens: ImageTokens, pixels: Value) -> Value:
    """source: modeling_vit.py:ViTEmbeddings.forward"""
    vision.check_sides(machine, tokens, pixels)
    held = dict(tokens.parts)
    name = "patch_embeddings.projection"
    embedded = vision.flattened(machine, machine.call(name, held[name].play, machine, pixels))  # type: ignore[attr-defined]
    embedded = vision.behind_class(machine, vision.parameter(machine, "cls_token", held["cls_token"]), embedded)
    places = vision.parameter(machine, "position_embeddings", held["position_embeddings"])
    embedded = add(machine, embedded, places)
    return machine.call("dropout", dropout, machine, embedded, tokens.dropout)  # type: ignore[no-any-return]


FAMILY = Family(
    model_type="vit",
    config=ViTConfig,
    architectures=("ViTForImageClassification", "ViTModel", "ViTForMaskedImageModeling"),
    usual="ViTForImageClassification",
    build=build,
    source="transformers 5.23.0 models/vit/modeling_vit.py",
    inputs=IMAGE,
    play=play,
    idle=under(ViTModel=("pooler",)),  # the loss is of the last states
)
