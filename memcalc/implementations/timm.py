"""Timm's VisionTransformer: ViT as ``timm.create_model`` builds it, and DINOv2's with layer scale, registers or gates.

source: huggingface/pytorch-image-models 1.0.31 timm/models/vision_transformer.py: VisionTransformer; timm/layers/
patch_embed.py: PatchEmbed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.arrays import Count
from memcalc.errors import InputError, NotModelledError
from memcalc.families import _encoder_heads as heads
from memcalc.families import _vision_forward as vision
from memcalc.families._forward import Batch, Context, run_layers
from memcalc.families.vit import area
from memcalc.implementations._timm_layers import TimmBlock, Widths
from memcalc.implementations.base import Asked, Implementation
from memcalc.layers.base import Layer, Maybe, Module, Stack
from memcalc.layers.basic import Conv, Linear, Parameter, layer_norm
from memcalc.layers.patches import ImageTokens, patches
from memcalc.models import Model
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, dropout
from memcalc.play.reduce import mean_over
from memcalc.play.reshape import cat, expand, narrow, select
from memcalc.play.values import Value
from memcalc.records import dataclass, replace

MLPS = ("Mlp", "SwiGLUPacked")
POOLS = ("token", "avg")
FLAGS = {
    "init_values": False, "qk_norm": False, "class_token": True, "no_embed_class": False, "pre_norm": False, "fc_norm": None,
}  # fmt: skip
"""Switches of timm's own and what they are by default; ``init_values`` is a number there, whose size is nothing to memory."""


@dataclass
class Shape:
    """What ``VisionTransformer.__init__`` is told, read from a ViT config of Hugging Face's.

    Attributes:
        blocks: what each is made by.
        count: blocks.
        classes: of the head; 0 for none.
        registers: tokens beside the class token (``reg_tokens``).
        class_token: whether there is one.
        positions_for_all: whether the prefix has positions too (not ``no_embed_class``).
        pre_norm: whether a norm stands before the blocks, and the patches' convolution has no bias.
        pool: ``token`` or ``avg``.
        fc_norm: whether the last norm comes after pooling.
        dropout: of the tokens (``pos_drop_rate``).
        image_size: a side, or height and width, of the images.
        num_channels: of the images.
    """

    blocks: Widths
    count: Count
    classes: Count
    registers: int
    class_token: bool
    positions_for_all: bool
    pre_norm: bool
    pool: str
    fc_norm: bool
    dropout: float
    image_size: Any
    num_channels: Count

    @property
    def prefix(self) -> int:
        """Tokens before the patches (``num_prefix_tokens``)."""
        return self.registers + int(self.class_token)


def build(model: Model, asked: Asked) -> Model:
    """The model with timm's tensors, under timm's names.

    Raises:
        NotModelledError: another family than ViT's or another head than for classes, or a part of timm's that is not played.
        InputError: an argument with a value that timm's own does not take.
    """
    if model.family != "vit" or model.architecture != "ViTForImageClassification":
        raise NotModelledError("implementation", "timm", f"is not modelled for {model.architecture or model.family}",
                               "use a vit config, and timm's own module by py:")  # fmt: skip
    config = model.config
    if config.head_dim is not None:
        raise NotModelledError("model.head_dim", config.head_dim, "is the width over the heads in timm", "leave it out")
    shape = _shape(config, asked.arguments)
    root = _root(config, shape)
    return replace(model, tensors=tuple(root.tensors()), tied={}, root=root, config=shape)


def _shape(config: Any, arguments: Mapping[str, Any]) -> Shape:
    told = {**FLAGS, **{key: value for key, value in arguments.items() if key in FLAGS}}
    for key, value in told.items():
        number = key == "init_values" and isinstance(value, int | float)
        if not (isinstance(value, bool) or number or (key == "fc_norm" and value is None)):
            raise InputError(f"implementation_args.{key}", value, "is not what timm takes",
                             "use 1e-5 or another number" if key == "init_values" else "use true or false")  # fmt: skip
    mlp, pool = arguments.get("mlp_layer", "Mlp"), arguments.get("global_pool", "token")
    registers = arguments.get("reg_tokens", 0)
    for key, value, known in (("mlp_layer", mlp, MLPS), ("global_pool", pool, POOLS)):
        if value not in known:
            raise NotModelledError(f"implementation_args.{key}", value, "is not modelled", f"use {' or '.join(known)}")
    if isinstance(registers, bool) or not isinstance(registers, int) or registers < 0:
        raise InputError("implementation_args.reg_tokens", registers, "is no number of tokens", "use 0, 4 or another")
    if pool == "token" and not told["class_token"]:
        raise InputError("implementation_args.global_pool", pool, "needs the class token", "use avg")
    blocks = Widths(
        config.hidden_size, config.num_attention_heads, config.intermediate_size, config.qkv_bias, bool(told["init_values"]),
        told["qk_norm"], mlp, config.hidden_act, config.hidden_dropout_prob, config.attention_probs_dropout_prob,
    )  # fmt: skip
    return Shape(
        blocks, config.num_hidden_layers, config.num_labels, registers, told["class_token"], not told["no_embed_class"],
        told["pre_norm"], pool, pool == "avg" if told["fc_norm"] is None else told["fc_norm"], config.hidden_dropout_prob,
        config.image_size, config.num_channels,
    )  # fmt: skip


