"""Normalisation and softmax."""

from __future__ import annotations

import math
from typing import Any

import torch

from memcalc.engines.trace.cuda.scratch import Arguments, Scratch, contiguous_copy, nbytes, scratch
from memcalc.engines.trace.cuda.scratch_reduce import global_reduce
from memcalc.kernels.behaviour import Behaviour
from memcalc.kernels.reduction import layout

LAYER_NORM = "native/cuda/layer_norm_kernel.cu:LayerNormBackwardKernelImplInternal, LaunchGammaBetaBackwardCUDAKernel"


@scratch("native_layer_norm", source="native/cuda/layer_norm_kernel.cu:layer_norm_cuda: expect_contiguous of each operand")
def _layer_norm_forward(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    return [buffer for name in ("input", "weight", "bias") for buffer in contiguous_copy(name, args.get(name))]


@scratch("native_layer_norm_backward", "_fused_rms_norm_backward", source=LAYER_NORM)
def _layer_norm(args: Arguments, out: Any, behaviour: Behaviour) -> list[Scratch]:
    grad, source = args["grad_out"], args["input"]
    width = math.prod(args["normalized_shape"])
    rows = source.numel() // max(1, width)
    found = contiguous_copy("grad_out", grad) + contiguous_copy("input", source)
    narrow = width // 32 < behaviour.multiprocessors // 2
    if behaviour.torch < (2, 8) or rows <= 64 * 1024 or not narrow:
        return found  # gamma and beta are summed inside blocks
    # many rows of few columns: rows_per_block_y = 32, max_grid_size = 32768 blocks; then dgamma_blocks.sum(0), a new result
    blocks = min(32768 // -(-width // 32), -(-rows // 32))
    for name, result in (("dgamma", out[1]), ("dbeta", out[2] if len(out) > 2 else None)):
        if result is not None:
            size = width * result.element_size()
            found += [Scratch(f"{name}_blocks", blocks * size), Scratch(f"{name}, before it is replaced by the sum", size)]
    return found


@scratch("native_group_norm", source="native/cuda/group_norm_kernel.cu:GroupNormKernelImplInternal: a and b of (N, C)")
def _group_norm(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    if args["HxW"] == 1 or (args["weight"] is None and args["bias"] is None):
        return []
    size = args["N"] * args["C"] * max(4, args["input"].element_size())
    return [Scratch("a", size), Scratch("b", size)]


@scratch(
    "native_group_norm_backward",
    source="native/cuda/group_norm_kernel.cu:GroupNormBackwardKernelImplInternal: ds, db, c1, c2, c3",
)
def _group_norm_backward(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    item = max(4, args["input"].element_size())
    channels, groups = args["N"] * args["C"] * item, args["N"] * args["group"] * item
    found = [Scratch("ds", channels), Scratch("db", channels)]
    if args["output_mask"][0]:
        if args["weight"] is not None and args["HxW"] > 1:
            found.append(Scratch("c1", channels))
        found += [Scratch("c2", groups), Scratch("c3", groups)]
    return found


@scratch("native_batch_norm", "_native_batch_norm_legit", "batch_norm_update_stats", source="native/cuda/Normalization.cuh")
def _batch_norm(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    source = args["input"]
    if source.dim() < 4 or source.is_contiguous():  # batch_norm_collect_statistics_kernel: a block a channel
        return []
    # batch_norm_stats_channels_last_cuda_template: staging_data of 4 * stride * grid.y, grid.y at most 128
    return [
        Scratch("staging_data", 4 * 128 * source.shape[1] * 4, bound=True),
        Scratch("semaphores", 4 * source.shape[1], bound=True),
    ]


@scratch("native_batch_norm_backward", source="native/cuda/Normalization.cu:batch_norm_backward_cuda; Normalization.cuh")
def _batch_norm_backward(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    grad, source = args["grad_out"], args["input"]
    channels = source.shape[1]
    if source.dim() < 4 or source.is_contiguous():  # one fused kernel on reshaped operands
        return contiguous_copy("grad_out", grad)
    sums = [Scratch(name, 4 * channels) for name in ("sum_dy", "sum_dy_xmu")]
    # batch_norm_backward_reduce_cuda_channels_last_template: staging_data of 2 * stride * grid.y, grid.y at most 128
    return [*sums, Scratch("staging_data", 2 * 128 * channels * 4, bound=True), Scratch("semaphores", 4 * channels, bound=True)]


@scratch("cudnn_batch_norm", source="native/cudnn/BatchNorm.cpp: cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize")
def _cudnn_batch_norm(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    # only channels-last training runs the persistent mode, whose workspace grows with channels; the planar mode needs none
    if args["input"].is_contiguous() or not args["training"]:
        return []
    return [Scratch("cuDNN workspace", 4 * 256 * args["input"].shape[1], bound=True)]


@scratch("cudnn_batch_norm_backward", source="native/cudnn/BatchNorm.cpp: cudnnGetBatchNormalizationBackwardExWorkspaceSize")
def _cudnn_batch_norm_backward(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    source = args["input"]
    return [] if source.is_contiguous() else [Scratch("cuDNN workspace", 4 * 256 * source.shape[1], bound=True)]


@scratch("_softmax", "_log_softmax", source="native/cuda/SoftMax.cu:host_softmax: input.contiguous()")
def _softmax(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    return contiguous_copy("input", args["self"])


@scratch("_softmax_backward_data", "_log_softmax_backward_data", source="native/cuda/SoftMax.cu:host_softmax_backward")
def _softmax_backward(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    return contiguous_copy("grad", args["grad_output"]) + contiguous_copy("output", args["output"])


def bias_gradient(grad: Any, behaviour: Behaviour) -> list[Scratch]:
    """The reduction of a gradient (N, C, …) to its channels."""
    dims = [0, *range(2, grad.dim())]
    accumulator = max(4, grad.element_size())
    return global_reduce(layout(grad.shape, grad.stride(), dims), grad.element_size(), accumulator, behaviour)


def copy_in_format(name: str, tensor: Any, channels_last: bool) -> list[Scratch]:
    """The copy into channels-last or planar order, where the tensor has the other."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(tensor.dim(), torch.contiguous_format) if channels_last else torch.contiguous_format
    return [] if tensor.is_contiguous(memory_format=wanted) else [Scratch(f"{name} in the kernel's layout", nbytes(tensor))]
