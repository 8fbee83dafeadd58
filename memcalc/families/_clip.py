"""CLIP's two towers, which stand alone as well: a causal encoder of text, and one of the patches of an image."""

from __future__ import annotations

from memcalc.families.base import FamilyConfig, MaybeZero, Probability, Size
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Buffer, Conv, Embedding, Linear, Parameter, layer_norm
from memcalc.layers.encoder import SummedEmbeddings
from memcalc.layers.patches import ImageTokens, patches
from memcalc.layers.transformer import MLP, Attention, Block


class ClipTextConfig(FamilyConfig):
    """source: transformers 5.23.0 models/clip/configuration_clip.py CLIPTextConfig"""

    vocab_size: Size = 49408
    hidden_size: Size = 512
    intermediate_size: Size = 2048
    projection_dim: Size = 512
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 8
    max_position_embeddings: Size = 77
    eos_token_id: MaybeZero | None = 49407
    hidden_act: str = "quick_gelu"
    attention_dropout: Probability = 0.0


class ClipVisionConfig(FamilyConfig):
    """source: transformers 5.23.0 models/clip/configuration_clip.py CLIPVisionConfig"""

    hidden_size: Size = 768
    intermediate_size: Size = 3072
    projection_dim: Size = 512
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    num_channels: Size = 3
    image_size: Size = 224
    patch_size: Size = 32
    hidden_act: str = "quick_gelu"
    attention_dropout: Probability = 0.0


def encoder(config: ClipTextConfig | ClipVisionConfig, *, causal: bool) -> Stack:
    """The layers of either tower.

    source: transformers 5.23.0 models/clip/modeling_clip.py CLIPEncoderLayer.__init__, CLIPAttention.__init__
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    attention = Attention(
        hidden, heads, heads, hidden // heads, bias=True, output_bias=True, dropout=config.attention_dropout, causal=causal,
        names={"k": "k_proj", "v": "v_proj", "q": "q_proj", "o": "out_proj"},
    )  # fmt: skip
    block = Block(
        (
            ("layer_norm1", layer_norm(hidden)),
            ("self_attn", attention),
            ("layer_norm2", layer_norm(hidden)),
            ("mlp", MLP(hidden, config.intermediate_size, names=("fc1", "fc2"), activation=config.hidden_act)),
        ),
        # CLIPEncoderLayer builds attention, first norm, MLP, second norm
        registered=("self_attn", "layer_norm1", "mlp"),
    )
    return Stack(block, config.num_hidden_layers)


def text_tower(config: ClipTextConfig) -> Module:
    """``CLIPTextModel``.

    source: transformers 5.23.0 models/clip/modeling_clip.py CLIPTextModel.__init__, CLIPTextEmbeddings.__init__
    """
    hidden, positions = config.hidden_size, config.max_position_embeddings
    embeddings = SummedEmbeddings(
        tables=(
            ("token_embedding", Embedding(config.vocab_size, hidden)),
            ("position_embedding", Embedding(positions, hidden)),
        ),
        buffers=(("position_ids", Buffer((1, positions), "int64")),),
    )
    layers = encoder(config, causal=True)
    return Module([("embeddings", embeddings), ("encoder.layers", layers), ("final_layer_norm", layer_norm(hidden))])


def vision_tower(config: ClipVisionConfig) -> Module:
    """``CLIPVisionModel``; ``pre_layrnorm`` is its spelling.

    source: transformers 5.23.0 models/clip/modeling_clip.py CLIPVisionModel.__init__, CLIPVisionEmbeddings.__init__
    """
    hidden = config.hidden_size
    image, patch = (config.image_size, config.image_size), (config.patch_size, config.patch_size)
    positions = 1 + patches(image, patch)
    parts: tuple[tuple[str, Layer], ...] = (
        ("class_embedding", Parameter((hidden,))),
        ("patch_embedding", Conv(config.num_channels, hidden, patch, bias=False, stride=patch)),
        ("position_embedding", Embedding(positions, hidden)),
        ("position_ids", Buffer((1, positions), "int64")),
    )
    return Module(
        [
            ("embeddings", ImageTokens(image, patch, parts)),
            ("pre_layrnorm", layer_norm(hidden)),
            ("encoder.layers", encoder(config, causal=False)),
            ("post_layernorm", layer_norm(hidden)),
        ]
    )


def projected_text(config: ClipTextConfig) -> Module:
    """``CLIPTextModelWithProjection``."""
    return Module(
        [("text_model", text_tower(config)), ("text_projection", projection(config.hidden_size, config.projection_dim))]
    )


def projected_vision(config: ClipVisionConfig) -> Module:
    """``CLIPVisionModelWithProjection``."""
    tower, matrix = vision_tower(config), projection(config.hidden_size, config.projection_dim)
    return Module([("vision_model", tower), ("visual_projection", matrix)])


def projection(hidden: int, width: int) -> Linear:
    """The matrix into the space both towers share."""
    return Linear(hidden, width, bias=False)
