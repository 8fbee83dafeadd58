"""The aten calls CUDA's ``scaled_dot_product_attention`` makes (transformers/attention.cpp), for tensors with CPU keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from memcalc.engines.trace.cuda.sdpa import BACKENDS, CUDNN_FIRST, HALF, choose, prefers_cudnn
from memcalc.kernels.behaviour import Behaviour

aten = torch.ops.aten
MATH_WIDE = (2, 5)
"""The first torch whose math kernel computes half precision in FP32, unless told not to (pytorch aten/src/ATen/Context.h:
allowFP16BF16ReductionMathSDP, new with 2.5)."""
_NAMES = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}  # ATen/SDPBackend.h:SDPBackend


def switched_on(behaviour: Behaviour) -> tuple[str, ...] | None:
    """The backends the program left enabled, in the order it set; None where it changed nothing.

    ``torch.backends.cuda.enable_…_sdp`` and ``torch.nn.attention.sdpa_kernel`` keep their state with no CUDA too.
    """
    cuda = torch.backends.cuda
    on = {
        "flash": cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
        "efficient": cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
        "math": cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
        "cudnn": cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
    }
    order = [_NAMES[i] for i in getattr(torch._C, "_get_sdp_priority_order", list)() if i in _NAMES]
    default = not order or tuple(order) == BACKENDS
    if all(on.values()) and default:
        return None
    wanted: Iterable[str] = (CUDNN_FIRST if prefers_cudnn(behaviour) else BACKENDS) if default else order
    return tuple(name for name in wanted if on[name])


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    behaviour: Behaviour | None = None,
    enabled: Iterable[str] | None = None,
) -> Tensor:
    """``scaled_dot_product_attention`` as on CUDA: the same backend, and the same operators in the same order.

    Args:
        query: (…, heads, query length, head dimension); the other tensors and flags as in
            ``torch.nn.functional.scaled_dot_product_attention``.
        key: see there.
        value: see there.
        attn_mask: see there.
        dropout_p: see there.
        is_causal: see there.
        scale: see there.
        enable_gqa: see there.
        behaviour: the GPU and software.
        enabled: the backends allowed, in order; None: those the program left on.

    Returns:
        (…, heads, query length, value dimension).
    """
    behaviour = behaviour or Behaviour()
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))  # should_compute_logsumexp
    chosen = choose(
        *(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa),
        requires_grad=needs_grad,
        behaviour=behaviour,
        enabled=switched_on(behaviour) if enabled is None else enabled,
    )
    run = _RUN[chosen.backend]
    if run is _math:
        run = partial(_math, wide=behaviour.torch >= MATH_WIDE)
    return run(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, needs_grad)


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask as an additive one of the query's dtype (attention.cpp:convert_boolean_attn_mask_)."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.scalar_tensor(-math.inf, dtype=dtype, device=mask.device))


def pad_last_dim(tensor: Tensor) -> Tensor:
    """The head dimension padded to a multiple of 8 (attention.cpp:pad_last_dim<8, false>)."""
    missing = -tensor.shape[-1] % 8
    return torch.constant_pad_nd(tensor, [0, missing]) if missing else tensor


def preprocess_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask memory-efficient attention takes: rows aligned to 8, four dimensions (attention.cpp:preprocess_mask)."""
    aligned = mask.stride(-1) == 1 and not any(stride % 8 for stride in mask.stride()[:-1])  # aligned_tensor<8>
    if not aligned:
        length = mask.shape[-1]
        mask = torch.constant_pad_nd(mask, [0, 8 - length % 8])[..., :length]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: Any, p: float, causal: bool, scale: float | None, *_: Any) -> Tensor:
    width = q.shape[-1]
    scale = 1 / math.sqrt(width) if scale is None else scale  # of the unpadded head dimension
    out: Tensor = aten._scaled_dot_product_flash_attention(
        *(pad_last_dim(t) for t in (q, k, v)), p, causal, False, scale=scale
    )[0]
    return out if out.shape[-1] == width else out[..., :width]  # post_process_flash_output


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, causal: bool, scale: float | None, _: bool, lse: bool
) -> Tensor:
    bias = additive(mask, q.dtype)
    bias = None if bias is None else preprocess_mask(bias, q, k)
    out: Tensor = aten._scaled_dot_product_efficient_attention(q, k, v, bias, lse, p, causal, scale=scale)[0]
    return out


def _cudnn(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, causal: bool, scale: float | None, _: bool, lse: bool
) -> Tensor:
    bias = additive(mask, q.dtype)  # convert_boolean_attn_mask_cudnn: another value, the same shapes
    out: Tensor = aten._scaled_dot_product_cudnn_attention(q, k, v, bias, lse, p, causal, False, scale=scale)[0]
    return out


def _math(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    p: float,
    causal: bool,
    scale: float | None,
    gqa: bool,
    _: bool,
    *,
    wide: bool = True,
) -> Tensor:
    """attention.cpp:_scaled_dot_product_attention_math, which adds the mask in place where no tensor is a subclass."""
    dtype = q.dtype
    mask = additive(mask, dtype)
    if wide and dtype in HALF and not torch._C._get_math_sdp_allow_fp16_bf16_reduction():
        q, k, v = q.float(), k.float(), v.float()
    root = math.sqrt(abs(1 / math.sqrt(q.shape[-1]) if scale is None else scale))
    q = q * (-root if scale is not None and scale < 0 else root)
    if causal:
        length, keys = q.shape[-2], k.shape[-2]
        mask = additive(torch.ones(length, keys, dtype=torch.bool, device=q.device).tril(), q.dtype)
    if gqa:  # pre_process_group_query_attention_input
        k, v = (t if t.shape[-3] == q.shape[-3] else t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    scores = torch.matmul(q, k.transpose(-2, -1) * root)
    if mask is not None:
        scores.add_(mask)
    weights = aten._safe_softmax(scores, -1)
    del scores  # one variable there, which the weights take
    if p > 0:
        weights = torch.dropout(weights, p, True)
    return torch.matmul(weights, v).to(dtype)


_RUN: dict[str, Callable[..., Tensor]] = {"flash": _flash, "efficient": _efficient, "cudnn": _cudnn, "math": _math}
