"""MPT as transformers builds it: position biases, no bias on any matrix or norm, a feed-forward four times as wide.

``expansion_ratio``, ``learned_pos_emb``, ``no_bias`` and the ``attn_type`` of ``attn_config`` are keys that its modules do not
read; llm-foundry's do, so a model trained there with learned positions or biases has more parameters than this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from memcalc.families._classic_forward import only_written, through_layers
from memcalc.families._classic_heads import classic_forward
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._forward import Batch, Context, held_count, written_mask
from memcalc.families._places import learned
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Module
from memcalc.layers.basic import Dropout, layer_norm
from memcalc.layers.fused import cached, projected, thirds
from memcalc.layers.transformer import MLP, Block, FusedAttention
from memcalc.play.inplace import clamp
from memcalc.play.machine import Machine
from memcalc.play.matmul import matmul
from memcalc.play.norms import softmax
from memcalc.play.pointwise import add, dropout, masked_fill, scaled, to
from memcalc.play.reshape import contiguous, merge_dims, transpose
from memcalc.play.values import Value

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
        dropout=dropout, alibi=True, clip=(config.attn_config or MptAttentionConfig()).clip_qkv or None,
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


def layer(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value]:
    """source: transformers 5.23.0 models/mpt/modeling_mpt.py:MptBlock.forward"""
    normed = machine.call("norm_1", block.part("norm_1").play, machine, hidden)
    residual = hidden
    attended, weights = machine.call("attn", attention, machine, block, normed, context)
    drop = block.part("resid_attn_dropout")
    hidden = add(machine, machine.call("resid_attn_dropout", drop.play, machine, attended), residual)
    normed = machine.call("norm_2", block.part("norm_2").play, machine, hidden)
    residual = hidden
    return machine.call("ffn", feed_forward, machine, block, normed, residual), weights


def attention(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value]:
    """source: transformers 5.23.0 models/mpt/modeling_mpt.py:MptAttention.forward"""
    layer = block.part("attn")
    mixed = projected(machine, layer, "qkv", hidden)
    if layer.clip is not None:
        mixed = clamp(machine, mixed)
    query, key, value = thirds(machine, layer, mixed)
    key, value = cached(machine, key, value)
    scores = scaled(machine, matmul(machine, query, transpose(machine, key, 2, 3)))
    count = held_count(machine, updated=True)
    assert context.bias is not None
    heads, one, _ = context.bias.shape
    bias = Value(context.bias.storage, (heads, one, key.shape[2]), context.bias.dtype)  # its last positions
    scores = add(machine, scores, bias)
    assert context.mask is not None
    scores = masked_fill(machine, scores, context.mask)
    weights = to(machine, softmax(machine, to(machine, scores, "float32")), value.dtype)
    weights = dropout(machine, weights, layer.dropout)
    out = matmul(machine, weights, value)
    out = merge_dims(machine, contiguous(machine, transpose(machine, out, 1, 2)), 2, 3)
    out = projected(machine, layer, "o", out)
    del mixed, scores, count
    return out, weights


def feed_forward(machine: Machine, block: Block, hidden: Value, residual: Value) -> Value:
    """source: transformers 5.23.0 models/mpt/modeling_mpt.py:MptMLP.forward"""
    made = block.part("ffn").play(machine, hidden)
    out = dropout(machine, made, block.part("attn").dropout)
    return add(machine, out, residual)


def biases(machine: Machine, longest: Any, heads: Any) -> Value:
    """The bias of every position, ``(heads, 1, longest)``, in FP32.

    source: transformers 5.23.0 models/mpt/modeling_mpt.py:build_mpt_alibi_tensor
    """
    counted = machine.new((longest,), "int32", "arange")
    out = machine.new((heads, 1, longest), "float32", "mul.Tensor")
    del counted
    return out


def play(machine: Machine, architecture: str, config: MptConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    only_written(machine)

    def body(machine: Machine, root: Module, batch: Batch) -> Value:
        """source: transformers 5.23.0 models/mpt/modeling_mpt.py:MptModel.forward"""
        hidden = machine.call("wte", root.part("wte").play, machine, batch["input_ids"])
        embeds, context = hidden, Context(eager=True)
        context.bias = biases(machine, config.max_position_embeddings, config.num_attention_heads)
        mask = written_mask(machine, batch, embeds.dtype)
        context.mask = machine.like(mask, "_to_copy", "bool")
        del mask
        hidden = through_layers(machine, root, NAMES, layer, [hidden], context, root.part("blocks"))
        del embeds
        return hidden

    return classic_forward(machine, architecture, config, root, batch, NAMES, body)


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
    play=play,
    places=learned,
    caches=True,
)
