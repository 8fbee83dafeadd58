"""The heads that the decoders before llama have of their own, and the losses they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.errors import NotModelledError
from memcalc.families._decoder import Names
from memcalc.families._forward import Batch, causal_loss
from memcalc.layers.base import Module
from memcalc.play.machine import Machine
from memcalc.play.values import Value

Body = Callable[[Machine, Module, Batch], Value]
"""(machine, the body's layers, batch) -> hidden states."""


def causal(machine: Machine, root: Module, batch: Batch, names: Names, body: Body) -> tuple[Value, Any]:
    """The language model: (loss, what its output holds besides).

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:GPT2LMHeadModel.forward
    """
    hidden = machine.call(names.body, body, machine, root.part(names.body), batch)
    logits = machine.call(names.head, root.part(names.head).play, machine, hidden)
    loss = causal_loss(machine, logits, batch["labels"])
    return loss, logits


def classic_forward(
    machine: Machine, architecture: str, config: Any, root: Any, batch: Batch, names: Names, body: Body
) -> tuple[Value, Any]:
    """A decoder under the head its architecture names.

    Raises:
        NotModelledError: a head whose loss is not modelled.
    """
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return causal(machine, root, batch, names, body)
    raise NotModelledError("model.architectures", architecture, "has a head whose loss is not played yet", "use engine trace")
