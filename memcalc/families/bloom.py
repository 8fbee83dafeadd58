"""BLOOM: position biases in place of position embeddings, and a norm after the token embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from memcalc.families._classic_forward import only_written, through_layers
from memcalc.families._classic_heads import classic_forward
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._forward import Batch, Context, held_count, keys_of, written_mask
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Module
from memcalc.layers.basic import Dropout, layer_norm
from memcalc.layers.fused import cached, projected, selected
from memcalc.layers.transformer import MLP, Block, FusedAttention
from memcalc.play.batched import baddbmm
from memcalc.play.machine import Machine
from memcalc.play.matmul import bmm
from memcalc.play.norms import softmax
from memcalc.play.pointwise import add, dropout, to
from memcalc.play.reshape import merge_dims, split_dim, transpose
from memcalc.play.values import Value

NAMES = Names("transformer", "word_embeddings", "h", "ln_f", token_head="classifier", question_body="transformer")


class BloomConfig(FamilyConfig):
    """source: transformers 5.23.0 models/bloom/configuration_bloom.py"""

    aliases: ClassVar[Mapping[str, str]] = {
        "n_embed": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
    }

    vocab_size: Size = 250880
    hidden_size: Size = 64
    num_hidden_layers: Size = 2
    num_attention_heads: Size = 8
    apply_residual_connection_post_layernorm: Flag = False
    hidden_dropout: Probability = 0.0
    attention_dropout: Probability = 0.0
    classifier_dropout: Probability | None = None
    tie_word_embeddings: Flag = True


def block(config: BloomConfig) -> Block:
    """One decoder layer; the feed-forward is four times as wide, always."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    attention = FusedAttention(
        hidden, heads, heads, hidden // heads, names={"qkv": "query_key_value", "o": "dense"},
        dropout=config.attention_dropout, alibi=True,
    )  # fmt: skip
    return Block(
        (
            ("input_layernorm", layer_norm(hidden)),
            ("self_attention", attention),
            ("", Dropout(config.hidden_dropout)),
            ("post_attention_layernorm", layer_norm(hidden)),
            ("mlp", MLP(hidden, 4 * hidden, names=("dense_h_to_4h", "dense_4h_to_h"), activation="bloom_gelu")),
            ("", Dropout(config.hidden_dropout)),
        ),
        residual="output" if config.apply_residual_connection_post_layernorm else "input",
    )


def build(config: BloomConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    hidden = config.hidden_size
    return decoder_architecture(
        config, architecture, block(config), layer_norm(hidden), names=NAMES,
        before_layers=(("word_embeddings_layernorm", layer_norm(hidden)),),
    )  # fmt: skip


def layer(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value]:
    """source: transformers 5.23.0 models/bloom/modeling_bloom.py:BloomBlock.forward"""
    # the residual is what a norm read, or what it gave
    normed = machine.call("input_layernorm", block.part("input_layernorm").play, machine, hidden)
    residual = normed if block.residual == "output" else hidden
    attended, weights = machine.call("self_attention", attention, machine, block, normed, residual, context)
    normed = machine.call("post_attention_layernorm", block.part("post_attention_layernorm").play, machine, attended)
    residual = normed if block.residual == "output" else attended
    return machine.call("mlp", feed_forward, machine, block, normed, residual), weights


def attention(machine: Machine, block: Block, hidden: Value, residual: Value, context: Context) -> tuple[Value, Value]:
    """source: transformers 5.23.0 models/bloom/modeling_bloom.py:BloomAttention.forward"""
    layer, rows = block.part("self_attention"), hidden.shape[0]
    fused = projected(machine, layer, "qkv", hidden)
    query, key, value = selected(machine, layer, fused)
    key, value = cached(machine, key, value)
    query = merge_dims(machine, query, 0, 1)
    key = transpose(machine, merge_dims(machine, key, 0, 1), 1, 2)
    value = merge_dims(machine, value, 0, 1)
    assert context.bias is not None
    scores = baddbmm(machine, context.bias, query, key)
    weights = split_dim(machine, scores, 0, (rows, layer.heads))
    if context.mask is not None:
        weights = add(machine, weights, context.mask)
    probabilities = to(machine, softmax(machine, weights, "float32"), query.dtype)
    probabilities = dropout(machine, probabilities, layer.dropout)
    out = bmm(machine, merge_dims(machine, probabilities, 0, 1), value)
    out = transpose(machine, split_dim(machine, out, 0, (rows, layer.heads)), 1, 2)
    out = merge_dims(machine, out, 2, 3)
    last = projected(machine, layer, "o", out)
    last = _dropped_and_added(machine, block, last, residual)
    del fused, scores
    return last, probabilities


def _dropped_and_added(machine: Machine, block: Block, value: Value, residual: Value) -> Value:
    """source: transformers 5.23.0 models/bloom/modeling_bloom.py:dropout_add"""
    drop = block.part("")
    out = dropout(machine, value, drop.probability)
    return add(machine, residual, out)


def feed_forward(machine: Machine, block: Block, hidden: Value, residual: Value) -> Value:
    """source: transformers 5.23.0 models/bloom/modeling_bloom.py:BloomMLP.forward"""
    out = block.part("mlp").play(machine, hidden)
    return _dropped_and_added(machine, block, out, residual)


def biases(machine: Machine, rows: Any, tokens: Any, heads: Any, dtype: str) -> tuple[Value, Value]:
    """The bias of every position, ``(rows · heads, 1, tokens)``, and the slopes it was made of.

    source: transformers 5.23.0 models/bloom/modeling_bloom.py: BloomModel.forward, _get_alibi_slopes
    """
    slopes = machine.new((heads,), "float32", "pow.Tensor_Tensor")
    counted = machine.new((tokens,), "int64", "arange")
    bias = machine.new((heads, 1, tokens), "float32", "mul.Tensor")
    del counted
    return to(machine, machine.new((rows * heads, 1, tokens), bias.dtype, "repeat"), dtype), slopes


def play(machine: Machine, architecture: str, config: BloomConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    only_written(machine)

    def body(machine: Machine, root: Module, batch: Batch) -> Value:
        """source: transformers 5.23.0 models/bloom/modeling_bloom.py:BloomModel.forward"""
        embeds = machine.call("word_embeddings", root.part("word_embeddings").play, machine, batch["input_ids"])
        count = held_count(machine)
        norm = root.part("word_embeddings_layernorm")
        hidden = machine.call("word_embeddings_layernorm", norm.play, machine, embeds)
        context = Context(eager=True)
        context.bias, slopes = biases(machine, batch.rows, keys_of(machine, batch), config.num_attention_heads, hidden.dtype)
        context.mask = written_mask(machine, batch, embeds.dtype)
        given = [hidden]
        del hidden  # the only name for them, which the first layer's result takes
        hidden = through_layers(machine, root, NAMES, layer, given, context, root.part("h"))
        del embeds, slopes, count
        return hidden

    return classic_forward(machine, architecture, config, root, batch, NAMES, body)


FAMILY = Family(
    model_type="bloom",
    config=BloomConfig,
    architectures=(
        "BloomForCausalLM",
        "BloomModel",
        "BloomForSequenceClassification",
        "BloomForTokenClassification",
        "BloomForQuestionAnswering",
    ),
    usual="BloomForCausalLM",
    build=build,
    source="transformers 5.23.0 models/bloom/modeling_bloom.py",
    play=play,
    caches=True,
)
