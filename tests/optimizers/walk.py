"""The oracle's eyes: every storage a live optimizer holds, told apart by parameter, by hand of torch alone.

``held`` finds what the library keeps; ``promised`` says what the registry claims; both are multisets of
``(dtype, storage bytes)`` so that two lists are equal only when no byte differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from memcalc.optimizers.base import Optimizer, Param
from memcalc.runtime.walk import Held, Kept, held, plain_parts

__all__ = ["Held", "Kept", "held", "plain_parts"]


def parameters(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32, *, device: str = "cpu"
) -> list[torch.nn.Parameter]:
    """Real, non-zero parameters of these shapes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in shapes]


def take_steps(optimizer: Any, params: Sequence[torch.Tensor], steps: int = 2) -> None:
    """Real steps, each with fresh gradients in the parameter's own dtype."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step + 1)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)
        optimizer.step()


def described(
    params: Sequence[torch.Tensor], names: Sequence[str] | None = None, kinds: Sequence[Any] | None = None
) -> list[Param]:
    """The same parameters as the registry is told of them."""
    return [
        Param(
            shape=tuple(param.shape),
            dtype=str(param.dtype).removeprefix("torch."),
            grad_dtype=str((param if param.grad is None else param.grad).dtype).removeprefix("torch."),
            name=names[index] if names else f"weight{index}",
            kind=kinds[index] if kinds else "linear",
        )
        for index, param in enumerate(params)
    ]


def promised(entry: Optimizer, params: Sequence[Param], arguments: Mapping[str, Any]) -> tuple[list[Counter], Counter]:
    """What the registry claims: a multiset of (dtype, bytes) for each parameter, and the shared one; nothing empty."""
    options = entry.resolve(arguments)
    return [_multiset(entry.states(param, options)) for param in params], _multiset(
        entry.shared(params, options) if entry.shared else ()
    )


def _multiset(states: Any) -> Counter:
    counted: Counter = Counter()
    for state in states:
        counted[state.dtype, int(state.nbytes)] += int(state.count)
    return Counter({key: count for key, count in counted.items() if key[1] and count})


def multiset(kept: Sequence[Kept]) -> Counter:
    """Storages as a multiset of (dtype, bytes), the device left out."""
    return Counter((one.dtype, one.nbytes) for one in kept)


def assert_held_as_promised(
    optimizer: Any,
    params: Sequence[torch.Tensor],
    entry: Optimizer,
    arguments: Mapping[str, Any] | None = None,
    **told: Any,
) -> None:
    """Zero bytes of difference, tensor by tensor, for each parameter and for the shared tables."""
    found = held(optimizer, params)
    expected, shared = promised(entry, described(params, **told), arguments or {})
    for param, kept, claim in zip(params, found.per_parameter, expected, strict=True):
        assert multiset(kept) == claim, f"{entry.name} on {tuple(param.shape)} {param.dtype}"
    assert multiset(found.shared) == shared, f"{entry.name}: shared tables"
