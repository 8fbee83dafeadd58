"""ViT: a pre-norm encoder over the patches of an image and a class token."""

from __future__ import annotations

from typing import ClassVar

from memcalc.families.base import IMAGE, Architecture, Family, FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Layer, Maybe, Module, Stack
from memcalc.layers.basic import Conv, Dropout, Linear, Parameter, layer_norm
from memcalc.layers.patches import Area, ImageTokens, patches
from memcalc.layers.pointwise import Activation
from memcalc.layers.transformer import MLP, Attention, Block

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


FAMILY = Family(
    model_type="vit",
    config=ViTConfig,
    architectures=("ViTForImageClassification", "ViTModel", "ViTForMaskedImageModeling"),
    usual="ViTForImageClassification",
    build=build,
    source="transformers 5.23.0 models/vit/modeling_vit.py",
    inputs=IMAGE,
)
