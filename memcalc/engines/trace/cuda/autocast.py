"""CUDA's autocast for fake CUDA tensors: its lists, its casts and its weight cache.

PyTorch's own kernels at the ``AutocastCUDA`` dispatch key ask C++ whether a tensor is CUDA's (ATen/autocast_mode.h:
is_autocast_eligible), and a fake one is not. Inside :func:`cuda_autocast` kernels in Python stand in their place, so that
composite C++ functions meet them too. Everything is put back at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from memcalc.engines.trace.cuda.autocast_lists import FP32_APPEND_DTYPE, lists
from memcalc.engines.trace.cuda.overrides import operator, override
from memcalc.kernels.behaviour import Behaviour

Kernel = Callable[..., Any]
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

BANNED = (
    "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast; "
    "use torch.nn.functional.binary_cross_entropy_with_logits or torch.nn.BCEWithLogitsLoss"
)


class Caster:
    """The casts of ATen/autocast_mode.cpp and the cache of low-precision weights."""

    def __init__(self) -> None:
        self._cache: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that ``torch.autocast("cuda")`` was entered with."""
        return torch.get_autocast_dtype("cuda")

    def cached_weights(self) -> list[torch.Tensor]:
        """The low-precision copies held at this moment."""
        return [copy for _, copy in self._cache.values()]

    def clear(self) -> None:
        """Forget the copies, as the exit of the outermost autocast does (torch/amp/autocast_mode.py:autocast.__exit__)."""
        self._cache.clear()

    def eligible(self, value: object) -> bool:
        """Whether a value may be cast: a floating-point CUDA tensor, not a double (autocast_mode.h:is_eligible)."""
        return (
            isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype is not torch.float64 and value.is_cuda
        )

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Cast a tensor, or the tensors of a list, where eligible (autocast_mode.cpp:cached_cast)."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.cast(item, dtype) for item in value)
        if not self.eligible(value) or value.dtype is dtype:
            return value
        if not self._cacheable(value, dtype):
            return value.to(dtype)
        found = self._cache.get(id(value))
        if found is not None and found[0]() is value:
            return found[1]
        copy: torch.Tensor = value.to(dtype)
        self._cache[id(value)] = (weakref.ref(value), copy)
        return copy

    def _cacheable(self, value: torch.Tensor, dtype: torch.dtype) -> bool:
        # autocast_mode.cpp:cached_cast, can_try_cache: an fp32 leaf that requires grad and is no view, to the low precision
        return (
            dtype is self.dtype
            and value.dtype is torch.float32
            and value.requires_grad
            and value.is_leaf
            and not value._is_view()
            and torch.is_autocast_cache_enabled()
        )

    def widest(self, values: Any) -> torch.dtype:
        """The dtype of the promote policy (autocast_mode.h:prioritize, promote_type)."""
        found = self.dtype
        for value in values:
            if isinstance(value, (list, tuple)):
                nested = self.widest(value)
                found = torch.float32 if torch.float32 in (nested, found) else found
            elif self.eligible(value):
                if value.dtype not in (torch.float32, self.dtype):
                    raise RuntimeError("Unexpected floating ScalarType in at::autocast::prioritize")
                found = torch.float32 if torch.float32 in (value.dtype, found) else found
        return found


