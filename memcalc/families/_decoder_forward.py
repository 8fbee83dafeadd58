"""How decoders run in transformers: the body, and the heads on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.errors import NotModelledError
from memcalc.families._decoder import Names
from memcalc.families._forward import Batch, Context, causal_loss, causal_mask, positions, rotary, run_layers
from memcalc.layers.base import Module
from memcalc.layers.transformer import Block
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add
from memcalc.play.values import Value


def pre_norm(
    machine: Machine,
    block: Block,
    hidden: Value,
    context: Context,
    names: tuple[str, str, str, str] = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"),
) -> Value:
    """source: transformers 5.23.0 models/llama/modeling_llama.py:LlamaDecoderLayer.forward"""
    before_attention, attention, before_mlp, mlp = names
    residual = hidden
    hidden = machine.call(before_attention, block.part(before_attention).play, machine, hidden)
    hidden = machine.call(attention, block.part(attention).play, machine, hidden, context)
    hidden = add(machine, residual, hidden)
    residual = hidden
    hidden = machine.call(before_mlp, block.part(before_mlp).play, machine, hidden)
    hidden = machine.call(mlp, block.part(mlp).play, machine, hidden)
    return add(machine, residual, hidden)


def body(
    machine: Machine, root: Module, batch: Batch, names: Names, layer: Callable[..., Value], *, width: Any, eager: bool
) -> tuple[Value, Any]:
    """Embeddings, layers and the last normalisation; also the cache, which the output carries.

    source: transformers 5.23.0 models/llama/modeling_llama.py:LlamaModel.forward
    """
    embeds = machine.call(names.embedding, root.part(names.embedding).play, machine, batch["input_ids"])
    context = Context(eager=eager, cache=[] if machine.policy.cache else None)
    place = positions(machine, batch.tokens)
    context.mask = causal_mask(machine, place, batch, embeds.dtype, eager=eager)
    context.place = place
    hidden = embeds
    rotary(machine, hidden, place, width, context)
    hidden = run_layers(machine, names.layers, root.part(names.layers), layer, hidden, context)
    hidden = machine.call(names.norm, root.part(names.norm).play, machine, hidden)
    return hidden, context.cache


def causal(
    machine: Machine, root: Module, batch: Batch, names: Names, layer: Callable[..., Value], *, width: Any, eager: bool
) -> tuple[Value, Any]:
    """The language model: (loss, what its output holds besides).

    source: transformers 5.23.0 models/llama/modeling_llama.py:LlamaForCausalLM.forward
    """
    hidden, cache = machine.call(
        names.body, body, machine, root.part(names.body), batch, names, layer, width=width, eager=eager
    )
    logits = machine.call(names.head, root.part(names.head).play, machine, hidden)
    loss = causal_loss(machine, logits, batch["labels"])
    return loss, (logits, cache)


def headed_forward(
    machine: Machine,
    architecture: str,
    config: Any,
    root: Module,
    batch: Batch,
    names: Names,
    layer: Callable[..., Value],
    *,
    width: Any,
) -> tuple[Value, Any]:
    """A decoder under the head its architecture names.

    Raises:
        NotModelledError: a head whose loss is not modelled yet.
    """
    eager = machine.policy.attention == "eager"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return causal(machine, root, batch, names, layer, width=width, eager=eager)
    raise NotModelledError("model.architectures", architecture, "has a head whose loss is not played yet", "use engine trace")
