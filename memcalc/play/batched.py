"""Batched matrix products that add to something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def baddbmm(machine: Machine, bias: Value, first: Value, second: Value) -> Value:
    """``bias.baddbmm(first, second, alpha=…)`` of a bias without a gradient, in autocast's dtype.

    source: pytorch native/cuda/Blas.cpp:baddbmm_out_cuda_impl; autocast_mode.h, AT_FORALL_LOWER_PRECISION_FP
    """
    if machine.autocast is not None:  # arguments of one call, evaluated from the last to the first
        second = machine.low(second)
        first = machine.low(first)
        bias = machine.low(bias)
    machine.blas("baddbmm")
    saved = (second if machine.wants(first) else None, first if machine.wants(second) else None)
    machine.foresee(*saved)
    out = machine.kept((first.shape[0], first.shape[1], second.shape[2]), first.dtype, "baddbmm")
    return machine.record(out, (first, second), saved, _baddbmm_backward, (first.shape, second.shape))


def _baddbmm_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """derivatives.yaml: baddbmm: each product is multiplied by alpha (FunctionsManual.cpp:maybe_multiply)."""
    machine.blas("bmm")
    of_first = of_second = None
    if node.needs(0):
        made = machine.new(node.meta[0], grad.dtype, "bmm")
        of_first = machine.like(made, "mul.Tensor")
        del made
    if node.needs(1):
        made = machine.new(node.meta[1], grad.dtype, "bmm")
        of_second = machine.like(made, "mul.Tensor")
        del made
    return of_first, of_second
