"""What a stretch of code calls and keeps."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memcalc.engines.trace.bridge import cuda_is_here
from memcalc.engines.trace.cuda.modes import cuda_composites
from memcalc.engines.trace.machine import machine_of
from memcalc.job import read_job
from memcalc.kernels.behaviour import Behaviour


class Seen(TorchDispatchMode):
    """Counts the operators that reach dispatch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.results: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        self.calls[name] += 1
        self.results.append((name, out))
        return out

    def count(self, name: str) -> int:
        """Calls of that operator, whatever the overload."""
        return self.calls[name]


@contextlib.contextmanager
def saved_by() -> Iterator[list[torch.Tensor]]:
    """The tensors autograd keeps, in order."""
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def on_cpu_too(behaviour: Behaviour | None = None) -> contextlib.AbstractContextManager[None]:
    """CUDA's composites over the CPU's dispatch key, so that real values can be looked at."""
    return cuda_composites(behaviour, key="AutogradCPU")


@contextlib.contextmanager
def on_gpu(name: str = "h100-80gb") -> Iterator[None]:
    """Everything is made on a GPU that is not there."""
    with cuda_is_here(machine_of(read_job({"model": "gpt2", "gpu": name}))), torch.device("cuda:0"):
        yield
