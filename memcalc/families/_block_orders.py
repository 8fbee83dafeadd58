"""The order in which a decoder's layer runs its parts, where it is not llama's (:func:`_decoder_forward.pre_norm`)."""

from __future__ import annotations

from typing import Any

from memcalc.families._forward import Context
from memcalc.layers.base import Module
from memcalc.layers.rotations import sliced
from memcalc.layers.transformer import Block
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add
from memcalc.play.values import Value
from memcalc.records import replace


def _part(machine: Machine, block: Block, name: str, value: Value) -> Value:
    made: Value = machine.call(name, block.part(name).play, machine, value)
    return made


def _attended(machine: Machine, block: Block, value: Value, context: Context) -> Value:
    made: Value = machine.call("self_attn", block.part("self_attn").play, machine, value, context)
    return made


def output_norm(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """source: transformers 5.23.0 models/olmo2/modeling_olmo2.py:Olmo2DecoderLayer.forward"""
    context = replace(context, weights=[])
    residual = hidden
    hidden = _attended(machine, block, hidden, context)
    hidden = _part(machine, block, "post_attention_layernorm", hidden)
    hidden = add(machine, residual, hidden)
    residual = hidden
    hidden = _part(machine, block, "mlp", hidden)
    hidden = _part(machine, block, "post_feedforward_layernorm", hidden)
    return add(machine, residual, hidden)


def both_norms(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """source: transformers 5.23.0 models/gemma2/modeling_gemma2.py:Gemma2DecoderLayer.forward"""
    context = replace(context, weights=[])  # "_", which holds the weights to the layer's end
    residual = hidden
    hidden = _part(machine, block, "input_layernorm", hidden)
    hidden = _attended(machine, block, hidden, context)
    hidden = _part(machine, block, "post_attention_layernorm", hidden)
    hidden = add(machine, residual, hidden)
    residual = hidden
    hidden = _part(machine, block, "pre_feedforward_layernorm", hidden)
    hidden = _part(machine, block, "mlp", hidden)
    hidden = _part(machine, block, "post_feedforward_layernorm", hidden)
    return add(machine, residual, hidden)


def dropped(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """source: transformers 5.23.0 models/phi3/modeling_phi3.py:Phi3DecoderLayer.forward"""
    context = replace(context, weights=[])  # "_", which holds the weights to the layer's end
    residual = hidden
    hidden = _part(machine, block, "input_layernorm", hidden)
    hidden = machine.call("self_attn", sliced, machine, block.part("self_attn"), hidden, context)
    hidden = add(machine, residual, _part(machine, block, "resid_attn_dropout", hidden))
    residual = hidden
    hidden = _part(machine, block, "post_attention_layernorm", hidden)
    hidden = _part(machine, block, "mlp", hidden)
    return add(machine, residual, _part(machine, block, "resid_mlp_dropout", hidden))


def stablelm(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """One after the other, or side by side behind one norm.

    source: transformers 5.23.0 models/stablelm/modeling_stablelm.py:StableLmDecoderLayer.forward
    """
    context = replace(context, weights=[])  # "_", which holds the weights to the layer's end
    residual = hidden
    hidden = _part(machine, block, "input_layernorm", hidden)
    attended = _attended(machine, block, hidden, context)
    if block.parallel:
        out = _part(machine, block, "mlp", hidden)
        out = _part(machine, block, "dropout", out)
        return add(machine, add(machine, residual, attended), out)
    residual = add(machine, residual, attended)
    out = _part(machine, block, "mlp", _part(machine, block, "post_attention_layernorm", residual))
    out = _part(machine, block, "dropout", out)
    return add(machine, residual, out)


def parallel(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """source: transformers 5.23.0 models/cohere/modeling_cohere.py:CohereDecoderLayer.forward"""
    context = replace(context, weights=[])  # "_", which holds the weights to the layer's end
    residual = hidden
    hidden = _part(machine, block, "input_layernorm", hidden)
    attended = _attended(machine, block, hidden, context)
    out = _part(machine, block, "mlp", hidden)
    return add(machine, add(machine, residual, attended), out)


def parallel_dropped(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """source: transformers 5.23.0 models/phi/modeling_phi.py:PhiDecoderLayer.forward"""
    context = replace(context, weights=[])  # "_", which holds the weights to the layer's end
    residual = hidden
    hidden = _part(machine, block, "input_layernorm", hidden)
    attended = _attended(machine, block, hidden, context)
    attended = _part(machine, block, "resid_dropout", attended)
    out = _part(machine, block, "resid_dropout", _part(machine, block, "mlp", hidden))
    return add(machine, add(machine, attended, out), residual)


def ending_in_dropout(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """Llama's order; attention and MLP end in a dropout.

    source: transformers 5.23.0 models/starcoder2/modeling_starcoder2.py: Starcoder2DecoderLayer, Starcoder2MLP.forward
    """
    context = replace(context, weights=[])  # "_", which holds the weights to the layer's end
    residual = hidden
    hidden = _part(machine, block, "input_layernorm", hidden)
    hidden = machine.call("self_attn", _ended, machine, block.part("self_attn"), hidden, context)
    hidden = add(machine, residual, hidden)
    residual = hidden
    hidden = _part(machine, block, "post_attention_layernorm", hidden)
    hidden = machine.call("mlp", _ended, machine, block.part("mlp"), hidden)
    return add(machine, residual, hidden)


def _ended(machine: Machine, parts: Module, value: Value, *more: Context) -> Value:
    main: Any
    dropout: Any
    (_, main), (_, dropout) = parts.parts
    value = main.play(machine, value, *more)
    made: Value = dropout.play(machine, value)
    return made
