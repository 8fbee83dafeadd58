"""Convolutions: copies into the kernel's layout, and cuDNN's workspace, which is a bound."""

from __future__ import annotations

from typing import Any

import torch

from memcalc.engines.trace.cuda.scratch import Arguments, Scratch, scratch
from memcalc.engines.trace.cuda.scratch_norm import bias_gradient, copy_in_format
from memcalc.kernels.behaviour import Behaviour
from memcalc.kernels.convolution import workspace as bounded


def is_channels_last(*tensors: Any) -> bool:
    """cudnn_conv_suggest_memory_format: any tensor lies channels last, and none is double."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    known = [t for t in tensors if t.dim() in formats]
    last = any(t.is_contiguous(memory_format=formats[t.dim()]) and not t.is_contiguous() for t in known)
    return last and all(t.dtype is not torch.float64 for t in known)


def workspace(*operands: Any) -> Scratch:
    """CuDNN's workspace, a bound."""
    return Scratch("cuDNN workspace", int(bounded((t.numel(), t.element_size()) for t in operands)), bound=True)


@scratch(
    "convolution", "_convolution", "cudnn_convolution", source="native/Convolution.cpp:_convolution; native/cudnn/Conv_v8.cpp"
)
def _forward(args: Arguments, out: Any, _: Behaviour) -> list[Scratch]:
    source, weight = args.get("input", args.get("self")), args["weight"]
    last = is_channels_last(source, weight)
    copied = copy_in_format("input", source, last) + copy_in_format("weight", weight, last)
    parts = (weight,) if last else (source, weight, out)
    return [*copied, workspace(*parts)]


@scratch("convolution_backward", source="native/Convolution.cpp:convolution_backward; native/cudnn/Conv_v8.cpp")
def _backward(args: Arguments, _: Any, behaviour: Behaviour) -> list[Scratch]:
    grad, source, weight = args["grad_output"], args["input"], args["weight"]
    last = is_channels_last(source, weight)
    named = (("grad_output", grad), ("input", source), ("weight", weight))
    copied = [buffer for name, tensor in named for buffer in copy_in_format(name, tensor, last)]
    parts = (weight,) if last else (grad, source, weight)
    bias = bias_gradient(grad, behaviour) if args["output_mask"][2] else []
    return [*copied, workspace(*parts), *bias]
