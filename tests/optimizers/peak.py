"""How many bytes a step allocates at its worst moment, seen two independent ways on the CPU.

``dispatched_peak`` follows every tensor the step's operators return and the moment its storage dies: the operators are
those CUDA runs, so the number carries over. ``profiled_peak`` adds up the CPU allocator's own events, which also see what
an operator allocates inside itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SCALARS = 64
"""Storages at or below this many bytes are step counters and 0-dim constants: counted apart, never as a temporary."""


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.scalars = 0
        self.sizes: dict[Any, int] = {}

    def know(self, storage: torch.UntypedStorage) -> None:
        self.sizes[weakref.ref(storage, self.died)] = 0

    def died(self, reference: Any) -> None:
        self.live -= self.sizes.pop(reference)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self.sizes.setdefault(weakref.ref(tensor.untyped_storage(), self.died), 0)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.met(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out

    def met(self, storage: torch.UntypedStorage) -> None:
        reference = weakref.ref(storage, self.died)
        if reference in self.sizes:
            return
        small = storage.nbytes() <= SCALARS
        self.scalars += small
        self.sizes[reference] = 0 if small else storage.nbytes()
        self.live += self.sizes[reference]


def dispatched_peak(step: Callable[[], Any]) -> int:
    """The most bytes of new tensors alive at once while ``step`` runs, 0-dim constants apart."""
    with _Watch() as watch:
        step()
    return watch.peak


def profiled_peak(step: Callable[[], Any]) -> int:
    """The most bytes the CPU allocator handed out at once while ``step`` runs, small allocations included."""
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        step()
    live = peak = 0
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
