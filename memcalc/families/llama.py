"""Llama, the pattern most decoders follow: RMSNorm, grouped-query attention with rotary positions, gated MLP."""

from __future__ import annotations

from typing import Any

from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import headed_forward, pre_norm
from memcalc.families._forward import Batch
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, Size
from memcalc.layers.basic import RotaryTable, rms_norm
from memcalc.layers.transformer import Attention, Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class LlamaConfig(FamilyConfig):
    """source: transformers 5.23.0 models/llama/configuration_llama.py"""

    vocab_size: Size = 32000
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    attention_bias: Flag = False
    mlp_bias: Flag = False
    tie_word_embeddings: Flag = False


def attention_sizes(config: LlamaConfig) -> tuple[int, int, int]:
    """(query heads, key-value heads, head dimension), the last two derived where the config leaves them out."""
    heads = config.num_attention_heads
    kv_heads = heads if config.num_key_value_heads is None else config.num_key_value_heads
    head_dim = config.hidden_size // heads if config.head_dim is None else config.head_dim
    return heads, kv_heads, head_dim


def block(config: LlamaConfig) -> Block:
    """One decoder layer."""
    heads, kv_heads, head_dim = attention_sizes(config)
    bias = config.attention_bias
    return Block(
        (
            ("self_attn", Attention(config.hidden_size, heads, kv_heads, head_dim, bias, output_bias=bias, rotary=head_dim)),
            ("mlp", GatedMLP(config.hidden_size, config.intermediate_size, config.mlp_bias)),
            ("input_layernorm", rms_norm(config.hidden_size)),
            ("post_attention_layernorm", rms_norm(config.hidden_size)),
        )
    )


def build(config: LlamaConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    *_, head_dim = attention_sizes(config)
    return decoder_architecture(
        config, architecture, block(config), rms_norm(config.hidden_size), rotary=RotaryTable(head_dim), names=Names()
    )


def play(machine: Machine, architecture: str, config: LlamaConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    *_, head_dim = attention_sizes(config)
    return headed_forward(machine, architecture, config, root, batch, Names(), pre_norm, width=head_dim)


FAMILY = Family(
    model_type="llama",
    config=LlamaConfig,
    architectures=(
        "LlamaForCausalLM",
        "LlamaModel",
        "LlamaForSequenceClassification",
        "LlamaForTokenClassification",
        "LlamaForQuestionAnswering",
    ),
    usual="LlamaForCausalLM",
    build=build,
    source="transformers 5.23.0 models/llama/modeling_llama.py",
    play=play,
    caches=True,
)
