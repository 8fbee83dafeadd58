"""torchvision's VisionTransformer: vit_b_16 by default."""

from __future__ import annotations

from typing import Any, ClassVar

from memcalc.arrays import Count
from memcalc.families.base import IMAGE, Architecture, Family, FamilyConfig, MaybeZero, Probability, Size
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Conv, Dropout, Linear, Parameter, layer_norm
from memcalc.layers.patches import ImageTokens, patches
from memcalc.layers.pointwise import Activation
from memcalc.layers.transformer import MLP, Block
from memcalc.layers.vision import TorchAttention


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


FAMILY = Family(
    model_type="torchvision_vit",
    config=TorchvisionViTConfig,
    architectures=("VisionTransformer",),
    usual="VisionTransformer",
    build=build,
    source="torchvision at 07a929e models/vision_transformer.py",
    inputs=IMAGE,
)
