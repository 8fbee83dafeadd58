"""The backend CUDA's ``scaled_dot_product_attention`` takes (native/transformers/cuda/sdp_utils.cpp:select_sdp_backend)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from memcalc.kernels.behaviour import Behaviour

Backend = Literal["flash", "efficient", "cudnn", "math"]
BACKENDS: tuple[Backend, ...] = ("flash", "efficient", "math", "cudnn")
"""The default order: Context.h:sdp_priority_order (2.7 on), sdp_utils.cpp:priority_order (2.6)."""
CUDNN_FIRST: tuple[Backend, ...] = ("cudnn", "flash", "efficient", "math")  # sdp_utils.cpp:priority_order
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Choice:
    """The backend taken, and for each one passed over, why."""

    backend: Backend
    reasons: dict[str, str]


@dataclass(frozen=True)
class Call:
    """One call: what the checks of sdp_utils.cpp look at (its ``sdp_params``)."""

    query: Any
    key: Any
    value: Any
    attn_mask: Any
    dropout_p: float
    is_causal: bool
    enable_gqa: bool
    requires_grad: bool
    behaviour: Behaviour

    @property
    def tensors(self) -> tuple[Any, Any, Any]:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def heads(self) -> tuple[int, int, int]:
        """Heads of each."""
        return self.query.shape[-3], self.key.shape[-3], self.value.shape[-3]


def prefers_cudnn(behaviour: Behaviour) -> bool:
    """Whether cuDNN's attention comes first (sdp_utils.cpp:check_prefer_cudnn_attention).

    Opt-in up to 2.8 (pytorch#138522); by default since 2.9 (pytorch#162073), where the CUDA 12 wheels were built against too
    old a cuDNN to take it (pytorch#165801); with cuDNN over 9.15.0 since 2.10 (pytorch#169849).

    >>> prefers_cudnn(Behaviour()), prefers_cudnn(Behaviour(capability=(8, 0))), prefers_cudnn(Behaviour(torch=(2, 8)))
    (True, False, False)
    """
    major, minor = behaviour.capability
    if behaviour.torch < (2, 9) or major not in (9, 10):
        return False
    if behaviour.torch < (2, 10):
        return behaviour.cuda >= (13, 0) and minor == 0
    return behaviour.cudnn > 91500 and minor in (0, 3)


def choose(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    enable_gqa: bool = False,
    *,
    requires_grad: bool = True,
    behaviour: Behaviour | None = None,
    enabled: Iterable[str] | None = None,
) -> Choice:
    """The backend CUDA takes.

    Args:
        query: (batch, heads, query length, head dimension); only ``shape``, ``stride()`` and ``dtype`` are looked at.
        key: (batch, key heads, key length, head dimension).
        value: (batch, key heads, key length, value dimension).
        attn_mask: as ``scaled_dot_product_attention`` takes it.
        dropout_p: the dropout.
        is_causal: whether the mask is causal.
        enable_gqa: whether fewer key heads than query heads are allowed.
        requires_grad: whether any of the three needs a gradient, with grad mode on.
        behaviour: the GPU and software.
        enabled: the backends that are switched on, in the order tried; None: all, in the order of that GPU.

    Raises:
        RuntimeError: none of those enabled can serve the call, as PyTorch does.
    """
    behaviour = behaviour or Behaviour()
    call = Call(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa, requires_grad, behaviour)
    order = CUDNN_FIRST if prefers_cudnn(behaviour) else BACKENDS
    reasons: dict[str, str] = {}
    for backend in order if enabled is None else tuple(enabled):
        why = next(CHECKS[backend](call), None) if backend in CHECKS else None
        if why is None:
            return Choice(backend, reasons)  # type: ignore[arg-type]
        reasons[backend] = why
    raise RuntimeError(f"No available kernel. Aborting execution. {reasons}")


def _flash(call: Call) -> Iterator[str]:
    """Why flash attention cannot serve (can_use_flash_attention); nothing where it can."""
    major, minor = call.behaviour.capability
    head_dim = call.query.shape[-1]
    yield from _four_dimensional(call)
    if call.attn_mask is not None:
        yield "an explicit attn_mask (check_for_attn_mask)"
    if not head_dim == call.key.shape[-1] == call.value.shape[-1] or head_dim > 256:
        yield "head dimensions differ or exceed 256 (check_head_dim_size_flash)"
    if not (8, 0) <= (major, minor) <= _newest(call):
        yield "compute capability (check_flash_attention_hardware_support)"
    consumer = (8, 6) <= (major, minor) <= (8, 9) or (major == 12 and call.behaviour.torch >= (2, 7))
    if call.requires_grad and consumer and (192 < head_dim <= 224 or (head_dim > 224 and call.dropout_p > 0)):
        yield "backward of head dimension over 192 (check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120)"
    if call.is_causal and call.query.shape[-2] != call.key.shape[-2]:
        yield "is_causal with unequal lengths (check_flash_causal_non_square_seqlens)"
    yield from _low_precision(call)
    yield from _batch_and_heads(call, gqa=True)
    yield from _lengths(call)
    yield from _last_stride(call, ignore_singleton=True)


def _efficient(call: Call) -> Iterator[str]:
    """Why memory-efficient attention cannot serve (can_use_mem_efficient_attention)."""
    major, minor = call.behaviour.capability
    yield from _four_dimensional(call)
    if not (5, 0) <= (major, minor) <= _newest(call):
        yield "compute capability (check_mem_efficient_hardware_support)"
    alignment = gemm_alignment(call.query.dtype, major)
    head_dim, value_dim = call.query.shape[-1], call.value.shape[-1]
    if head_dim != call.key.shape[-1] or not head_dim or not value_dim or head_dim % alignment or value_dim % alignment:
        yield f"head dimension no multiple of {alignment} (check_head_dim_size_mem_efficient)"
    yield from _lengths(call)
    yield from _last_stride(call, ignore_singleton=False)
    yield from _batch_and_heads(call, gqa=False)  # native GQA came after 2.13 (pytorch#191085)
    allowed = (*HALF, torch.float32) if major >= 8 else (torch.float16, torch.float32)
    if call.query.dtype not in allowed or len({t.dtype for t in call.tensors}) > 1:
        yield "dtype (check_tensor_dtype)"


def _cudnn(call: Call) -> Iterator[str]:
    """Why cuDNN's attention cannot serve (can_use_cudnn_attention)."""
    version = call.behaviour.cudnn
    if version < 90000:
        yield "cuDNN older than 9.0.0"
    if call.dropout_p > 0 and 91100 < version < 91400 and call.behaviour.torch >= (2, 9):
        yield "dropout with cuDNN 9.11 to 9.13 (pytorch#163903)"
    yield from _four_dimensional(call)
    if call.behaviour.deterministic:
        yield "deterministic algorithms (check_cudnn_deterministic)"
    yield from _low_precision(call)
    yield from _mask_shape(call)
    if not (8, 0) <= call.behaviour.capability <= _newest(call):
        yield "compute capability (check_cudnn_hardware_support)"
    if call.behaviour.torch >= (2, 12) and call.dropout_p * 16 != int(call.dropout_p * 16):
        yield "dropout no multiple of 1/16 (check_cudnn_dropout)"
    yield from _lengths(call)
    yield from _last_stride(call, ignore_singleton=True)
    yield from _batch_and_heads(call, gqa=True, same_kv=False)
    yield from _cudnn_shapes(call)


def _cudnn_shapes(call: Call) -> Iterator[str]:
    """check_cudnn_tensor_shapes."""
    head_dim, value_dim = call.query.shape[3], call.value.shape[3]
    hopper = call.behaviour.capability == (9, 0)
    limit = 256 if hopper and call.behaviour.cudnn >= 91000 and call.behaviour.torch >= (2, 9) else 128
    if call.behaviour.major == 10 and call.behaviour.cudnn >= 91100 and (head_dim, value_dim) == (192, 128):
        limit = 192  # pytorch: "special case allowed by cuDNN frontend"
    if head_dim > limit or value_dim > limit:
        yield f"head dimension over {limit} (check_cudnn_tensor_shapes)"
    if head_dim % 8 or value_dim % 8:
        yield "head dimension no multiple of 8 (check_cudnn_tensor_shapes)"
    if call.key.shape[2] == 1 or (call.query.shape[2] == 1 and call.dropout_p):
        yield "a sequence of length 1 (check_cudnn_tensor_shapes)"


CHECKS: dict[str, Callable[[Call], Iterator[str]]] = {"flash": _flash, "efficient": _efficient, "cudnn": _cudnn}


def gemm_alignment(dtype: torch.dtype, major: int) -> int:
    """Elements that a head dimension must be a multiple of (sdp_utils.cpp:minimum_gemm_alignment).

    >>> gemm_alignment(torch.float16, 8), gemm_alignment(torch.float32, 8), gemm_alignment(torch.float32, 7)
    (8, 4, 1)
    """
    half = dtype in HALF
    tensor_cores = major >= 8 or (major >= 7 and half)  # use_tensor_cores
    least = 4 if major >= 8 else 1
    return max(least, 128 // (16 if half else 32)) if tensor_cores else least


def _newest(call: Call) -> tuple[int, int]:
    return (12, 1) if call.behaviour.torch >= (2, 7) else (9, 0)  # sm90 at v2.6, sm120/121 since Blackwell's support


def _four_dimensional(call: Call) -> Iterator[str]:
    if any(len(t.shape) != 4 for t in call.tensors):
        yield "query, key and value are not all of 4 dimensions (check_tensor_shapes)"


def _low_precision(call: Call) -> Iterator[str]:
    allowed = HALF if call.behaviour.major >= 8 else (torch.float16,)
    if call.query.dtype not in allowed or len({t.dtype for t in call.tensors}) > 1:
        yield "dtype (check_dtypes_low_precision)"


def _lengths(call: Call) -> Iterator[str]:
    if not call.query.shape[-2] or not call.key.shape[-2]:
        yield "a sequence of length 0 (check_nonzero_sequence_lengths_dense)"


def _last_stride(call: Call, *, ignore_singleton: bool) -> Iterator[str]:
    unit = all(t.stride()[-1] == 1 for t in call.tensors) or (ignore_singleton and call.query.shape[-1] == 1)
    if not unit or (call.attn_mask is not None and call.attn_mask.stride()[-1] != 1):
        yield "last dimension is not of stride 1 (check_last_dim_stride_equals_1_dense)"


def _batch_and_heads(call: Call, *, gqa: bool, same_kv: bool = True) -> Iterator[str]:
    """check_batch_size_and_num_heads_dense."""
    q, k, v = call.heads
    if len({t.shape[0] for t in call.tensors}) > 1:
        yield "batch sizes differ (check_batch_size_and_num_heads_dense)"
    if call.enable_gqa and gqa:
        if (same_kv and k != v) or q % k or q % v:
            yield "key heads do not divide query heads (check_grouped_query_attention)"
    elif not q == k == v:
        yield "numbers of heads differ (check_batch_size_and_num_heads_dense)"


def _mask_shape(call: Call) -> Iterator[str]:
    """check_attn_mask_shape."""
    mask = call.attn_mask
    if mask is None:
        return
    if mask.requires_grad:
        yield "attn_mask requires grad (check_attn_mask_shape)"
    full = (call.query.shape[0], call.query.shape[1], call.query.shape[2], call.key.shape[2])
    dims = len(mask.shape)
    if dims not in (2, 4) or any(have not in (1, want) for have, want in zip(mask.shape, full[-dims:], strict=True)):
        yield "shape of attn_mask (check_attn_mask_shape)"
