"""SigLIP's vision tower, as multi-modal models carry it."""

from __future__ import annotations

from typing import Literal

from memcalc.families.base import FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import layer_norm
from memcalc.layers.transformer import MLP, Attention, Block
from memcalc.layers.vision import AttentionPool, PatchPositions

NAMES = {"k": "k_proj", "v": "v_proj", "q": "q_proj", "o": "out_proj"}


class SiglipVisionConfig(FamilyConfig):
    """source: transformers 5.23.0 models/siglip/configuration_siglip.py SiglipVisionConfig"""

    model_type: Literal["siglip_vision_model"] = "siglip_vision_model"
    """Another tower is refused: its tensors are not these."""
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    num_channels: Size = 3
    image_size: Size = 224
    patch_size: Size = 16
    hidden_act: str = "gelu_pytorch_tanh"
    attention_dropout: Probability = 0.0
    vision_use_head: Flag = True


def _mlp(config: SiglipVisionConfig) -> MLP:
    return MLP(config.hidden_size, config.intermediate_size, names=("fc1", "fc2"), activation=config.hidden_act)


def block(config: SiglipVisionConfig) -> Block:
    """One encoder layer."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    self_attention = Attention(
        hidden, heads, heads, hidden // heads, bias=True, output_bias=True, names=NAMES, dropout=config.attention_dropout,
        causal=False,
    )  # fmt: skip
    return Block(
        (
            ("layer_norm1", layer_norm(hidden)),
            ("self_attn", self_attention),
            ("layer_norm2", layer_norm(hidden)),
            ("mlp", _mlp(config)),
        )
    )


def siglip_vision_tower(config: SiglipVisionConfig) -> Module:
    """``SiglipVisionModel``: patches, encoder, norm, and the pooling head where the config asks for it."""
    hidden = config.hidden_size
    parts: list[tuple[str, Layer]] = [
        ("embeddings", PatchPositions(config.num_channels, hidden, config.image_size, config.patch_size)),
        ("encoder.layers", Stack(block(config), config.num_hidden_layers)),
        ("post_layernorm", layer_norm(hidden)),
    ]
    if config.vision_use_head:
        parts.append(("head", AttentionPool(hidden, config.num_attention_heads, layer_norm(hidden), _mlp(config))))
    return Module(parts)
