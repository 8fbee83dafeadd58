"""Two gradients that meet at one node of autograd: added in place, as real tensors are, where nobody else holds the first.

Autograd's engine adds them in C++ and in place only if neither is a tensor subclass and no dispatch mode is on (pytorch
torch/csrc/autograd/input_buffer.cpp: accumulate, can_accumulate_inplace; ATen/TensorSubclassLikeUtils.h), so that a trace would
always see a third tensor. Here such an addition is told from all others, and the engine's other conditions are asked instead.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

ADD = torch.ops.aten.add.Tensor
ADD_IN_PLACE = torch.ops.aten.add_.Tensor
_RUN = _engine_run_backward.__code__
_BETWEEN = ("torch._compile", "torch._dynamo.eval_frame", "torch.utils._python_dispatch")
"""Modules whose functions torch wraps a mode's ``__torch_dispatch__`` in."""
Counts = tuple[int, int, int]
"""References to a tensor in C++, to its Python object, and to its storage."""


def is_in_place(args: Sequence[Any]) -> bool:
    """Whether an ``aten.add.Tensor`` that a mode has just been given is the engine's, and in place on real tensors.

    Args:
        args: as ``__torch_dispatch__`` was given them; nothing else in Python may hold its tensors.
    """
    node = torch._C._current_autograd_node()
    if node is None or torch.is_grad_enabled():
        return False
    first = args[0]
    return (
        isinstance(first, torch.Tensor)
        and first.layout is torch.strided
        and isinstance(args[1], torch.Tensor)
        and _called_by_engine(sys._getframe(2))
        and _has_run(node)
        and is_dense(first)
        and _counts(args, first) == alone()
    )


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill their memory without gaps or overlaps (pytorch c10/core/TensorImpl.h).

    >>> is_dense(torch.ones(2, 3).t()), is_dense(torch.ones(()).expand(3)), is_dense(torch.ones(2, 3)[:, :2])
    (True, False, False)
    """
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _called_by_engine(frame: Any) -> bool:
    """Whether C++ was entered where backward was called: no Python of a hook, a Function or a recomputation lies between."""
    while frame is not None and frame.f_globals.get("__name__") in _BETWEEN:
        frame = frame.f_back
    return frame is not None and frame.f_code is _RUN


def _has_run(node: Any) -> bool:
    """Whether a node's own formula is over, so that what is added are its results, not what they are made of.

    The engine calls a node, releases what it saved and passes its results on, all with that node as the current one (pytorch
    torch/csrc/autograd/engine.cpp: thread_main, evaluate_function). With ``retain_graph`` nothing is released, and the formulas
    that add two tensors themselves (recurrent cells and the like) cannot be told.
    """
    if isinstance(node, torch._C._FunctionBase) or torch._C._autograd._get_current_graph_task_keep_graph():
        return True  # a Function's formula is Python, which was asked for
    for name in _saved_by(node.__class__):
        try:
            saved = getattr(node, name)
        except RuntimeError:  # a list of tensors that has been released says so (index's, cat's)
            continue
        for each in saved if isinstance(saved, tuple) else (saved,):
            if getattr(each, "data", None) is not None:
                return False
    return True


@cache
def _saved_by(kind: Any) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def _counts(args: Sequence[Any], tensor: Any) -> Counts:
    return tensor._use_count(), sys.getrefcount(tensor), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


@cache
def alone() -> Counts:
    """The counts of a tensor that only the engine's buffer holds, as a mode sees them: its own references come on top.

    They are a matter of how a version of torch hands tensors to Python, so that they are read from one real addition.
    """
    probe = _Probe()
    with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad():
        leaf = torch.ones(1, requires_grad=True)
        shared = leaf * 2
        total = shared * 3 + shared * 5
        with probe:
            total.backward()  # type: ignore[no-untyped-call]
    (found,) = probe.found
    return found


class _Probe(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what the tracker would count, along the same way."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Counts] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One operator."""
        if func is ADD:
            self.found.append(self._asked(args))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _asked(args: Sequence[Any]) -> Counts:
        first = args[0]
        return _counts(args, first)
