"""Attention with a sink: a learned score beside those of the keys, which takes its share and gives nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.play.matmul import matmul
from memcalc.play.norms import softmax
from memcalc.play.pointwise import add, dropout, scaled, sub, to
from memcalc.play.reshape import cat, contiguous, expand, narrow, split_dim, transpose
from memcalc.play.routing import greatest
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def sink_attention(
    machine: Machine,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    sinks: Value,
    *,
    probability: float = 0.0,
    held: list[Value] | None = None,
) -> Value:
    """Written out: (batch, length, heads, head dimension); ``held`` is handed the weights.

    source: transformers 5.23.0 models/gpt_oss/modeling_gpt_oss.py:eager_attention_forward
    """
    weights = scaled(machine, matmul(machine, query, transpose(machine, key, 2, 3)))
    if mask is not None:
        weights = add(machine, weights, mask)
    keys = weights.shape[-1]
    sinks = split_dim(machine, sinks, 0, (1, sinks.shape[0], 1, 1))
    sinks = expand(machine, sinks, (*weights.shape[:3], 1))
    logits = cat(machine, (weights, sinks), -1)
    logits = sub(machine, logits, greatest(machine, logits)[0])
    shares = softmax(machine, logits, logits.dtype)
    scores = narrow(machine, shares, -1, keys)
    weights = to(machine, dropout(machine, scores, probability), value.dtype)
    if held is not None:
        held.append(weights)
    out = matmul(machine, weights, value)
    return contiguous(machine, transpose(machine, out, 1, 2))
