"""Composite ATen functions that take another road on CUDA than on a CPU, restated for tensors with CPU dispatch keys.

They are put over the ``AutogradCPU`` dispatch key, not into a function mode: so autocast still comes first, and calls from
inside other C++ functions meet them too. ``WHERE_CUDA_DIFFERS`` is the list, with what was found to need no restatement.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from memcalc.engines.trace.cuda.attention import attention
from memcalc.engines.trace.cuda.overrides import composite, operator, override
from memcalc.engines.trace.cuda.rnn import KERNELS
from memcalc.kernels.behaviour import Behaviour

aten = torch.ops.aten
CUDNN_BATCH_NORM = 1  # _batch_norm_impl_index's reserve says which road was taken: 0 native, 1 cuDNN (Normalization.cpp)

WHERE_CUDA_DIFFERS: dict[str, str] = {
    "dropout": "Dropout.cpp:is_fused_kernel_acceptable: native_dropout with a mask of bytes",
    "softmax.int": "SoftMax.cpp:softmax: half to float in one kernel, no copy of the input",
    "log_softmax.int": "SoftMax.cpp:log_softmax: likewise",
    "scaled_dot_product_attention": "transformers/attention.cpp:scaled_dot_product_attention: see attention.py",
    "_batch_norm_impl_index": "Normalization.cpp:_batch_norm_impl_index, _select_batch_norm_backend: cudnn_batch_norm",
    "group_norm": "group_norm.cpp:group_norm: the input made contiguous, whatever its memory format",
    "_fused_rms_norm": "native_functions.yaml: a kernel of its own on CUDA, composite on the CPU (2.9 on)",
    "linear": "Linear.cpp:linear: the bias added in place where no tensor is a subclass",
    "one_hot": "Onehot.cpp:one_hot: zeros and scatter_, without the checks of values that the CPU makes",
    "silu_backward": "native_functions.yaml: a CUDA kernel, and a composite one where the build has none",
    "mish_backward": "native_functions.yaml: likewise",
    "lstm.input": "RNN.cpp:lstm: one _cudnn_rnn where cuDNN takes the dtype (rnn.py)",
    "gru.input": "RNN.cpp:gru: likewise",
    "rnn_tanh.input": "RNN.cpp:rnn_tanh: likewise",
    "rnn_relu.input": "RNN.cpp:rnn_relu: likewise",
}
"""Restated, with the source of the difference."""

WHERE_CUDA_AGREES: dict[str, str] = {
    "layer_norm": "layer_norm.cpp: native_layer_norm on both; its statistics' dtype is in results.py",
    "matmul": "LinearAlgebra.cpp:_matmul_impl: folding asks for shapes, strides and requires_grad only",
    "convolution": "Convolution.cpp: one operator to autograd on both; the backend decides scratch and layout",
    "cross_entropy_loss": "LossNLL.cpp: log_softmax and nll_loss_nd on both",
    "nll_loss_nd": "LossNLL.cpp: nll_loss or nll_loss2d by dimensions on both",
    "instance_norm": "Normalization.cpp:instance_norm: calls batch_norm, which is restated",
    "max_pool2d": "Pooling.cpp:max_pool2d: max_pool2d_with_indices on both",
    "adaptive_avg_pool2d": "AdaptiveAveragePooling.cpp: mean for output size 1, else _adaptive_avg_pool2d, on both",
    "embedding": "Embedding.cpp: embedding_dense_backward is its own operator on both",
    "einsum": "Linear.cpp:einsum: sumproduct_pair on both",
    "feature_dropout": "Dropout.cpp:_dropout: bernoulli_, div_, mul on both; so alpha_dropout and the in-place forms",
    "pad": "PadNd.cpp: no device asked",
    "repeat_interleave.self_int": "Repeat.cpp: expand and clone on both",
}
"""Read and found alike, as far as allocations go."""

DOUBTS: dict[str, str] = {
    "prod_backward": "FunctionsManual.cpp: a quotient where no value is 0, which a trace cannot know: it takes the longer road",
    "cumprod_backward": "ReduceOps.cpp: likewise",
    "quantile": "Sorting.cpp:quantile_compute: lerp out of place, one result more",
    "cross_entropy_loss_label_smoothing": "LossNLL.cpp: with class weights, a mask and an index for each target out of place",
    "_cudnn_rnn": "cudnn/RNN.cpp: the reserve is an estimate; packed sequences are not restated",
    "ctc_loss": "LossCTC.cpp: cuDNN's for int32 targets on the CPU; not restated",
    "embedding_bag": "EmbeddingBag.cpp: other auxiliary outputs on CUDA; not restated",
    "grid_sampler": "GridSampler.cpp:cond_cudnn_grid_sampler: cuDNN's kernel, with the same bytes",
}
"""Differences known and left."""


def kernels(behaviour: Behaviour) -> dict[str, Callable[..., Any]]:
    """The restatements by operator (``name.overload``), each with the operator's own signature."""

    def sdpa(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        flags = {"scale": scale, "enable_gqa": enable_gqa}
        return attention(query, key, value, attn_mask, dropout_p, is_causal, behaviour=behaviour, **flags)  # type: ignore[arg-type]

    found: dict[str, Callable[..., Any]] = {
        "dropout": dropout,
        "softmax.int": _softmax_like(aten._softmax, "softmax.int"),
        "log_softmax.int": _softmax_like(aten._log_softmax, "log_softmax.int"),
        "scaled_dot_product_attention": sdpa,
        "_batch_norm_impl_index": batch_norm_impl_index,
        "group_norm": group_norm,
        "linear": linear,
        "one_hot": one_hot,
        "silu_backward": _one_kernel("silu_backward"),
        "mish_backward": _one_kernel("mish_backward"),
        **KERNELS,
    }
    if behaviour.torch >= (2, 9):  # where CUDA's kernel came in
        found["_fused_rms_norm"] = fused_rms_norm
    return found


@contextlib.contextmanager
def cuda_composites(behaviour: Behaviour | None = None, key: str = "AutogradCUDA") -> Iterator[None]:
    """Composite functions take CUDA's road until the end of the block.

    >>> with cuda_composites(key="AutogradCPU"):
    ...     x = torch.ones(4, requires_grad=True)
    ...     torch.nn.functional.dropout(x, 0.5).grad_fn.name()
    'NativeDropoutBackward0'
    """
    with override(kernels(behaviour or Behaviour()), key):
        yield


def dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """Dropout.cpp:dropout: fused where 0 < p < 1 in training."""
    if train and 0 < p < 1 and input.numel() > 0:  # is_fused_kernel_acceptable
        out: Tensor = aten.native_dropout(input, p, train)[0]
        return out
    return composite("dropout", input, p, train)  # type: ignore[no-any-return]


def _one_kernel(name: str) -> Callable[..., Tensor]:
    """CUDA's own kernel, for an operator that is composite where a build has none.

    source: pytorch aten/src/ATen/native/native_functions.yaml: silu_backward and mish_backward have both ``CUDA`` and
    ``CompositeImplicitAutograd`` kernels, and a CPU wheel's dispatcher knows only of the second for CUDA's keys
    """

    def run(grad_output: Tensor, self: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = operator(name)(grad_output, self)
        return result

    return run


def _softmax_like(fused: Any, name: str) -> Callable[..., Tensor]:
    def run(self: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        if self.dtype is torch.float16 and dtype is torch.float32:  # SoftMax.cpp:softmax, log_softmax
            return fused(self, dim, True)  # type: ignore[no-any-return]
        return composite(name, self, dim, dtype)  # type: ignore[no-any-return]

    return run


def batch_norm_impl_index(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Normalization.cpp:_batch_norm_impl_index: cuDNN's where _select_batch_norm_backend allows, else the native kernel."""
    statistics = (running_mean is None) == (running_var is None) and (running_mean is not None or training)
    largest = 880801 if training else 65535  # "spatial, training" and "spatial, evaluate" batch limits of that function
    cudnn = (
        cudnn_enabled
        and torch.backends.cudnn.enabled
        and input.dtype is not torch.bfloat16
        and weight is not None
        and bias is not None
        and weight.dtype is not torch.bfloat16
        and (input.dtype is not torch.float16 or weight.dtype is torch.float32)
        and statistics
        and input.dim() >= 3
        and input.shape[0] <= largest
        and eps >= 0  # cudnn.h:CUDNN_BN_MIN_EPSILON is 0 since cuDNN 7.5
        and 0 < input.numel() < 2**31 - 1  # "some cuDNN kernels have 32-bit indexing limitations"
    )
    if not cudnn:
        out, mean, rstd = aten.native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)
        return out, mean, rstd, input.new_empty(0, dtype=torch.uint8), 0
    layout = torch.channels_last if _is_channels_last(input) else torch.contiguous_format
    layout = torch.channels_last_3d if input.dim() == 5 and layout is torch.channels_last else layout
    x = input.contiguous(memory_format=layout)
    parts = [t if t is None else t.contiguous() for t in (weight, bias, running_mean, running_var)]
    out, mean, var, reserve = aten.cudnn_batch_norm(x, *parts, training, momentum, eps)
    return out, mean, var, reserve, CUDNN_BATCH_NORM


def _is_channels_last(tensor: Tensor) -> bool:
    """Tensor.suggest_memory_format() for 4 and 5 dimensions: strides that fall with the channels last."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats.get(tensor.dim())
    return layout is not None and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous()


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """group_norm.cpp:group_norm: on CUDA a channels-last input is copied."""
    x = input.contiguous()
    rest = x.numel() // max(1, x.shape[0] * x.shape[1])
    affine = [t if t is None else t.contiguous() for t in (weight, bias)]
    out: Tensor = aten.native_group_norm(x, *affine, x.shape[0], x.shape[1], rest, num_groups, eps)[0]
    return out


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Linear.cpp:linear: for an input that cannot be flattened, the bias is added in place, not out of place."""
    if bias is None or input.dim() <= 2 or input.is_contiguous():
        return composite("linear", input, weight, bias)  # type: ignore[no-any-return]
    return torch.matmul(input, weight.t()).add_(bias)


def one_hot(self: Tensor, num_classes: int = -1) -> Tensor:
    """Onehot.cpp:one_hot as CUDA runs it; the number of classes must be said, for there are no values to count."""
    if num_classes <= 0:
        return composite("one_hot", self, num_classes)  # type: ignore[no-any-return]
    out = self.new_zeros(*self.shape, num_classes)
    return out.scatter_(-1, self.unsqueeze(-1), 1)


class _FusedRmsNorm(torch.autograd.Function):
    """derivatives.yaml:_fused_rms_norm, which a CPU key does not reach: input, rstd and weight are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None,
        eps: float | None,
    ) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            out, rstd = aten._fused_rms_norm(input, normalized_shape, weight, eps)
        ctx.save_for_backward(input, weight, rstd)
        ctx.normalized_shape = normalized_shape
        ctx.mark_non_differentiable(rstd)
        ctx.set_materialize_grads(False)
        return out, rstd

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, None, Tensor | None, None]:
        input, weight, rstd = ctx.saved_tensors
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
        with torch._C._AutoDispatchBelowAutograd():
            grads = aten._fused_rms_norm_backward(grad, input, ctx.normalized_shape, rstd, weight, mask)
        return grads[0], None, grads[1], None


def fused_rms_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None,
    eps: float | None,
) -> tuple[Tensor, Tensor]:
    """``_fused_rms_norm`` as one operator with one backward, as CUDA has it."""
    return _FusedRmsNorm.apply(input, normalized_shape, weight, eps)  # type: ignore[no-any-return,no-untyped-call]
