"""Matrix products: copies of operands that cuBLAS cannot read as they lie (native/cuda/Blas.cpp)."""

from __future__ import annotations

from typing import Any

from memcalc.engines.trace.cuda.scratch import Arguments, Scratch, nbytes, scratch
from memcalc.kernels.behaviour import Behaviour
from memcalc.kernels.grouped import grouped_scratch


def readable(shape: Any, stride: Any) -> bool:
    """Whether a matrix lies by rows or by columns (Blas.cpp:prepare_matrix_for_cublas, prepare_batch_matrix_for_cublas).

    >>> readable((4, 8), (8, 1)), readable((4, 8), (1, 4)), readable((4, 8), (0, 0)), readable((4, 8), (16, 2))
    (True, True, False, False)
    """
    (rows, columns), (down, across) = shape[-2:], stride[-2:]
    by_column = down == 1 and across >= max(1, rows)
    by_row = across == 1 and down >= max(1, columns)
    return bool(by_column or by_row)


def copies(**operands: Any) -> list[Scratch]:
    """A contiguous copy of each operand that cuBLAS cannot read."""
    return [
        Scratch(f"contiguous {name}", nbytes(t))
        for name, t in operands.items()
        if len(t.shape) >= 2 and not readable(t.shape, t.stride())
    ]


@scratch("mm", "bmm", source="native/cuda/Blas.cpp:addmm_out_cuda_impl, bmm_out_cuda_impl")
def _mm(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    return copies(self=args["self"], mat2=args["mat2"])


@scratch("addmm", "_addmm_activation", source="native/cuda/Blas.cpp:addmm_out_cuda_impl; the workspace is in workspaces.py")
def _addmm(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    return copies(mat1=args["mat1"], mat2=args["mat2"])


@scratch("baddbmm", "baddbmm_", "addbmm", source="native/cuda/Blas.cpp:baddbmm_out_cuda_impl")
def _baddbmm(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    return copies(batch1=args["batch1"], batch2=args["batch2"])


@scratch("mv", "addmv", "dot", "vdot", source="native/cuda/Blas.cpp:addmv_out_cuda; CUDABlas.cpp:dot")
def _mv(_: Arguments, __: Any, ___: Behaviour) -> list[Scratch]:
    return []


@scratch(
    "_grouped_mm",
    source="native/cuda/GroupMM.cu:bf16bf16_grouped_gemm_impl_sm90_sm100: pointers, strides and problem sizes a group",
)
def _grouped_mm(args: Arguments, _: Any, behaviour: Behaviour) -> list[Scratch]:
    groups = next((t.shape[0] for t in (args["mat2"], args["self"]) if t.dim() == 3), 1)
    offsets = args.get("offs")
    groups = offsets.shape[0] if offsets is not None else groups
    return [Scratch(name, int(size), bound=True) for name, size in grouped_scratch(groups, behaviour)]
