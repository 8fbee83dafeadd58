"""Grouped matrix multiplication: rows sorted by group, each times its group's matrix; results in rows of whole 16 bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.kernels.grouped import grouped_scratch, padded_row
from memcalc.play.graph import Gradients, Node
from memcalc.play.reshape import _permuted
from memcalc.play.values import Shape, Value
from memcalc.tensors import ITEMSIZE

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

OPERATOR = "_grouped_mm"


def grouped_mm(machine: Machine, rows: Value, matrices: Value, offsets: Value) -> Value:
    """``(s, in)`` times ``(groups, in, out)`` by group: ``(s, out)``; no size depends on how rows fall to groups.

    source: pytorch native/cuda/GroupedBlas.cpp:_grouped_mm_cuda
    """
    saved = (matrices if machine.wants(rows) else None, offsets, rows if machine.wants(matrices) else None)
    machine.foresee(*saved)
    out = _product(machine, (rows.shape[0], matrices.shape[2]), rows.dtype, matrices.shape[0], kept=True)
    by_column = matrices.order is not None
    return machine.record(out, (rows, matrices), saved, _backward, (rows.shape, matrices.shape, by_column))


def _product(machine: Machine, shape: Shape, dtype: str, groups: Any, *, kept: bool = False) -> Value:
    """A result, each row of which begins at a whole 16 bytes (GroupedMMUtils.h:create_grouped_gemm_output_tensor)."""
    width = shape[-1]
    row = padded_row(width, ITEMSIZE[dtype])
    make = machine.kept if kept else machine.new
    if machine.same(row, width):
        out = make(shape, dtype, OPERATOR)
    else:
        rows: Any = 1
        for extent in shape[:-1]:
            rows = rows * extent
        flat = make((rows * row - (row - width),), dtype, OPERATOR)  # the last row ends where its elements do
        out = Value(flat.storage, shape, dtype, None, False, (len(shape) - 1,))
        del flat
    if not (kept and machine.found()):
        machine.scratches(grouped_scratch(groups, machine.policy.behaviour))
    return out


def _backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """Gradients of the matrices, then of the rows, each in memory as what it belongs to.

    source: pytorch torch/csrc/autograd/FunctionsManual.cpp:_grouped_mm_mat1_backward, _grouped_mm_mat2_backward
    """
    rows, (groups, wide, narrow), by_column = node.meta
    of_matrices = of_rows = None
    if node.needs(1):
        if by_column:
            of_matrices = _permuted(_product(machine, (groups, narrow, wide), grad.dtype, groups), (0, 2, 1))
        else:
            of_matrices = _product(machine, (groups, wide, narrow), grad.dtype, groups)
    if node.needs(0):
        of_rows = _product(machine, rows, grad.dtype, groups)
    return of_rows, of_matrices
