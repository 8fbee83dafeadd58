"""torchvision's VisionTransformer: vit_b_16 by default."""

from __future__ import annotations

from typing import Any, ClassVar

from memcalc.arrays import Count
from memcalc.families import _paired_heads as heads
from memcalc.families import _vision_forward as vision
from memcalc.families._forward import Batch, run_layers
from memcalc.families.base import IMAGE, Architecture, Family, FamilyConfig, MaybeZero, Probability, Size
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Conv, Dropout, Linear, Parameter, layer_norm
from memcalc.layers.patches import ImageTokens, patches
from memcalc.layers.pointwise import Activation
from memcalc.layers.transformer import MLP, Block
from memcalc.layers.vision import TorchAttention
from memcalc.play.activations import activated
from memcalc.play.checkpoint import checkpointed
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, dropout
from memcalc.play.reshape import select
from memcalc.play.values import Value


class TorchvisionViTConfig(FamilyConfig):
    """source: torchvision at 07a929e models/vision_transformer.py VisionTransformer.__init__, whose own names are read too"""

    aliases: ClassVar = {
        "hidden_dim": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
        "mlp_dim": "intermediate_size", "num_classes": "num_labels",
    }  # fmt: skip
    divides: ClassVar = (("num_attention_heads", "hidden_size"), ("patch_size", "image_size"))

    image_size: Size = 224
    patch_size: Size = 16
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    dropout: Probability = 0.0
    attention_dropout: Probability = 0.0
    representation_size: Size | None = None
    num_labels: MaybeZero = 1000
    conv_stem_configs: tuple[Any, ...] | None = None

    def check(self) -> tuple[str, str, str] | None:
        """A stem of several convolutions is refused: its images would be cut otherwise than said here."""
        if self.conv_stem_configs is not None:
            return "conv_stem_configs", "is not modelled", "read the module itself with py:package.module:factory"
        return super().check()


def block(config: TorchvisionViTConfig) -> Block:
    """One layer.

    source: torchvision at 07a929e models/vision_transformer.py EncoderBlock.__init__, MLPBlock.__init__
    """
    hidden, dropout = config.hidden_size, config.dropout
    return Block(
        (
            ("ln_1", layer_norm(hidden)),
            ("self_attention", TorchAttention(hidden, config.num_attention_heads, config.attention_dropout)),
            ("dropout", Dropout(dropout)),
            ("ln_2", layer_norm(hidden)),
            ("mlp", MLP(hidden, config.intermediate_size, names=("0", "3"), activation="gelu", dropout=dropout)),
            ("mlp.4", Dropout(dropout)),
        )
    )


def build(config: TorchvisionViTConfig, architecture: str) -> Architecture:
    """Tokens, layers, a final norm, and the classes, perhaps behind a tanh layer.

    source: torchvision at 07a929e models/vision_transformer.py VisionTransformer.__init__, Encoder.__init__
    """
    assert architecture == "VisionTransformer", architecture
    hidden = config.hidden_size
    image, patch = (config.image_size, config.image_size), (config.patch_size, config.patch_size)
    tokens: tuple[tuple[str, Layer], ...] = (
        ("class_token", Parameter((1, 1, hidden))),
        ("conv_proj", Conv(3, hidden, patch, stride=patch)),
        ("encoder.pos_embedding", Parameter((1, 1 + patches(image, patch), hidden))),
    )
    parts: list[tuple[str, Layer]] = [
        ("", ImageTokens(image, patch, tokens, dropout=config.dropout)),
        ("encoder.layers", Stack(block(config), config.num_hidden_layers, prefix="encoder_layer_")),
        ("encoder.ln", layer_norm(hidden)),
    ]
    width: Count = hidden
    if config.representation_size is not None:
        width = config.representation_size
        parts += [("heads.pre_logits", Linear(hidden, width)), ("heads.act", Activation("tanh"))]
    return Architecture(Module([*parts, ("heads.head", Linear(width, config.num_labels))]))


def play(machine: Machine, architecture: str, config: TorchvisionViTConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward; the model has no loss of its own.

    source: torchvision at 07a929e models/vision_transformer.py:VisionTransformer.forward
    """
    tokens = root.part("")
    held = dict(tokens.parts)
    vision.check_sides(machine, tokens, batch["pixel_values"])
    embedded = vision.flattened(machine, machine.call("conv_proj", held["conv_proj"].play, machine, batch["pixel_values"]))
    embedded = vision.behind_class(machine, vision.parameter(machine, "class_token", held["class_token"]), embedded)
    states = machine.call("encoder", _encoder, machine, root, held["encoder.pos_embedding"], embedded, tokens.dropout)
    embedded = states
    embedded = select(machine, embedded, 1)
    for name, layer in root.parts:
        if name.startswith("heads."):
            embedded = machine.call(name, checkpointed, machine, _head, machine, layer, embedded)
    return heads.bare(machine, embedded)


def _encoder(machine: Machine, root: Any, places: Any, value: Value, drop: float) -> Value:
    """source: torchvision vision_transformer.py:Encoder.forward"""
    summed = add(machine, value, vision.parameter(machine, "pos_embedding", places))
    hidden = machine.call("dropout", dropout, machine, summed, drop)
    hidden = run_layers(machine, "layers", root.part("encoder.layers"), _block, hidden, None)
    return machine.call("ln", root.part("encoder.ln").play, machine, hidden)  # type: ignore[no-any-return]


def _block(machine: Machine, block: Block, given: Value, context: object) -> Value:
    """source: torchvision vision_transformer.py:EncoderBlock.forward"""
    x = machine.call("ln_1", block.part("ln_1").play, machine, given)
    x = machine.call("self_attention", block.part("self_attention").play, machine, x)
    x = machine.call("dropout", block.part("dropout").play, machine, x)
    x = add(machine, x, given)
    y = machine.call("ln_2", block.part("ln_2").play, machine, x)
    y = machine.call("mlp", _mlp, machine, block.part("mlp"), block.part("mlp.4"), y)
    return add(machine, x, y)


def _mlp(machine: Machine, mlp: MLP, last: Dropout, value: Value) -> Value:
    value = mlp.play(machine, value)
    return machine.call("4", last.play, machine, value)  # type: ignore[no-any-return]


def _head(machine: Machine, layer: Any, value: Value) -> Value:
    return activated(machine, layer.function, value) if isinstance(layer, Activation) else layer.play(machine, value)


FAMILY = Family(
    model_type="torchvision_vit",
    config=TorchvisionViTConfig,
    architectures=("VisionTransformer",),
    usual="VisionTransformer",
    build=build,
    source="torchvision at 07a929e models/vision_transformer.py",
    inputs=IMAGE,
    play=play,
)
