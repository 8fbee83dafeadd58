"""The number a step minimises: what the model calls its loss, or a default that any output has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from memcalc.errors import NO_VALUE, InputError, did_you_mean
from memcalc.runtime.target import load_function

Loss = Callable[[Any], torch.Tensor]


def make_loss(name: str | None, app_dir: Path | None = None) -> tuple[str, Loss]:
    """(what it is called, the loss of an output).

    Args:
        name: ``mean``, ``sum``, ``mse``, ``cross_entropy``, ``py:package.module:function`` of the output; None for the model's
            own, or the mean where it has none.
        app_dir: the folder put on the import path for ``py:``.

    Raises:
        InputError: no such loss.
    """
    if name is None:
        return "the model's own, else mean", _own
    if name.startswith("py:"):
        return name, load_function(name, app_dir, path="--loss", named="takes the output and gives the loss")
    if name not in LOSSES:
        raise InputError("--loss", name, "is not a known loss", did_you_mean(name, [*LOSSES, "py:package.module:function"]))
    chosen = LOSSES[name]
    return name, lambda output: chosen(_tensor(output))


def _own(output: Any) -> torch.Tensor:
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return own if isinstance(own, torch.Tensor) else _tensor(output).float().mean()


def _tensor(output: Any) -> torch.Tensor:
    """The first floating-point tensor of an output that a gradient can flow from."""
    for found in _tensors(output):
        if found.is_floating_point() and found.requires_grad:
            return found
    raise InputError(
        "--loss", NO_VALUE, "finds no tensor in the module's output that needs a gradient", "give py:module:function"
    )


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for each in output.values():
            yield from _tensors(each)
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _tensors(each)


def _cross_entropy(scores: torch.Tensor) -> torch.Tensor:
    """Against class 0 everywhere; the last dimension holds the classes."""
    flat = scores.float().reshape(-1, scores.shape[-1])
    return functional.cross_entropy(flat, torch.zeros(flat.shape[0], dtype=torch.int64, device=flat.device))


LOSSES: dict[str, Loss] = {
    "mean": lambda output: output.float().mean(),
    "sum": lambda output: output.float().sum(),
    "mse": lambda output: output.float().square().mean(),
    "cross_entropy": _cross_entropy,
}
"""Losses of a plain tensor; each is computed in FP32."""
