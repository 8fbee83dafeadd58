"""How T5 and mT5 run: a table of position biases that the first layer of each stack makes and all its layers add.

source: transformers 5.23.0 models/t5/modeling_t5.py; integrations/sdpa_attention.py
"""

from __future__ import annotations

from typing import Any

from memcalc.families import _paired_heads as heads
from memcalc.families._forward import Batch, eager_mask, given_states, run_layers
from memcalc.families._kept_pairs import kept_pair
from memcalc.layers.base import Module
from memcalc.layers.basic import Linear
from memcalc.layers.transformer import MLP, Attention, Block
from memcalc.play import biased
from memcalc.play.activations import activated
from memcalc.play.checkpoint import checkpointed
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, dropout, mul, power, rsqrt, scaled, shifted, to
from memcalc.play.reduce import mean_last
from memcalc.play.reshape import contiguous, merge_dims, split_dim, transpose
from memcalc.play.values import Value
from memcalc.records import dataclass

HALF = ("float16", "bfloat16")


@dataclass
class Biases:
    """What a stack hands to each of its layers.

    Attributes:
        mask: of the attention to the sequence itself, where it is written out.
        own: biases of the sequence's positions; None until the first layer has made them.
        cross: of the encoder's.
        encoder: what the encoder gave; None in an encoder.
    """

    mask: Value | None = None
    own: Value | None = None
    cross: Value | None = None
    encoder: Value | None = None


def norm(machine: Machine, layer: Any, value: Value) -> Value:
    """source: modeling_t5.py:T5LayerNorm.forward"""
    weight = machine.parameter("weight", (layer.width,), "norm")
    variance = mean_last(machine, power(machine, to(machine, value, "float32")))
    value = mul(machine, value, rsqrt(machine, shifted(machine, variance)))
    if weight.dtype in HALF:
        value = to(machine, value, weight.dtype)
    return mul(machine, weight, value)


def attention(
    machine: Machine, layer: Attention, hidden: Value, states: Value | None, mask: Value | None, bias: Value | None
) -> tuple[Value, Value, Value | None]:
    """What comes out, the biases that were added, and the weights where they are written out.

    source: modeling_t5.py:T5Attention.forward
    """
    matrices = layer.matrices()
    current = hidden if states is None else states
    query = _projected(machine, layer, "q", matrices, hidden)
    key, value = _kept(machine, layer, matrices, query, current, crossed=states is not None)
    if bias is None:
        table = next((each for name, each in layer.extra if name == "relative_attention_bias"), None)
        if table is None:
            bias = biased.no_bias(machine, query, key)
        else:
            bias = _computed(machine, table, query, key, bidirectional=not layer.causal)
    run = biased.eager if machine.policy.attention == "eager" else biased.fused
    out, weights = run(machine, query, key, value, mask, bias, causal=layer.causal, probability=layer.dropout)
    out = contiguous(machine, merge_dims(machine, out, 2, 3))
    out = machine.call("o", matrices["o"].play, machine, out)
    return out, bias, weights


def _kept(
    machine: Machine, layer: Attention, matrices: Any, query: Value, states: Value, *, crossed: bool
) -> tuple[Value, Value]:
    """Keys and values, put to those of a cache in a decoder that has one."""

    def project() -> tuple[Value, Value]:
        key = _projected(machine, layer, "k", matrices, states)
        return key, _projected(machine, layer, "v", matrices, states)

    return kept_pair(machine, layer, query, states, project, crossed=crossed)


def _projected(machine: Machine, layer: Attention, name: str, matrices: Any, hidden: Value) -> Value:
    made = machine.call(name, matrices[name].play, machine, hidden)
    return transpose(machine, split_dim(machine, made, 2, (layer.heads, layer.head_dim)), 1, 2)


def _computed(machine: Machine, table: Any, query: Value, key: Value, *, bidirectional: bool) -> Value:
    """source: modeling_t5.py:T5Attention.compute_bias"""
    place, distance, buckets = biased.buckets(machine, query.shape[2], key.shape[2], bidirectional=bidirectional)
    values = machine.call("relative_attention_bias", table.play, machine, buckets)
    del place, distance
    return biased.headed(machine, values)


