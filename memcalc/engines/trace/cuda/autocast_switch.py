"""``torch.autocast("cuda", …)`` on a machine without CUDA: not refused, and felt by tensors with CPU dispatch keys."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.cuda.amp.common

from memcalc.engines.trace.cuda.behaviour import Behaviour


class Switch:
    """While entered, CUDA's autocast state also switches the ``AutocastCPU`` dispatch key on and off.

    CUDA's own state stays where PyTorch keeps it, so ``torch.is_autocast_enabled("cuda")``, ``get_autocast_dtype("cuda")``
    and nesting are its own. CPU autocast asked for by the program is remembered and reported, but casts nothing: the tensors
    traced are CUDA's.
    """

    def __init__(self, clear_cache: Callable[[], None], behaviour: Behaviour) -> None:
        self._clear = clear_cache
        self._behaviour = behaviour
        self._cpu = threading.local()
        self._saved: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Switch:
        self._before = {device: torch.is_autocast_enabled(device) for device in ("cuda", "cpu")}
        self._enable, self._is_enabled, self._clear_real = (
            torch.set_autocast_enabled,
            torch.is_autocast_enabled,
            torch.clear_autocast_cache,
        )
        # torch/amp/autocast_mode.py:autocast.__init__ and grad_scaler.py:GradScaler.__init__ ask this, and disable themselves
        self._patch(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        self._patch(torch.cuda, "is_bf16_supported", self._is_bf16_supported)
        self._patch(torch, "set_autocast_enabled", self._set_enabled)
        self._patch(torch, "set_autocast_cpu_enabled", lambda enabled: self._set_enabled("cpu", enabled))
        self._patch(torch, "is_autocast_enabled", self._asked)
        self._patch(torch, "is_autocast_cpu_enabled", lambda: self._asked("cpu"))
        self._patch(torch, "clear_autocast_cache", self._clear_both)
        self._cpu.enabled = self._before["cpu"]
        self._enable("cpu", self._before["cuda"])
        return self

    def __exit__(self, *_: object) -> None:
        while self._saved:
            owner, name, value = self._saved.pop()
            setattr(owner, name, value)
        for device, enabled in self._before.items():
            torch.set_autocast_enabled(device, enabled)
        self._clear()

    def _patch(self, owner: Any, name: str, value: Any) -> None:
        self._saved.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def _is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return including_emulation or self._behaviour.major >= 8  # torch/cuda/__init__.py:is_bf16_supported

    def _set_enabled(self, *args: Any) -> None:
        device, enabled = args if len(args) == 2 else ("cuda", *args)  # the form with one argument means CUDA
        if device == "cpu":
            self._cpu.enabled = enabled
            return
        self._enable(device, enabled)
        if device == "cuda":
            self._enable("cpu", enabled)

    def _asked(self, device: str = "cuda") -> bool:
        return getattr(self._cpu, "enabled", False) if device == "cpu" else bool(self._is_enabled(device))

    def _clear_both(self) -> None:
        self._clear_real()
        self._clear()
