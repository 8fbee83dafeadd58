"""What Transformer Engine's and Megatron's autograd functions keep, give back and need for a moment.

From source alone: neither can run without a GPU. TE is v2.8 (``transformer_engine/pytorch``), Megatron-LM d98e8a64
(``megatron/core``). Scratch of TE's normalisation kernels is not counted.
"""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Count
from memcalc.play.graph import Gradients, Node
from memcalc.play.machine import Machine
from memcalc.play.pointwise import scaled
from memcalc.play.reduce import sum_all
from memcalc.play.reshape import _sliced, contiguous, merge_dims, transpose
from memcalc.play.values import Value

NOT_COUNTED = "scratch of Transformer Engine's normalisation kernels is not counted (some MiB, for a moment)"


def _statistics(machine: Machine, x: Value, operator: str, *, mean: bool) -> tuple[Value | None, Value]:
    machine.assumed[NOT_COUNTED] = None
    rows = (x.numel // x.shape[-1],)
    return machine.new(rows, "float32", operator) if mean else None, machine.new(rows, "float32", operator)


def norm(machine: Machine, x: Value, weight: Value, bias: Value | None) -> Value:
    """TE's LayerNorm or RMSNorm by itself (ops/basic/layer_norm.py, rmsnorm.py:op_forward): keeps its input and statistics."""
    out = machine.like(x, "te.norm_fwd")
    mu, rsigma = _statistics(machine, x, "te.norm_fwd", mean=bias is not None)
    return machine.record(out, (x, weight, bias), (x, weight, mu, rsigma), _norm_backward)


def _norm_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    x, weight = saved[:2]
    of_x = machine.like(x, "te.norm_bwd") if node.needs(0) else None
    of_weight = machine.new(weight.shape, weight.dtype, "te.norm_bwd")
    return of_x, of_weight, machine.new(weight.shape, weight.dtype, "te.norm_bwd") if node.needs(2) else None


def norm_linear(
    machine: Machine, x: Value, scale: Value, shift: Value | None, weight: Value, bias: Value | None = None
) -> Value:
    """A norm and a matrix in one function, which keeps the input, its statistics and the normalised input.

    source: module/layernorm_linear.py:_LayerNormLinear.forward (prepare_for_saving)
    """
    ln_out = machine.like(x, "te.norm_fwd")
    mu, rsigma = _statistics(machine, x, "te.norm_fwd", mean=shift is not None)
    out = machine.new((*x.shape[:-1], weight.shape[0]), x.dtype, "te.gemm")
    return machine.record(out, (x, scale, shift, weight, bias), (x, weight, scale, ln_out, mu, rsigma), _norm_linear_backward)


def _norm_linear_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """The input's gradient of the product, the weight's, then the norm's (_LayerNormLinear.backward)."""
    x, weight, scale = saved[:3]
    dgrad = machine.like(x, "te.gemm")
    of_weight = machine.new(weight.shape, weight.dtype, "te.gemm")
    of_bias = machine.new((weight.shape[0],), weight.dtype, "te.gemm") if node.needs(4) else None
    saved[3] = None  # clear_tensor_data(ln_out)
    of_x = machine.like(x, "te.norm_bwd") if node.needs(0) else None
    of_scale = machine.new(scale.shape, scale.dtype, "te.norm_bwd")
    of_shift = machine.new(scale.shape, scale.dtype, "te.norm_bwd") if node.needs(2) else None
    del dgrad
    return of_x, of_scale, of_shift, of_weight, of_bias


def linear(machine: Machine, x: Value, weight: Value, operator: str = "te.gemm") -> Value:
    """A matrix whose bias is given back beside its result, for what comes next to add (``skip_bias_add``); keeps its input.

    source: module/linear.py:_Linear; the head's is core/tensor_parallel/layers.py:
    LinearWithGradAccumulationAndAsyncCommunication, which keeps and makes the same
    """
    out = machine.new((*x.shape[:-1], weight.shape[0]), x.dtype, operator)
    return machine.record(out, (x, weight), (x, weight), _linear_backward, operator)


def _linear_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    x, weight = saved
    of_x = machine.like(x, node.meta) if node.needs(0) else None
    return of_x, machine.new(weight.shape, weight.dtype, node.meta) if node.needs(1) else None


def bias_dropout_add(machine: Machine, x: Value, bias: Value | None, residual: Value, probability: float) -> Value:
    """``residual + dropout(x + bias)``, compiled to one kernel: its mask of bytes is kept, and none of its parts is made.

    source: core/fusions/fused_bias_dropout.py:bias_dropout_add_fused_train; core/jit.py: jit_fuser is torch.compile
    """
    out = machine.like(residual, "bias_dropout_add")
    mask = machine.like(residual, "bias_dropout_add", "bool") if probability > 0 else None
    return machine.record(out, (x, bias, residual), (mask,), _bias_dropout_add_backward)


def _bias_dropout_add_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    of_x = grad if saved[0] is None else machine.like(grad, "bias_dropout_add_backward")
    of_bias = machine.new(node.inputs[1][0], grad.dtype, "bias_dropout_add_backward") if node.needs(1) else None
    return of_x, of_bias, grad


def bias_gelu(machine: Machine, x: Value, bias: Value) -> Value:
    """GELU by tanh of ``x + bias``; keeps ``x`` (core/fusions/fused_bias_gelu.py:GeLUFunction)."""
    return machine.record(machine.like(x, "bias_gelu"), (x, bias), (x, bias), _bias_gelu_backward)


def _bias_gelu_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    tmp = machine.like(saved[0], "bias_gelu_back")  # of both: the engine sums it for the bias
    return tmp, tmp


def swiglu(machine: Machine, x: Value) -> Value:
    """``silu(a) * b`` of the last dimension's two halves; keeps ``x`` (core/fusions/fused_bias_swiglu.py:SwiGLUFunction)."""
    out = machine.new((*x.shape[:-1], x.shape[-1] // 2), x.dtype, "swiglu")
    return machine.record(out, (x,), (x,), _swiglu_backward)


def _swiglu_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.like(saved[0], "swiglu_back"),)


def rotate(machine: Machine, x: Value) -> Value:
    """Rotary positions in one kernel; its frequencies, which it keeps, are there (attention/rope.py:FusedRoPEFunc)."""
    return machine.record(machine.new(x.shape, x.dtype, "fused_rope_forward"), (x,), (), _rotate_backward)


def _rotate_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.new(grad.shape, grad.dtype, "fused_rope_backward"),)


def split_along(machine: Machine, mixed: Value, lengths: tuple[Count, Count, Count]) -> list[Value]:
    """Query, key and value as slices; gradients that lie in one memory as those do are it (utils.py:SplitAlongDim)."""
    last = len(mixed.shape) - 1
    outs = [_sliced(mixed, last, (*mixed.shape[:last], length)) for length in lengths]
    if machine.wants(mixed):
        machine.attach(outs, (mixed,), ((mixed.node, mixed.index),), (), _split_backward, (mixed.shape, mixed.dtype))
    return outs


def _split_backward(machine: Machine, node: Node, saved: Any, grads: Any) -> Gradients:
    shape, dtype = node.meta
    storages = {id(grad.storage): grad.storage for grad in grads}
    if len(storages) == 1:
        return (Value(next(iter(storages.values())), shape, dtype),)
    return (machine.new(shape, dtype, "cat"),)


def cross_entropy(machine: Machine, logits: Value, labels: Value) -> Value:
    """The mean loss over ``(length, batch, vocabulary)``: one FP32 copy of the logits, whose exponentials and gradient are it.

    source: core/tensor_parallel/cross_entropy.py:_VocabParallelCrossEntropy; language_module.py:compute_language_model_loss;
    pretrain_gpt.py:loss_func
    """
    labels = contiguous(machine, transpose(machine, labels, 0, 1))
    losses = _vocab_parallel(machine, logits, labels)
    losses = merge_dims(machine, contiguous(machine, transpose(machine, losses, 0, 1)), 0, 1)
    return sum_all(machine, scaled(machine, losses))  # times the mask, which asks for no gradient


def _vocab_parallel(machine: Machine, logits: Value, labels: Value) -> Value:
    whole = machine.new(logits.shape, "float32", "_to_copy")
    rows = logits.shape[:-1]
    biggest = machine.new(rows, "float32", "max.dim")
    target_mask = machine.new(rows, "bool", "bitwise_or.Tensor")
    masked_target = machine.new(rows, "int64", "sub.Tensor")
    predicted = machine.new(rows, "float32", "clone")
    sum_exp = machine.new(rows, "float32", "sum.dim_IntList")
    logs = machine.new(rows, "float32", "log")
    loss = machine.new(rows, "float32", "sub.Tensor")
    del biggest, predicted, sum_exp, logs
    return machine.record(loss, (logits,), (whole, target_mask, masked_target), _vocab_parallel_backward)


def _vocab_parallel_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    softmax, target_mask, _ = saved
    places = machine.new((target_mask.numel,), "int64", "arange")
    update = machine.new((target_mask.numel,), "float32", "rsub.Scalar")
    del places, update
    return (softmax,)  # in place, and cast by the engine to the logits' dtype
