"""Cohere's Command R: attention and MLP in parallel on one norm without shift, tied embeddings, scaled logits."""

from __future__ import annotations

from typing import Any

from memcalc.errors import InputError
from memcalc.families._block_orders import parallel
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._decoder_forward import Style, headed_forward
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import RotaryDecoderConfig, attention, head_sizes, rotary_width
from memcalc.families._rotary_forward import rotary_of
from memcalc.families.base import Architecture, Family, Flag, Size
from memcalc.layers.basic import Norm, RotaryTable
from memcalc.layers.norms import HeadNorm
from memcalc.layers.pointwise import Scale
from memcalc.layers.transformer import Block, GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class CohereConfig(RotaryDecoderConfig):
    """source: transformers 5.23.0 models/cohere/configuration_cohere.py"""

    vocab_size: Size = 256000
    hidden_size: Size = 8192
    intermediate_size: Size = 22528
    num_hidden_layers: Size = 40
    num_attention_heads: Size = 64
    hidden_act: str = "silu"
    attention_bias: Flag = False
    tie_word_embeddings: Flag = True
    use_qk_norm: Flag | None = False
    logit_scale: float | None = 0.0625


def cohere_norm(width: int) -> Norm:
    """The family's layer normalisation: a scale and no shift."""
    return Norm(width, function="layer_composed")


def block(config: CohereConfig) -> Block:
    """One decoder layer."""
    heads, kv_heads, head_dim = head_sizes(config)
    query_norm, key_norm = HeadNorm(heads, head_dim), HeadNorm(kv_heads, head_dim)
    bias = config.attention_bias
    self_attention = attention(
        config, bias=bias, output_bias=bias,
        query_norm=query_norm if config.use_qk_norm else None, key_norm=key_norm if config.use_qk_norm else None,
        normed="view", turn="pairs",
    )  # fmt: skip
    return Block(
        (
            ("self_attn", self_attention),
            ("mlp", GatedMLP(config.hidden_size, config.intermediate_size, activation=config.hidden_act)),
            ("input_layernorm", cohere_norm(config.hidden_size)),
        ),
        parallel=True,
    )


def build(config: CohereConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    return decoder_architecture(
        config, architecture, block(config), cohere_norm(config.hidden_size), rotary=RotaryTable(rotary_width(config)),
        after_head=() if config.logit_scale is None else (Scale(config.logit_scale),),
    )  # fmt: skip


def play(machine: Machine, architecture: str, config: CohereConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    if config.logit_scale is None and architecture.endswith("ForCausalLM"):
        raise InputError("model.logit_scale", None, "is what its forward multiplies logits by", "give the number, as 0.0625")
    style = Style(parallel, rotary_of(config, rotary_width(config), paired=True))
    return headed_forward(machine, architecture, config, root, batch, Names(), style)


FAMILY = Family(
    model_type="cohere",
    config=CohereConfig,
    architectures=("CohereForCausalLM", "CohereModel"),
    usual="CohereForCausalLM",
    build=build,
    play=play,
    caches=True,
    source="transformers 5.23.0 models/cohere/modeling_cohere.py",
)
