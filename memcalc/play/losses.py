"""Losses, as the models' heads compute them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Gradients, Node
from memcalc.play.norms import log_softmax
from memcalc.play.pointwise import promoted
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def cross_entropy(machine: Machine, scores: Value, target: Value) -> Value:
    """The mean cross-entropy of rows of scores ``(n, classes)`` (pytorch LossNLL.cpp:cross_entropy_loss)."""
    logs = machine.wide(log_softmax(machine, scores, scores.dtype))  # autocast: nll_loss is on its FP32 list
    loss = machine.new((), logs.dtype, "nll_loss_forward")
    total = machine.new((), logs.dtype, "nll_loss_forward")
    return machine.record(loss, (logs,), (logs, target, total), _nll_backward)


def _nll_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.like(saved[0], "nll_loss_backward"),)


def cross_entropies(machine: Machine, scores: Value, target: Value) -> Value:
    """The cross-entropy of each row, without a reduction."""
    logs = log_softmax(machine, scores, scores.dtype)
    losses = machine.new(target.shape, logs.dtype, "nll_loss_forward")
    total = machine.new((), logs.dtype, "nll_loss_forward")
    return machine.record(losses, (logs,), (logs, target, total), _nll_backward)


def mse(machine: Machine, scores: Value, target: Value) -> Value:
    """The mean squared error, in FP32 under autocast."""
    target = machine.wide(target)
    scores = machine.wide(scores)
    loss = machine.new((), scores.dtype, "mse_loss")
    machine.scratches([("the iterator's output", scores.nbytes), ("loss", scores.nbytes)])
    return machine.record(loss, (scores,), (scores, target), _mse_backward)


def _mse_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.like(saved[0], "mse_loss_backward"),)


def binary_cross_entropy(machine: Machine, scores: Value, target: Value) -> Value:
    """The mean binary cross-entropy of scores and shares in FP32, in FP32 under autocast.

    source: pytorch ATen native/Loss.cpp:binary_cross_entropy_with_logits
    """
    scores = machine.wide(scores)
    log_sigmoid = machine.like(scores, "log_sigmoid_forward")
    each = machine.like(scores, "rsub.Scalar", promoted(scores, target))
    loss = machine.new((), each.dtype, "mean")
    del each, log_sigmoid
    return machine.record(loss, (scores,), (scores, target), _binary_backward)


def _binary_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # FunctionsManual.cpp:binary_cross_entropy_with_logits_backward: (sigmoid - target) times grad and over n, in place
    scores, target = saved
    sigmoid = machine.like(scores, "sigmoid")
    less = machine.like(scores, "sub.Tensor", promoted(sigmoid, target))
    return (less,)