def cast_all(caster: Caster, dtype: torch.dtype, args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    """Every argument cast to ``dtype``, the last first.

    C++ leaves the order open (autocast_mode.h:WrapFunction_::call expands its arguments in one call); GCC, which the wheels are
    built with, goes from the last to the first.
    """
    named = {k: caster.cast(v, dtype) for k, v in reversed(kwargs.items())}
    cast = [caster.cast(a, dtype) for a in reversed(args)]
    return cast[::-1], {k: named[k] for k in kwargs}


def kernel(policy: str, name: str, caster: Caster) -> Kernel:
    """The Python kernel of one operator under a policy (autocast_mode.h:WrapFunction_)."""
    op = operator(name)
    wide = operator(FP32_APPEND_DTYPE[name]) if policy == "fp32_append_dtype" else op
    place = next((i for i, a in enumerate(op._schema.arguments) if a.name == "dtype" and not a.kwarg_only), None)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):  # as ExcludeDispatchKeyGuard no_autocast does in WrapFunction_
            if policy == "lower_precision_fp":
                args, kwargs = cast_all(caster, caster.dtype, args, kwargs)  # type: ignore[assignment]
            elif policy == "fp32":
                args, kwargs = cast_all(caster, torch.float32, args, kwargs)  # type: ignore[assignment]
            elif policy == "promote":
                args, kwargs = cast_all(caster, caster.widest([*args, *kwargs.values()]), args, kwargs)  # type: ignore[assignment]
            elif policy == "fp32_set_opt_dtype" and caster.eligible(args[0]):
                args, kwargs = _with_dtype(args, kwargs, place)
            elif policy == "fp32_append_dtype":
                return wide(*_filled(args), **kwargs, dtype=torch.float32 if caster.eligible(args[0]) else args[0].dtype)
            elif policy == "banned":
                raise RuntimeError(BANNED)
            return op(*args, **kwargs)

    def _filled(args: Any) -> Any:
        # ScalarOpt_dim has keepdim=False, ScalarOpt_dim_dtype has no default, and dropped defaults do not reach a kernel
        want = [a for a in op._schema.arguments if not a.kwarg_only]
        return [*args, *(a.default_value for a in want[len(args) :])]

    return run


def _with_dtype(args: Any, kwargs: dict[str, Any], place: int | None) -> tuple[Any, dict[str, Any]]:
    """``dtype=float32`` where the call gave none."""
    if place is None or len(args) <= place:
        return args, {**kwargs, "dtype": kwargs.get("dtype") or torch.float32}
    return [*args[:place], args[place] or torch.float32, *args[place + 1 :]], kwargs


def cudnn_rnn(caster: Caster) -> Kernel:
    """The kernel of ``_cudnn_rnn``: half inputs, and the weights as views of one half buffer, made anew at each call.

    ATen/cudnn/AutocastRNN.cpp:_cudnn_rnn_cast_reflatten casts to float16, whatever dtype autocast was asked for.
    """
    op = operator("_cudnn_rnn")

    def run(source: torch.Tensor, weight: Any, stride: int, buffer: Any, hx: Any, cx: Any, *rest: Any) -> Any:
        half = torch.float16
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            if caster.eligible(weight[0]) and weight[0].dtype is not half:
                buffer = weight[0].new_empty(sum(w.numel() for w in weight), dtype=half)
                ends = list(itertools.accumulate(w.numel() for w in weight))
                # pieces that share the buffer and are no views to autograd, as cudnn/RNN.cpp:get_parameters makes them
                pieces = [buffer[end - w.numel() : end].view(w.shape).detach() for end, w in zip(ends, weight, strict=True)]
                weight = [piece.copy_(w) for piece, w in zip(pieces, weight, strict=True)]
            cast = [t if t is None else caster.cast(t, half) for t in (source, hx, cx)]
            return op(cast[0], weight, stride, buffer.detach(), *cast[1:], *rest)

    return run


@contextlib.contextmanager
def cuda_autocast(behaviour: Behaviour | None = None) -> Iterator[Caster]:
    """CUDA's autocast for fake CUDA tensors, until the end of the block.

    PyTorch's own kernels stand at the same dispatch key, but cast only what C++ takes for a CUDA tensor.
    """
    behaviour = behaviour or Behaviour()
    caster = Caster()
    kernels = {op: kernel(policy, op, caster) for policy, ops in lists(behaviour.torch).items() for op in ops}
    kernels["_cudnn_rnn"] = cudnn_rnn(caster)
    clear = torch.clear_autocast_cache

    def clear_both() -> None:
        clear()
        caster.clear()

    torch.clear_autocast_cache = clear_both
    try:
        with override(kernels, "AutocastCUDA"):
            yield caster
    finally:
        torch.clear_autocast_cache = clear
        caster.clear()


def registered(key: str) -> set[str]:
    """Aten operators with a kernel of their own at a dispatch key, as ``name`` or ``name.overload``."""
    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::"))
    return {n.removeprefix("aten::") for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(n, key)}
