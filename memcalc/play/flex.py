"""FlexAttention under ``torch.compile``: what its Triton kernels keep and need, of queries, keys and values of as many heads.

source: pytorch torch/_inductor/kernel/flex_attention.py: flex_attention, flex_attention_backward (2.5 on)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def flex_attention(machine: Machine, query: Value, key: Value, value: Value) -> Value:
    """``(rows, heads, tokens, head dimension)`` under a block mask, whose few kilobytes are the caller's."""
    out = machine.kept_like(query, "flex_attention")  # in memory as the query: "matching the query"
    lse = machine.new(query.shape[:3], "float32", "flex_attention")
    return machine.record(out, (query, key, value), (query, key, value, out, lse), _backward)


def _backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    query, key, value = saved[:3]
    name = "flex_attention_backward"
    results = (machine.like(query, name), machine.like(key, name), machine.like(value, name))
    rows, heads, tokens = query.shape[:3]
    machine.scratches([("delta", 4 * rows * heads * tokens)])
    return results