def branch(
    machine: Machine, block: Block, index: int, hidden: Value, states: Value | None, mask: Value | None, bias: Value | None
) -> tuple[Value, Value, Value | None]:
    """A layer's attention to the sequence itself or to the encoder's, around it the residual; the biases; the weights.

    source: modeling_t5.py:T5LayerSelfAttention.forward, T5LayerCrossAttention.forward
    """
    at = f"layer.{index}"
    name = "SelfAttention" if states is None else "EncDecAttention"
    normed = machine.call(f"{at}.layer_norm", norm, machine, block.part(f"{at}.layer_norm"), hidden)
    layer = block.part(f"{at}.{name}")
    out, bias, weights = machine.call(f"{at}.{name}", attention, machine, layer, normed, states, mask, bias)
    dropped = machine.call(f"{at}.dropout", block.part(f"{at}.dropout").play, machine, out)
    return machine.call(at, add, machine, hidden, dropped), bias, weights


def feed_forward(machine: Machine, block: Block, index: int, hidden: Value) -> Value:
    """source: modeling_t5.py:T5LayerFF.forward"""
    at = f"layer.{index}"
    forwarded = machine.call(f"{at}.layer_norm", norm, machine, block.part(f"{at}.layer_norm"), hidden)
    forwarded = machine.call(f"{at}.DenseReluDense", dense, machine, block.part(f"{at}.DenseReluDense"), forwarded)
    dropped = machine.call(f"{at}.dropout", block.part(f"{at}.dropout").play, machine, forwarded)
    return machine.call(at, add, machine, hidden, dropped)  # type: ignore[no-any-return]


def dense(machine: Machine, layer: Any, hidden: Value) -> Value:
    """source: modeling_t5.py:T5DenseActDense.forward, T5DenseGatedActDense.forward"""
    first = Linear(layer.hidden, layer.intermediate, bias=False)
    last = Linear(layer.intermediate, layer.hidden, bias=False)
    names, activation = layer.names, layer.activation
    if isinstance(layer, MLP):
        hidden = machine.call(names[0], first.play, machine, hidden)
        hidden = machine.call("act", activated, machine, activation, hidden)
    else:
        gelu = machine.call("act", activated, machine, activation, machine.call(names[0], first.play, machine, hidden))
        wide = machine.call(names[1], first.play, machine, hidden)
        hidden = mul(machine, gelu, wide)
    hidden = machine.call("dropout", dropout, machine, hidden, layer.dropout)
    hidden = to(machine, hidden, machine.policy.dtype_of("linear"))
    return machine.call(names[-1], last.play, machine, hidden)  # type: ignore[no-any-return]


def clamped(machine: Machine, hidden: Value) -> Value:
    """FP16 kept from overflowing (modeling_t5.py:T5Block.forward)."""
    return biased.clamped(machine, hidden) if hidden.dtype == "float16" else hidden


def layer(machine: Machine, block: Block, hidden: Value, given: Biases) -> tuple[Value, Value, Value | None]:
    """One layer, and the biases it used.

    source: modeling_t5.py:T5Block.forward
    """
    hidden, own, weights = branch(machine, block, 0, hidden, None, given.mask, given.own)
    hidden = clamped(machine, hidden)
    cross, last = None, 1
    if given.encoder is not None:
        hidden, cross, weights = branch(machine, block, 1, hidden, given.encoder, None, given.cross)
        hidden = clamped(machine, hidden)
        last = 2
    hidden = feed_forward(machine, block, last, hidden)
    hidden = clamped(machine, hidden)
    del weights  # which the layer's last local, an underscore, holds to its end
    return hidden, own, cross


def _later(machine: Machine, block: Block, hidden: Value, given: Biases) -> Value:
    """One that is given biases and hands them on, through whatever nodes an engine of parallelism has put around it."""
    hidden, own, cross = layer(machine, block, hidden, given)
    if machine.policy.hooks is not None and not machine.again:
        given.own, given.cross = _handed_on(own), None if cross is None else _handed_on(cross)
    return hidden


def _handed_on(bias: Value) -> Value:
    made = bias.detached()
    made.node, made.index = bias.node, bias.index
    return made


