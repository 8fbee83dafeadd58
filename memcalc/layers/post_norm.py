"""Layers whose normalisation comes after the residual: BERT's and its descendants'."""

from __future__ import annotations

from typing import Any

from memcalc.layers.attending import Context, by_head, core
from memcalc.layers.disentangled import disentangled
from memcalc.layers.transformer import MLP, Attention, Block
from memcalc.play.activations import activated
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add
from memcalc.play.reshape import contiguous, merge_dims
from memcalc.play.values import Value
from memcalc.records import replace


def mixed(machine: Machine, layer: Attention, hidden: Value, context: Context) -> Value:
    """Attention without its output matrix: queries, keys and values are gone when that runs.

    source: transformers 5.23.0 models/bert/modeling_bert.py:BertSelfAttention.forward
    """
    query, key, value = by_head(machine, layer, hidden)
    out = core(machine, layer, query, key, value, context)
    return contiguous(machine, merge_dims(machine, out, 2, 3))


def attended(machine: Machine, block: Block, name: str, hidden: Value, context: Context) -> Value:
    """Attention, its output matrix, dropout, and the normalised sum (BertAttention.forward, BertSelfOutput.forward)."""
    layer = block.part(name)
    if isinstance(layer, Attention):
        out = machine.call(name, mixed, machine, layer, hidden, context)
        dense = layer.names["o"], layer.matrices()["o"]
    else:
        out = machine.call(f"{name}.self", disentangled, machine, layer, hidden, context)
        dense = "output.dense", layer.output()
    return machine.call(name, _output, machine, dense, *_after(block, f"{name}.output"), out, hidden)  # type: ignore[no-any-return]


def _after(block: Block, name: str) -> tuple[Any, Any]:
    """Dropout and normalisation of that name."""
    return block.part(f"{name}.dropout"), block.part(f"{name}.LayerNorm")


def _output(
    machine: Machine, dense: tuple[str, Any], dropout: Any, norm: Any, hidden: Value, given: Value, at: str = "output"
) -> Value:
    """source: transformers 5.23.0 models/bert/modeling_bert.py:BertSelfOutput.forward"""
    name, matrix = dense
    hidden = machine.call(name, matrix.play, machine, hidden)
    hidden = dropout.play(machine, hidden)
    return machine.call(f"{at}.LayerNorm", norm.play, machine, add(machine, hidden, given))  # type: ignore[no-any-return]


def bert_layer(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """Attention to itself, to an encoder where there is one, and the feed-forward.

    source: transformers 5.23.0 models/bert/modeling_bert.py:BertLayer.forward
    """
    context = replace(context, weights=[])  # "_", which holds the weights to the layer's end
    attention_output = attended(machine, block, "attention", hidden, context)
    return feed_forward(machine, block, attention_output)


def feed_forward(machine: Machine, block: Block, attention_output: Value) -> Value:
    """Two matrices, dropout, and the normalised sum (BertLayer.feed_forward_chunk)."""
    mlp: MLP = block.part("")
    (up, down), (first, last) = mlp.names, mlp.matrices()
    intermediate_output = machine.call(up, _activated, machine, first, mlp.activation, attention_output)
    return _output(machine, (down, last), *_after(block, "output"), intermediate_output, attention_output)


def _activated(machine: Machine, matrix: Any, activation: str, hidden: Value) -> Value:
    hidden = matrix.play(machine, hidden)
    return activated(machine, activation, hidden)
