"""Reductions: the staging buffer and semaphores of a reduction split over thread blocks (native/cuda/Reduce.cuh)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memcalc.engines.trace.cuda.scratch import Arguments, Scratch, nbytes, scratch
from memcalc.kernels.behaviour import Behaviour
from memcalc.kernels.reduction import Layout, layout, staging


def global_reduce(form: Layout, item: int, accumulator: int, behaviour: Behaviour, vec: int = 4) -> list[Scratch]:
    """The buffers of one reduction: nothing unless it is split over blocks (setReduceConfig, global_memory_size).

    Args:
        form: the reduction.
        item: bytes of an input element.
        accumulator: bytes of a partial result.
        behaviour: the number of multiprocessors and the compute capability.
        vec: elements a thread loads at once (vt0 and input_vec_size of the kernel).
    """
    del item  # strides are in elements here
    partial, semaphores = staging(form, accumulator, behaviour.chip, vec)
    return [Scratch("partial results", partial), Scratch("semaphores", semaphores)] if partial else []


def accumulator_size(dtype: torch.dtype) -> int:
    """Bytes of a partial sum: 4 for half precision, else the dtype's own (AccumulateType.h)."""
    return max(dtype.itemsize, 4) if dtype.is_floating_point or dtype.is_complex else 8


def reduction(
    tensor: Any, dims: Sequence[int] | None, behaviour: Behaviour, *, accumulator: int | None = None
) -> list[Scratch]:
    """The scratch of reducing a tensor over ``dims``."""
    if tensor.numel() >= 2**31:  # split into 32-bit parts, each with its own configuration; sizes as of the whole
        found = global_reduce(layout(tensor.shape, tensor.stride(), dims), 1, accumulator or 8, behaviour)
        return [Scratch(s.name, s.nbytes, bound=True) for s in found]
    size = accumulator_size(tensor.dtype) if accumulator is None else accumulator
    return global_reduce(layout(tensor.shape, tensor.stride(), dims), tensor.element_size(), size, behaviour)


def _dims(args: Arguments) -> Sequence[int] | None:
    found = args.get("dim")
    return [found] if isinstance(found, int) else found


@scratch(
    *("sum", "mean", "linalg_vector_norm", "norm", "amax", "amin", "prod", "any", "all", "nansum", "count_nonzero"),
    source="native/cuda/Reduce.cuh:gpu_reduce_kernel",
)
def _plain(args: Arguments, _: Any, behaviour: Behaviour) -> list[Scratch]:
    source = args.get("self", args.get("input"))
    return reduction(source, _dims(args), behaviour)


@scratch("argmax", "argmin", "max", "min", source="native/cuda/ReduceArgMaxKernel.cu: pairs of value and index")
def _pairs(args: Arguments, _: Any, behaviour: Behaviour) -> list[Scratch]:
    return [] if "other" in args else reduction(args["self"], _dims(args), behaviour, accumulator=16)


@scratch("var", "std", "var_mean", "std_mean", source="native/cuda/ReduceMomentKernel.cu:std_var_kernel: WelfordData, 16 bytes")
def _welford(args: Arguments, _: Any, behaviour: Behaviour) -> list[Scratch]:
    return reduction(args["self"], _dims(args), behaviour, accumulator=16 if args["self"].element_size() < 8 else 32)


@scratch("logsumexp", source="native/ReduceOps.cpp:logsumexp_out_impl: maxes, self - maxes, its exp in place")
def _logsumexp(args: Arguments, out: Any, _: Behaviour) -> list[Scratch]:
    return [Scratch("maxes", nbytes(out)), Scratch("exp(self - maxes)", nbytes(args["self"]))]


@scratch("_foreach_norm", source="native/cuda/ForeachReduceOp.cu:foreach_tensor_norm_cuda: one partial a tensor and chunk")
def _foreach_norm(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    tensors = args["self"]
    chunks = max((-(-t.numel() // 65536) for t in tensors), default=0)  # MultiTensorApply.cuh:kChunkSize
    dtype = args.get("dtype") or tensors[0].dtype
    return [Scratch("output_per_tensor", len(tensors) * chunks * max(4, dtype.itemsize))]


@scratch("_foreach_max", source="native/cuda/ForeachReduceOp.cu:foreach_tensor_max_cuda: likewise")
def _foreach_max(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    chunks = max((-(-t.numel() // 65536) for t in args["self"]), default=0)
    return [Scratch("output_per_tensor", len(args["self"]) * chunks * args["self"][0].element_size())]
