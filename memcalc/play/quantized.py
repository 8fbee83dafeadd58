"""A frozen matrix in 4 bits, as bitsandbytes multiplies by it: dequantised for the product, forward and again in backward.

source: bitsandbytes 0.41.1 and 0.49.2 autograd/_functions.py:MatMul4Bit, functional.py:dequantize_4bit, nn/modules.py:
Linear4bit.forward; 0.50 has kernels that read 4 bits for few rows, which need less
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.play.graph import Gradients, Node
from memcalc.play.matmul import flattened_shape
from memcalc.play.pointwise import to
from memcalc.play.reshape import _merged, _split
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.arrays import Count
    from memcalc.play.machine import Machine

BLOCK, OUTER = 64, 256
"""Weights to a scale, and scales to a scale of theirs (functional.py: quantize_4bit, quantize_blockwise)."""


def linear_4bit(
    machine: Machine,
    value: Value,
    shape: tuple[Count, Count],
    bias: Value | None,
    *,
    stored: str,
    nested: bool,
    keeps: bool = False,
) -> Value:
    """``x @ W.T + b`` by a matrix ``(out, in)`` in 4 bits, whose scales say it was of dtype ``stored``.

    The matrix is not trained; neither is the bias. What is saved is the packed matrix, which is there anyway. ``keeps``: until
    0.42 the input too, and beside autograd's own (``ctx.tensors = (A, B)``), so that it lives as long as the graph does.
    """
    value = machine.low(value) if machine.autocast is not None else value
    recording, machine.recording = machine.recording, False
    weight = _dequantised(machine, shape, value.dtype, stored, nested=nested)
    flat = _merged(machine, value, 0, len(value.shape) - 2)
    machine.blas("mm" if bias is None else "addmm", lt=bias is not None)
    made = machine.new((flat.shape[0], shape[0]), value.dtype, "mm" if bias is None else "addmm")
    del weight, flat
    machine.recording = recording
    out = _split(made, 0, flattened_shape(value))
    out.view = False
    kept = value.detached() if keeps and machine.wants(value) else None
    if kept is not None:
        kept.storage.life.saved = True
    return machine.record(out, (value,), (), _linear_backward, (shape, stored, nested, kept))


def reads_packed(machine: Machine, value: Value) -> bool:
    """Whether ``matmul_4bit`` reads the packed matrix: of one row that no graph is made over (autograd/_functions.py)."""
    return not machine.wants(value) and machine.decide(value.numel == value.shape[-1])


def gemv_4bit(machine: Machine, value: Value, shape: tuple[Count, Count], bias: Value | None, *, nested: bool) -> Value:
    """``x @ W.T + b`` for one row, by a kernel that reads 4 bits; scales that are packed themselves are read first.

    The bias is added in place. source: bitsandbytes 0.41.0 functional.py:gemv_4bit, autograd/_functions.py:matmul_4bit
    """
    scales = _scales(machine, shape) if nested else None
    out = machine.new((*value.shape[:-1], shape[0]), value.dtype, "gemv_4bit")
    del scales
    return out


def _scales(machine: Machine, shape: Any) -> Value:
    return machine.new(((shape[0] * shape[1]) // BLOCK,), "float32", "dequantize_blockwise")


def _dequantised(machine: Machine, shape: Any, dtype: str, stored: str, *, nested: bool) -> Value:
    scales = _scales(machine, shape) if nested else None
    weight = machine.new(shape, stored, "dequantize_4bit")
    del scales
    return to(machine, weight, dtype)


def _linear_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    shape, stored, nested = node.meta[:3]
    weight = _dequantised(machine, shape, grad.dtype, stored, nested=nested)
    machine.blas("mm")
    made = machine.new((*grad.shape[:-1], shape[1]), grad.dtype, "mm")
    del weight
    return (made,)
