"""How a mixture's router, experts and shared experts follow on each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memcalc.layers.routing import Routed
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, mul, sigmoid
from memcalc.play.reshape import merge_dims, split_dim
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.layers.moe import Mixture


def _routed(machine: Machine, mixture: Mixture, hidden: Value) -> Routed:
    made: Routed = machine.call(mixture.named("router"), mixture.router.play, machine, hidden)
    return made


def _chosen(machine: Machine, mixture: Mixture, hidden: Value, places: Value, weights: Value) -> Value:
    made: Value = machine.call(mixture.named("experts"), mixture.experts.play, machine, hidden, places, weights)
    return made


def alone(machine: Machine, mixture: Mixture, hidden: Value) -> Value:
    """source: transformers 5.23.0 models/mixtral/modeling_mixtral.py:MixtralSparseMoeBlock.forward"""
    shape = hidden.shape
    hidden = merge_dims(machine, hidden, 0, 1)
    logits, weights, places = _routed(machine, mixture, hidden)
    hidden = _chosen(machine, mixture, hidden, places, weights)
    hidden = split_dim(machine, hidden, 0, shape[:2])
    del logits
    return hidden


def gated(machine: Machine, mixture: Mixture, hidden: Value) -> Value:
    """source: transformers 5.23.0 models/qwen2_moe/modeling_qwen2_moe.py:Qwen2MoeSparseMoeBlock.forward"""
    shared = mixture.shared
    assert shared is not None
    flat = merge_dims(machine, hidden, 0, 1)
    beside = machine.call(shared.name, shared.mlp.play, machine, flat)
    logits, weights, places = _routed(machine, mixture, flat)
    out = _chosen(machine, mixture, flat, places, weights)
    parts = dict(shared.parts())
    gate = parts[shared.gate]
    beside = mul(machine, sigmoid(machine, machine.call(shared.gate, gate.play, machine, flat)), beside)  # type: ignore[attr-defined]
    out = add(machine, out, beside)
    out = split_dim(machine, out, 0, hidden.shape[:2])
    del logits
    return out


def beside(machine: Machine, mixture: Mixture, hidden: Value) -> Value:
    """source: transformers 5.23.0 models/deepseek_v3/modeling_deepseek_v3.py:DeepseekV3MoE.forward"""
    shared = mixture.shared
    assert shared is not None
    whole, shape = hidden, hidden.shape
    logits, weights, places = _routed(machine, mixture, hidden)
    hidden = merge_dims(machine, hidden, 0, 1)
    hidden = split_dim(machine, _chosen(machine, mixture, hidden, places, weights), 0, shape[:2])
    hidden = add(machine, hidden, machine.call(shared.name, shared.mlp.play, machine, whole))
    del logits
    return hidden


MIXTURES: dict[str, Callable[[Machine, Mixture, Value], Value]] = {"alone": alone, "gated": gated, "beside": beside}
"""By a mixture's ``order``."""
