"""Where the meta function of an operator, asked under CPU keys, says other dtypes or sizes than CUDA's kernel allocates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memcalc.engines.trace.cuda.schema import bound
from memcalc.kernels.behaviour import Behaviour

Fix = Callable[[dict[str, Any], Any, Behaviour], Any]
FIXES: dict[str, Fix] = {}
"""By operator (without overload): from the arguments by name, and the results the meta function gave, to CUDA's."""

HOST_RESULTS: dict[str, tuple[int, ...]] = {
    # attention.cu:_efficient_attention_forward, "Note [Seed and Offset Device]": on the host unless a graph is captured
    "_scaled_dot_product_efficient_attention": (2, 3),
    "_efficient_attention_forward": (2, 3),
}
"""Results that live in the host's memory, by position."""


def host_results(name: str, behaviour: Behaviour) -> tuple[int, ...]:
    """Positions of an operator's results that are no CUDA memory.

    >>> host_results("_scaled_dot_product_efficient_attention", Behaviour())
    (2, 3)
    """
    if name == "_scaled_dot_product_flash_attention" and behaviour.torch < (2, 7):
        return (
            6,
            7,
        )  # flash_api.cpp:mha_fwd at v2.6: seed and offset as host scalars, before "BC breaking change to flash seed/offset"
    return HOST_RESULTS.get(name, ())


INSTEAD: dict[str, Callable[[dict[str, Any], Behaviour], Any]] = {}
"""Operators whose meta function refuses what CUDA's kernel takes, or that have none: what to call in its place."""


def instead(func: Any, args: Any, kwargs: Any, behaviour: Behaviour) -> Any:
    """The results of an operator that cannot be called under fake tensors, though CUDA runs it.

    Args:
        func: the aten overload.
        args: its positional arguments.
        kwargs: its keyword arguments.
        behaviour: the GPU and software.

    Returns:
        New tensors as CUDA's kernel would return them; ``NotImplemented`` where the operator itself is to be called.
    """
    make = INSTEAD.get(func._schema.name.removeprefix("aten::"))
    return NotImplemented if make is None else make(bound(func, args, kwargs), behaviour)


