"""How BART and Whisper run: attention to the sequence and to the encoder's, and the layers around it.

source: transformers 5.23.0 models/bart/modeling_bart.py, models/whisper/modeling_whisper.py
"""

from __future__ import annotations

from memcalc.families._forward import run_layers
from memcalc.families._kept_pairs import kept_pair
from memcalc.layers.base import Module
from memcalc.layers.basic import Linear
from memcalc.layers.transformer import Attention, Block
from memcalc.play import biased
from memcalc.play.activations import activated
from memcalc.play.inplace import clamp
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, dropout, scaled
from memcalc.play.reshape import contiguous, merge_dims, split_dim, transpose
from memcalc.play.values import Value
from memcalc.records import dataclass


@dataclass
class Sides:
    """What a stack hands to each of its layers.

    Attributes:
        mask: of the attention to the sequence itself.
        encoder: what the encoder gave; None in an encoder.
        whisper: whether queries are scaled before the kernel, and all three heads copied close.
        guarded: how an encoder keeps FP16 from overflowing: ``always`` by a clamp, ``looked`` by a look, or not.
    """

    mask: Value | None = None
    encoder: Value | None = None
    whisper: bool = False
    guarded: str = ""


def attention(
    machine: Machine, layer: Attention, hidden: Value, states: Value | None, sides: Sides
) -> tuple[Value, Value | None]:
    """What comes out, and the weights where they are written out.

    source: modeling_bart.py:BartAttention.forward; modeling_whisper.py:WhisperAttention.forward
    """
    matrices = layer.matrices()
    current = hidden if states is None else states
    query = machine.call("q_proj", matrices["q"].play, machine, hidden)
    query = _headed(machine, layer, scaled(machine, query) if sides.whisper else query, sides)
    key, value = _kept(machine, layer, query, current, sides, crossed=states is not None)
    mask = sides.mask if states is None else None
    out, weights = biased.plain(machine, query, key, value, mask, causal=layer.causal, probability=layer.dropout)
    out = contiguous(machine, merge_dims(machine, out, 2, 3))
    return machine.call("out_proj", matrices["o"].play, machine, out), weights


def _kept(
    machine: Machine, layer: Attention, query: Value, states: Value, sides: Sides, *, crossed: bool
) -> tuple[Value, Value]:
    """Keys and values, put to those of a cache in a decoder that has one."""

    def project() -> tuple[Value, Value]:
        matrices = layer.matrices()
        if sides.whisper:
            key = _headed(machine, layer, machine.call("k_proj", matrices["k"].play, machine, states), sides)
            return key, _headed(machine, layer, machine.call("v_proj", matrices["v"].play, machine, states), sides)
        key = machine.call("k_proj", matrices["k"].play, machine, states)
        value = machine.call("v_proj", matrices["v"].play, machine, states)
        return _headed(machine, layer, key, sides), _headed(machine, layer, value, sides)

    return kept_pair(machine, layer, query, states, project, crossed=crossed)


def _headed(machine: Machine, layer: Attention, made: Value, sides: Sides) -> Value:
    made = transpose(machine, split_dim(machine, made, 2, (layer.heads, layer.head_dim)), 1, 2)
    return contiguous(machine, made) if sides.whisper else made


def layer(machine: Machine, block: Block, hidden: Value, sides: Sides) -> Value:
    """One layer of either side, its norms before or after its branches.

    source: modeling_bart.py:BartEncoderLayer.forward, BartDecoderLayer.forward; modeling_whisper.py: Whisper's likewise
    """
    pre = block.norms == "pre"
    p = block.part("dropout").probability
    branches = ("self_attn",) if sides.encoder is None else ("self_attn", "encoder_attn")
    for name in branches:
        residual = hidden
        norm = block.part(f"{name}_layer_norm")
        if pre:
            hidden = machine.call(f"{name}_layer_norm", norm.play, machine, hidden)
        states = sides.encoder if name == "encoder_attn" else None
        hidden, weights = machine.call(name, attention, machine, block.part(name), hidden, states, sides)
        hidden = dropout(machine, hidden, p)
        hidden = add(machine, residual, hidden)
        if not pre:
            hidden = machine.call(f"{name}_layer_norm", norm.play, machine, hidden)
    residual, mlp, norm = hidden, block.part(""), block.part("final_layer_norm")
    if pre:
        hidden = machine.call("final_layer_norm", norm.play, machine, hidden)
    hidden = machine.call("fc1", Linear(mlp.hidden, mlp.intermediate).play, machine, hidden)
    hidden = machine.call("activation_fn", activated, machine, mlp.activation, hidden)
    hidden = dropout(machine, hidden, mlp.dropout)
    hidden = machine.call("fc2", Linear(mlp.intermediate, mlp.hidden).play, machine, hidden)
    hidden = dropout(machine, hidden, p)
    hidden = add(machine, residual, hidden)
    if not pre:
        hidden = machine.call("final_layer_norm", norm.play, machine, hidden)
    hidden = _guarded(machine, hidden, sides)
    del residual, weights  # the layer's locals, the last of them an underscore
    return hidden


def _guarded(machine: Machine, hidden: Value, sides: Sides) -> Value:
    """FP16 kept from overflowing; a look finds that nothing did."""
    if hidden.dtype != "float16" or not sides.guarded:
        return hidden
    if sides.guarded == "always":
        return clamp(machine, hidden)
    # TensorCompare.cpp:isfinite: (self == self) * (self.abs() != infinity)
    number, size = machine.like(hidden, "eq.Tensor", "bool"), machine.like(hidden, "abs")
    bounded = machine.like(hidden, "ne.Scalar", "bool")
    del size
    finite = machine.like(hidden, "mul.Tensor", "bool")
    del number, bounded
    every = machine.new((), "bool", "all")
    del finite, every
    return hidden


def run(machine: Machine, root: Module, given: list[Value], sides: Sides) -> Value:
    """The list of layers, of what is taken out of ``given``: the first layer's result takes its only name."""
    return run_layers(machine, "layers", root.part("layers"), layer, given.pop(), sides)
