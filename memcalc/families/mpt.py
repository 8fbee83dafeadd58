"""MPT as transformers builds it: position biases, no bias on any matrix or norm, a feed-forward four times as wide.

``expansion_ratio``, ``learned_pos_emb``, ``no_bias`` and the ``attn_type`` of ``attn_config`` are keys that its modules do not
read; llm-foundry's do, so a model trained there with learned positions or biases has more parameters than this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, Probability, Size
from memcalc.layers.basic import Dropout, layer_norm
from memcalc.layers.transformer import MLP, Block, FusedAttention

NAMES = Names("transformer", "wte", "blocks", "norm_f", token_head="classifier", question_body="transformer")


class MptAttentionConfig(BaseModel):
    """source: transformers 5.23.0 models/mpt/configuration_mpt.py MptAttentionConfig"""

    model_config = ConfigDict(frozen=True, extra="ignore")

    attn_type: Literal["multihead_attention", "multiquery_attention"] = "multihead_attention"
    attn_pdrop: Probability = 0.0
    clip_qkv: float | None = None


class MptConfig(FamilyConfig):
    """source: transformers 5.23.0 models/mpt/configuration_mpt.py MptConfig"""

    aliases: ClassVar[Mapping[str, str]] = {
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "max_seq_len": "max_position_embeddings",
    }

    vocab_size: Size = 50368
    hidden_size: Size = 2048
    num_hidden_layers: Size = 24
    num_attention_heads: Size = 16
    max_position_embeddings: Size = 2048
    """Positions the bias is made for; no tensor's size."""
    attn_config: MptAttentionConfig | None = None
    classifier_dropout: Probability | None = None
    hidden_dropout: Probability | None = None
    tie_word_embeddings: Flag = True


def block(config: MptConfig) -> Block:
    """One decoder layer."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    dropout = (config.attn_config or MptAttentionConfig()).attn_pdrop
    attention = FusedAttention(
        hidden, heads, heads, hidden // heads, bias=False, output_bias=False, names={"qkv": "Wqkv", "o": "out_proj"},
        dropout=dropout, alibi=True,
    )  # fmt: skip
    return Block(
        (
            ("norm_1", layer_norm(hidden, bias=False)),
            ("attn", attention),
            ("norm_2", layer_norm(hidden, bias=False)),
            ("ffn", MLP(hidden, 4 * hidden, bias=False, names=("up_proj", "down_proj"), activation="gelu")),
            ("resid_attn_dropout", Dropout(dropout)),
        )
    )


def build(config: MptConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    return decoder_architecture(config, architecture, block(config), layer_norm(config.hidden_size, bias=False), names=NAMES)


FAMILY = Family(
    model_type="mpt",
    config=MptConfig,
    architectures=(
        "MptForCausalLM",
        "MptModel",
        "MptForSequenceClassification",
        "MptForTokenClassification",
        "MptForQuestionAnswering",
        "MPTForCausalLM",  # as the checkpoints on the Hub spell it
    ),
    usual="MptForCausalLM",
    build=build,
    source="transformers 5.23.0 models/mpt/modeling_mpt.py",
)