def _grouped_mm(args: dict[str, Any], _: Behaviour) -> Any:
    # GroupedMMUtils.h:_grouped_mm_validate_inputs takes float32, float16 and bfloat16, where the meta function takes bfloat16;
    # create_grouped_gemm_output_tensor pads a row to 16 bytes
    a, b, offsets = args["self"], args["mat2"], args["offs"]
    if a.dtype is torch.bfloat16:
        return NotImplemented
    flat_a, flat_b = a.dim() == 2, b.dim() == 2
    if flat_a and flat_b:
        size: tuple[int, ...] = (offsets.shape[0], a.shape[0], b.shape[1])
    elif flat_a or flat_b:
        size = (a.shape[-2], b.shape[-1])
    else:
        size = (a.shape[0], a.shape[1], b.shape[2])
    row = -(-size[-1] * a.element_size() // 16) * 16 // a.element_size()
    stride = (size[-2] * row, row, 1) if len(size) == 3 else (row, 1)
    return a.new_empty_strided(size, stride)


INSTEAD["_grouped_mm"] = _grouped_mm


def corrected(func: Any, args: Any, kwargs: Any, out: Any, behaviour: Behaviour) -> Any:
    """The results as CUDA would have made them.

    Args:
        func: the aten overload called.
        args: its positional arguments.
        kwargs: its keyword arguments.
        out: what the call returned; where nothing differs, it is returned as it is.
        behaviour: the GPU and software.
    """
    fix = FIXES.get(func._schema.name.removeprefix("aten::"))
    return out if fix is None else fix(bound(func, args, kwargs), out, behaviour)


def _fix(*names: str) -> Callable[[Fix], Fix]:
    def register(function: Fix) -> Fix:
        for name in names:
            if name in FIXES:
                raise ValueError(f"{name} is corrected twice")
            FIXES[name] = function
        return function

    return register


def accumulate(dtype: torch.dtype) -> torch.dtype:
    """The dtype CUDA accumulates in (AccumulateType.h:toAccumulateType, is_cuda=true)."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.new_empty(tensor.shape, dtype=dtype)


@_fix("native_layer_norm")
def _layer_norm(args: dict[str, Any], out: Any, _: Behaviour) -> Any:
    # layer_norm_kernel.cu:layer_norm_cuda: mean and rstd of acc_type; the CPU's are of the input's dtype
    return out[0], *(_as(t, accumulate(args["input"].dtype)) for t in out[1:])


@_fix("native_group_norm")
def _group_norm(args: dict[str, Any], out: Any, _: Behaviour) -> Any:
    # group_norm.cpp:native_group_norm: param_scalar_type, float32 where a half input meets float32 weights
    weight = args["weight"]
    mixed = weight is not None and weight.dtype is not args["input"].dtype
    return out[0], *(_as(t, torch.float32 if mixed else args["input"].dtype) for t in out[1:])


@_fix("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional")
def _batch_norm(args: dict[str, Any], out: Any, _: Behaviour) -> Any:
    # Normalization.cu:batch_norm_cuda: save_mean and save_invstd of the accumulation dtype, empty in evaluation
    return out[0], *(_as(t, accumulate(args["input"].dtype)) for t in out[1:3]), *out[3:]


@_fix("cudnn_batch_norm")
def _cudnn_batch_norm(args: dict[str, Any], out: Any, _: Behaviour) -> Any:
    # cudnn/BatchNorm.cpp:cudnn_batch_norm: save_mean and save_var of weight.options(), empty in evaluation
    weight = args["weight"]
    size = weight.numel() if args["training"] else 0
    return out[0], *(weight.new_empty(size) for _ in range(2)), out[3]


@_fix("log_sigmoid_forward")
def _log_sigmoid(_: dict[str, Any], out: Any, __: Behaviour) -> Any:
    # Activation.cpp:log_sigmoid_forward_cuda: "NOTE: buffer is only used by CPU dispatch, we just ignore it here"
    return out[0], out[1].new_empty(0)


@_fix("_scaled_dot_product_efficient_attention_backward")
def _efficient_attention_backward(_: dict[str, Any], out: Any, __: Behaviour) -> Any:
    # attention_backward.cu: "force alignment for the last dim"; a view that fake tensors find again in their cache has memory
    # to its last element alone, and not to the end of its last row
    bias = out[3]
    if bias is None or bias.shape[-1] % 16 == 0:
        return out
    aligned = bias.new_empty((*bias.shape[:-1], bias.shape[-1] + 16 - bias.shape[-1] % 16))
    return *out[:3], aligned[..., : bias.shape[-1]]


@_fix("_scaled_dot_product_cudnn_attention")
def _cudnn_attention(args: dict[str, Any], out: Any, _: Behaviour) -> Any:
    # cudnn/MHA.cpp:run_cudnn_SDP_fprop: the statistics are allocated only where asked for
    return out if args["compute_log_sumexp"] else (out[0], out[1].new_empty(0), *out[2:])


@_fix("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(args: dict[str, Any], out: Any, _: Behaviour) -> Any:
    # EmbeddingBag.cu:_embedding_bag_cuda: offset2bag of every index; max_indices only in mode 2
    indices, bags = args["indices"], out[0].shape[0]
    most = indices.new_empty(bags, out[0].shape[1]) if args.get("mode", 0) == 2 else indices.new_empty(0)
    return out[0], indices.new_empty(indices.shape[0]), indices.new_empty(args["offsets"].shape[0]), most


@_fix("convolution", "_convolution")
def _convolution(args: dict[str, Any], out: Any, _: Behaviour) -> Any:
    # ConvUtils.h:cudnn_conv_suggest_memory_format: channels last where input or weight is, but not for doubles
    x, weight = args["input"], args["weight"]
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(x.dim())
    if wanted is None or torch.float64 in (x.dtype, weight.dtype):
        return out
    last = any(t.is_contiguous(memory_format=wanted) and not t.is_contiguous() for t in (x, weight))
    layout = wanted if last else torch.contiguous_format
    return out if out.is_contiguous(memory_format=layout) else torch.empty_like(out, memory_format=layout)