def stack(machine: Machine, root: Module, ids: Value, batch: Batch, encoder: Value | None) -> Value:
    """The encoder, or the decoder over what it gave.

    source: modeling_t5.py:T5Stack.forward
    """
    embeds = machine.call("embed_tokens", root.part("embed_tokens").play, machine, ids)
    mask = None
    decoder = encoder is not None
    if decoder and machine.policy.attention == "eager":
        cache = machine.cache
        keys = None if cache is None else cache.reach(machine, ids.shape[1])
        mask = eager_mask(machine, batch, embeds.dtype, keys)
    dropout_ = root.part("dropout")
    hidden = machine.call("dropout", dropout_.play, machine, embeds)
    first, rest = (part for _, part in root.part("block").parts)
    given = Biases(mask, None, None, encoder)
    hidden, own, cross = machine.call("block.0", checkpointed, machine, layer, machine, first.layer, hidden, given)
    later = Biases(mask, own, cross, encoder)
    box = [hidden]
    del hidden  # the only name for them, which the next layer's result takes
    hidden = run_layers(machine, "block", rest, _later, box.pop(), later, first=1)
    hidden = machine.call("final_layer_norm", norm, machine, root.part("final_layer_norm"), hidden)
    return machine.call("dropout", dropout_.play, machine, hidden)  # type: ignore[no-any-return]


def both(machine: Machine, root: Module, source: Value, target: Value, batch: Batch) -> tuple[Value, Value]:
    """Encoder and decoder: what the decoder gives, and what the output holds of the encoder's.

    source: modeling_t5.py:T5Model.forward
    """
    encoded = machine.call("encoder", stack, machine, root.part("encoder"), source, batch, None)
    return machine.call("decoder", stack, machine, root.part("decoder"), target, batch, encoded), encoded


def play(machine: Machine, kind: str, config: Any, root: Any, batch: Batch, *, scale: bool) -> tuple[Value, Any]:
    """A training forward; ``kind`` is a class name without its family, ``scale`` whether what the decoder gives is scaled.

    source: modeling_t5.py
    """
    ids = batch["input_ids"]
    if kind == "ForConditionalGeneration":
        return _generation(machine, config, root, batch, scale=scale)
    if kind == "Model":
        hidden, encoded = both(machine, root, ids, batch["decoder_input_ids"], batch)
        return heads.bare(machine, hidden, encoded)
    if kind == "EncoderModel":
        hidden = machine.call("encoder", stack, machine, root.part("encoder"), ids, batch, None)
        return heads.bare(machine, hidden)
    if kind == "ForTokenClassification":
        return _tokens(machine, config, root, batch)
    if kind == "ForQuestionAnswering":
        hidden, encoded = both(machine, root.part(""), ids, heads.shifted_right(machine, ids), batch)
        logits = machine.call("qa_outputs", root.part("qa_outputs").play, machine, hidden)
        loss, kept = heads.answers_loss(machine, logits, batch)
        return loss, (kept, encoded)
    assert kind == "ForSequenceClassification", kind
    return _classes(machine, config, root, batch)


def _generation(machine: Machine, config: Any, root: Any, batch: Batch, *, scale: bool) -> tuple[Value, Any]:
    """source: modeling_t5.py:T5ForConditionalGeneration.forward"""
    body = root.part("")
    encoded = given_states(machine, batch, config.hidden_size)
    if encoded is None:
        encoded = machine.call("encoder", stack, machine, body.part("encoder"), batch["input_ids"], batch, None)
    target = heads.shifted_right(machine, batch["labels"]) if machine.cache is None else batch["decoder_input_ids"]
    hidden = decoded = machine.call("decoder", stack, machine, body.part("decoder"), target, batch, encoded)
    if scale:
        hidden = scaled(machine, hidden)
    logits = machine.call("lm_head", root.part("lm_head").play, machine, hidden)
    if machine.cache is not None:
        del decoded, target
        return logits, encoded
    loss = heads.scores_loss(machine, logits, batch["labels"])
    del decoded, target
    return loss, (logits, encoded)


def _tokens(machine: Machine, config: Any, root: Any, batch: Batch) -> tuple[Value, Any]:
    """source: modeling_t5.py:T5ForTokenClassification.forward"""
    body = root.part("transformer").part("encoder")
    hidden = outputs = machine.call("transformer.encoder", stack, machine, body, batch["input_ids"], batch, None)
    hidden = machine.call("dropout", root.part("dropout").play, machine, hidden)
    logits = machine.call("classifier", root.part("classifier").play, machine, hidden)
    loss = heads.scores_loss(machine, logits, batch["labels"])
    del outputs
    return loss, logits


def _classes(machine: Machine, config: Any, root: Any, batch: Batch) -> tuple[Value, Any]:
    """source: modeling_t5.py:T5ForSequenceClassification.forward"""
    ids = batch["input_ids"]
    target = heads.shifted_right(machine, ids)
    hidden, encoded = machine.call("transformer", both, machine, root.part("transformer"), ids, target, batch)
    loss, scores = heads.last_token_classes(machine, root.part("classification_head"), hidden, ids, batch)
    return loss, (scores, encoded)
