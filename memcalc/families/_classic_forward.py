"""How the decoders before llama run in transformers: learned positions, dropouts, blocks one after another or side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.families._decoder import Names
from memcalc.families._forward import Batch, Context, causal_mask, positions, run_layers
from memcalc.layers.base import Module
from memcalc.layers.transformer import Block
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add
from memcalc.play.values import Value

LayerPlay = Callable[[Machine, Any, Value, Context], Value]


def one_after_another(attention: Callable[..., tuple[Value, Value | None]]) -> LayerPlay:
    """Attention, then the feed-forward, each after a norm and added to what it read.

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:GPT2Block.forward
    """

    def play(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
        residual = hidden
        hidden = machine.call("ln_1", block.part("ln_1").play, machine, hidden)
        attended, weights = machine.call("attn", attention, machine, block, hidden, context)
        hidden = add(machine, attended, residual)
        residual = hidden
        hidden = machine.call("ln_2", block.part("ln_2").play, machine, hidden)
        forward = machine.call("mlp", dropped_mlp, machine, block, hidden)
        hidden = add(machine, residual, forward)
        del weights  # the block's own local until now
        return hidden

    return play


def dropped_mlp(machine: Machine, block: Block, hidden: Value) -> Value:
    """The feed-forward, and the dropout of what it gives."""
    hidden = block.part("mlp").play(machine, hidden)
    return machine.call("dropout", block.part("mlp.dropout").play, machine, hidden)  # type: ignore[no-any-return]


def placed(machine: Machine, root: Module, batch: Batch, embeds: Value, place: Value) -> tuple[Value, Value]:
    """Embeddings with those of their positions, and the latter."""
    places = machine.call("wpe", root.part("wpe").play, machine, place)
    return add(machine, embeds, places), places


def learned_body(
    machine: Machine, root: Module, batch: Batch, names: Names, layer: LayerPlay, *, eager: bool, mask_first: bool
) -> Value:
    """Embeddings of tokens and positions, layers, and the last normalisation.

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:GPT2Model.forward; with the mask before the positions it is
    models/gpt_bigcode/modeling_gpt_bigcode.py:GPTBigCodeModel.forward
    """
    embeds = machine.call(names.embedding, root.part(names.embedding).play, machine, batch["input_ids"])
    context = Context(eager=eager, cache=None)
    place = positions(machine, batch.tokens)
    if mask_first:
        context.mask = causal_mask(machine, place, batch, embeds.dtype, eager=eager)
    hidden, places = placed(machine, root, batch, embeds, place)
    if not mask_first:
        context.mask = causal_mask(machine, place, batch, embeds.dtype, eager=eager)
    hidden = machine.call("drop", root.part("drop").play, machine, hidden)
    hidden = run_layers(machine, names.layers, root.part(names.layers), layer, hidden, context)
    hidden = machine.call(names.norm, root.part(names.norm).play, machine, hidden)
    del places, embeds
    return hidden
