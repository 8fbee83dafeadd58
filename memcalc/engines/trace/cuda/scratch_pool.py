"""Pooling, resampling and padding: copies of operands into the order the kernel reads."""

from __future__ import annotations

from typing import Any

from memcalc.engines.trace.cuda.scratch import Arguments, Scratch, contiguous_copy, scratch
from memcalc.engines.trace.cuda.scratch_convolution import is_channels_last
from memcalc.engines.trace.cuda.scratch_norm import copy_in_format
from memcalc.kernels.behaviour import Behaviour


@scratch(
    *("max_pool2d_with_indices", "avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "max_pool3d_with_indices"),
    *("_adaptive_avg_pool2d", "adaptive_max_pool2d", "_upsample_nearest_exact2d"),
    source="native/cuda/{DilatedMaxPool2d,AveragePool2d,UpSample*2d,Adaptive*Pooling*}.cu: input.contiguous(memory_format)",
)
def _forward(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    source = args["self"]
    return copy_in_format("input", source, is_channels_last(source))


@scratch(
    *("max_pool2d_with_indices_backward", "avg_pool2d_backward", "_adaptive_avg_pool2d_backward"),
    *("max_pool3d_with_indices_backward", "adaptive_max_pool2d_backward"),
    source="native/cuda/{DilatedMaxPool2d,AveragePool2d,AdaptiveAveragePooling}.cu: gradients in the input's memory format",
)
def _backward(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    last = is_channels_last(args["self"])
    named = (("grad_output", args["grad_output"]), ("input", args["self"]), ("indices", args.get("indices")))
    return [buffer for name, tensor in named if tensor is not None for buffer in copy_in_format(name, tensor, last)]


@scratch(
    *("upsample_nearest2d_backward", "upsample_bilinear2d_backward", "_upsample_nearest_exact2d_backward"),
    source="native/cuda/UpSample{Nearest,Bilinear}2d.cu: channels last where the gradient is, else planar",
)
def _resample_backward(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    grad = args["grad_output"]
    return copy_in_format("grad_output", grad, is_channels_last(grad))


@scratch(
    *(
        "upsample_nearest1d",
        "upsample_nearest3d",
        "avg_pool3d",
        "reflection_pad1d",
        "reflection_pad2d",
        "im2col",
        "col2im",
        "roll",
    ),
    source="native/cuda/{UpSampleNearest*,AveragePool3d,ReflectionPad,Im2Col,TensorTransformations}.cu: input.contiguous()",
)
def _planar(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    return contiguous_copy("input", args["self"])


@scratch(
    *(
        "upsample_nearest1d_backward",
        "upsample_nearest3d_backward",
        "upsample_linear1d_backward",
        "upsample_bicubic2d_backward",
    ),
    *("upsample_trilinear3d_backward", "avg_pool3d_backward", "reflection_pad1d_backward", "reflection_pad2d_backward"),
    source="native/cuda/{UpSample*,AveragePool3d,ReflectionPad}.cu: grad_output.contiguous()",
)
def _planar_backward(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    return contiguous_copy("grad_output", args["grad_output"])


@scratch(
    *("upsample_linear1d", "upsample_bicubic2d", "upsample_trilinear3d", "grid_sampler_2d", "grid_sampler_2d_backward"),
    *("grid_sampler_3d", "grid_sampler_3d_backward"),
    source="native/cuda/{UpSampleLinear1d,UpSampleBicubic2d,UpSampleTrilinear3d}.cu, GridSampler.cu: strided accessors",
)
def _strided(_: Arguments, __: Any, ___: Behaviour) -> list[Scratch]:
    return []
