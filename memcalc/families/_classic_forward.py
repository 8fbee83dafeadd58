"""How the decoders before llama run in transformers: learned positions, dropouts, blocks one after another or side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.errors import InputError, NotModelledError
from memcalc.families._decoder import Names
from memcalc.families._forward import Batch, Context, causal_mask, positions, run_layers
from memcalc.layers.base import Module, Stack
from memcalc.layers.transformer import Block
from memcalc.play.checkpoint import checkpointed
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add
from memcalc.play.policy import FLASH_ATTN
from memcalc.play.values import Value

LayerPlay = Callable[[Machine, Any, Value, Context], Value]
Weighing = Callable[[Machine, Any, Value, Context], tuple[Value, Value]]
"""A layer that gives its attention's weights beside its hidden states."""


def only_written(machine: Machine) -> None:
    """Transformers has no kernel for the family's attention.

    Raises:
        InputError: one was asked for.
        NotModelledError: flash-attn's was.
    """
    asked = machine.policy.attention
    if asked == FLASH_ATTN:
        raise NotModelledError("training.attention", asked, "is not modelled of this model", "use auto")
    if asked not in ("auto", "eager"):
        raise InputError("training.attention", asked, "is not there for this model, whose attention is written out", "use auto")


def run_weighing(
    machine: Machine, name: str, stack: Stack, play: Weighing, hidden: Value, context: Context
) -> tuple[Value, Value]:
    """A list of equal layers that also give their weights, which stay until the next has given its own.

    source: transformers 5.23.0 models/gpt_neo/modeling_gpt_neo.py:GPTNeoModel.forward
    """
    box, prefix = [hidden], f"{name}.{stack.prefix}"
    del hidden

    def step(index: object) -> None:
        box[:] = machine.call(f"{prefix}{index}", checkpointed, machine, play, machine, stack.layer, box[0], context)

    if machine.unrolled or machine.decide(stack.count <= 3):
        place = 0
        while machine.decide(place < stack.count):
            step(place)
            place += 1
    else:
        step(0)
        machine.repeated(stack.count - 2, lambda: step("*"), box)
        step("last")
    return box[0], box[1]


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


def one_after_another_weighing(attention: Callable[..., tuple[Value, Value]]) -> Weighing:
    """The same, which gives the weights too.

    source: transformers 5.23.0 models/gpt_neo/modeling_gpt_neo.py:GPTNeoBlock.forward
    """

    def play(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value]:
        residual = hidden
        hidden = machine.call("ln_1", block.part("ln_1").play, machine, hidden)
        attended, weights = machine.call("attn", attention, machine, block, hidden, context)
        hidden = add(machine, attended, residual)
        residual = hidden
        hidden = machine.call("ln_2", block.part("ln_2").play, machine, hidden)
        forward = machine.call("mlp", dropped_mlp, machine, block, hidden)
        return add(machine, residual, forward), weights

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
    machine: Machine,
    root: Module,
    batch: Batch,
    names: Names,
    layer: Any,
    *,
    eager: bool,
    mask_first: bool,
    weighing: Stack | None = None,
) -> Value:
    """Embeddings of tokens and positions, layers, and the last normalisation.

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:GPT2Model.forward; with the mask before the positions it is
    models/gpt_bigcode/modeling_gpt_bigcode.py:GPTBigCodeModel.forward
    """
    embeds = machine.call(names.embedding, root.part(names.embedding).play, machine, batch["input_ids"])
    context = Context(eager=eager)
    place = positions(machine, batch.tokens)
    if mask_first:
        context.mask = causal_mask(machine, place, batch, embeds.dtype, eager=eager)
    hidden, places = placed(machine, root, batch, embeds, place)
    if not mask_first:
        context.mask = causal_mask(machine, place, batch, embeds.dtype, eager=eager)
    hidden = machine.call("drop", root.part("drop").play, machine, hidden)
    given = [hidden]
    del hidden  # the body's only name for them, which the first layer's result takes
    hidden = through_layers(machine, root, names, layer, given, context, weighing)
    del places, embeds
    return hidden


def through_layers(
    machine: Machine,
    root: Module,
    names: Names,
    layer: Any,
    given: list[Value],
    context: Context,
    weighing: Stack | None = None,
) -> Value:
    """The layers and the last normalisation of what is taken out of ``given``.

    ``weighing`` are layers that give their weights, the last of which stay.
    """
    hidden: Value
    weights = None
    if weighing is None:
        hidden = run_layers(machine, names.layers, root.part(names.layers), layer, given.pop(), context)
    else:
        hidden, weights = run_weighing(machine, names.layers, weighing, layer, given.pop(), context)
    hidden = machine.call(names.norm, root.part(names.norm).play, machine, hidden)
    del weights
    return hidden
