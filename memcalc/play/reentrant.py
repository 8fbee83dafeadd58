"""Checkpointing with reentrance: forward without a graph, and in backward forward again and a backward of its own inside.

source: pytorch torch/utils/checkpoint.py:CheckpointFunction; Megatron-LM core/tensor_parallel/random.py:CheckpointFunction
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Engine, Gradients, Leaf, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def reentrant(machine: Machine, function: Callable[..., Value], *values: Value) -> Value:
    """What a function of these values gives; they are kept, and nothing of what it made on the way.

    The function must hold no other value that has a gradient.
    """
    if not machine.recording:
        return function(*values)
    machine.recording = False
    try:
        out = function(*values)
    finally:
        machine.recording = True
    meta = function, machine.path, machine.autocast
    return machine.record(out, values, values, _backward, meta)


def _backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    function, path, autocast = node.meta
    detached = [value.detached() for value in saved]
    leaves = [Leaf("", value.shape, value.dtype) if node.needs(place) else None for place, value in enumerate(detached)]
    for value, leaf in zip(detached, leaves, strict=True):
        value.node = leaf
    before = machine.path, machine.autocast, machine.recording, machine.again
    machine.path, machine.autocast, machine.recording, machine.again = path, autocast, True, True
    outputs = function(*detached)
    machine.autocast, machine.recording, machine.again = None, False, before[3]
    Engine(machine).run_inner(outputs, grad)
    machine.path, machine.autocast, machine.recording, machine.again = before
    return [_gradient(leaf) for leaf in leaves]


def _gradient(leaf: Leaf | None) -> Value | None:
    if leaf is None or leaf.gradient is None:
        return None
    storage, leaf.gradient = leaf.gradient, None
    return Value(storage, leaf.shape, leaf.dtype)