def _root(config: Any, shape: Shape) -> Module:
    """source: vision_transformer.py:VisionTransformer.__init__"""
    width, image, patch = shape.blocks.width, area(config.image_size), area(config.patch_size)
    positions = patches(image, patch) + (shape.prefix if shape.positions_for_all else 0)
    tokens: list[tuple[str, Layer]] = []
    if shape.class_token:
        tokens.append(("cls_token", Parameter((1, 1, width))))
    if shape.registers:
        tokens.append(("reg_token", Parameter((1, shape.registers, width))))
    tokens.append(("pos_embed", Parameter((1, positions, width))))
    tokens.append(("patch_embed.proj", Conv(config.num_channels, width, patch, bias=not shape.pre_norm, stride=patch)))
    parts: list[tuple[str, Layer]] = [("", ImageTokens(image, patch, tuple(tokens), dropout=shape.dropout))]
    if shape.pre_norm:
        parts.append(("norm_pre", layer_norm(width)))
    parts += [
        ("blocks", Stack(TimmBlock(shape.blocks), shape.count)),
        ("fc_norm" if shape.fc_norm else "norm", layer_norm(width)),
        ("head", Maybe(shape.classes > 0, Linear(width, shape.classes))),
    ]
    return Module(parts)


def play(machine: Machine, architecture: str, shape: Shape, root: Module, batch: Batch) -> tuple[Value, Any]:
    """source: vision_transformer.py: VisionTransformer.forward_features, forward_head"""
    x = _features(machine, shape, root, batch["pixel_values"])
    x = select(machine, x, 1) if shape.pool == "token" else _averaged(machine, shape, x)
    if shape.fc_norm:
        x = machine.call("fc_norm", root.part("fc_norm").play, machine, x)
    if machine.decide(shape.classes == 0):
        return heads.bare(machine, x)
    x = machine.call("head", root.part("head").layer.play, machine, x)
    return heads.scores_loss(machine, x, batch["labels"]), x


def _averaged(machine: Machine, shape: Shape, x: Value) -> Value:
    """source: vision_transformer.py:global_pool_nlc"""
    x = narrow(machine, x, 1, x.shape[1] - shape.prefix) if shape.prefix else x
    return mean_over(machine, x, (1,))


def _features(machine: Machine, shape: Shape, root: Module, pixels: Value) -> Value:
    tokens: ImageTokens = root.part("")
    vision.check_sides(machine, tokens, pixels)
    held = dict(tokens.parts)
    x: Value = machine.call("patch_embed.proj", held["patch_embed.proj"].play, machine, pixels)  # type: ignore[attr-defined]
    x = vision.flattened(machine, x)
    x = _placed(machine, shape, held, x)
    if shape.pre_norm:
        x = machine.call("norm_pre", root.part("norm_pre").play, machine, x)
    x = run_layers(machine, "blocks", root.part("blocks"), _block, x, Context())
    if shape.fc_norm:
        return x
    return machine.call("norm", root.part("norm").play, machine, x)  # type: ignore[no-any-return]


def _block(machine: Machine, layer: TimmBlock, x: Value, context: Any) -> Value:
    return layer.play(machine, x)


def _placed(machine: Machine, shape: Shape, held: Mapping[str, Any], x: Value) -> Value:
    """source: vision_transformer.py:VisionTransformer._pos_embed"""
    rows = x.shape[0]
    to_cat = []
    for name in ("cls_token", "reg_token"):
        if name in held:
            token = vision.parameter(machine, name, held[name])
            to_cat.append(expand(machine, token, (rows, *token.shape[1:])))
    pos_embed = vision.parameter(machine, "pos_embed", held["pos_embed"])
    if not shape.positions_for_all:
        x = add(machine, x, pos_embed)
    if to_cat:
        x = cat(machine, (*to_cat, x), 1)
    if shape.positions_for_all:
        x = add(machine, x, pos_embed)
    return dropout(machine, x, shape.dropout)


IMPLEMENTATION = Implementation(
    name="timm", source="huggingface/pytorch-image-models 1.0.31 timm/models/vision_transformer.py", build=build, play=play,
    summary="ViT as timm builds it, and DINOv2's with layer scale, registers or gates",
    arguments=(*FLAGS, "mlp_layer", "global_pool", "reg_tokens"),
)  # fmt: skip
