"""SOAP by its authors (github.com/nikhilvyas/SOAP, commit a1e5535, ``soap.py``), which no PyPI package carries.

Adam's moments, and for every axis no longer than ``max_precond_dim`` the gradient's second moment along it (``GG``) with its
eigenbasis (``Q``), square in that axis. ``step`` is a Python number. The first step only makes the preconditioner.
"""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Condition, Count, as_count, both, not_, where
from memcalc.optimizers._parts import whole, words
from memcalc.optimizers.base import Options, Param, State, optimizer

FORMATS = ("channels_first", "channels_last")
Axis = tuple[Count, Condition]
"""An axis the preconditioner sees: its length, and whether it is there."""


def refuse(options: Options) -> Iterator[tuple[str, str]]:
    """The one word the library asserts (soap.py:83, merge_dims)."""
    if options.data_format not in FORMATS:
        yield "data_format", "is not a data format; use channels_first or channels_last"


def merged(shape: tuple[Count, ...], limit: int) -> Iterator[Axis]:
    """Neighbouring axes joined while their product stays within the limit (soap.py:89-103, merge_dims).

    An axis that would exceed it closes the one before; one that exceeds it right after another was closed stands alone.

    >>> [length for length, there in merged((32, 3, 64, 64), 8192) if there]
    [6144, 64]
    """
    current: Count = 1
    none_yet: Condition = True
    for length in shape:
        over = current * length > limit
        waiting = current > 1
        yield where(waiting, current, length), over
        current = where(over, where(waiting, length, 1), current * length)
        none_yet = both(none_yet, not_(over))
    yield current, as_count(current > 1) + as_count(none_yet) > 0


def axes(p: Param, o: Options) -> Iterator[Axis]:
    """The axes that get a factor if they are short enough: none of a vector's unless asked (soap.py:220-234)."""
    if p.ndim == 1 and not o.precondition_1d:
        return
    if p.ndim == 1 or not o.merge_dims:
        yield from ((length, True) for length in p.shape)
        return
    # the channels of a channels_last kernel are moved forward before neighbours are joined
    order = (0, 3, 1, 2) if p.ndim == 4 and o.data_format == "channels_last" else range(p.ndim)
    yield from merged(tuple(p.shape[axis] for axis in order), o.max_precond_dim)


@optimizer(
    "nikhilvyas-soap:SOAP",
    cls="soap.SOAP",
    summary="Adam's two moments, and a factor with its eigenbasis for each axis of up to 10000",
    source="nikhilvyas/SOAP a1e5535 soap.py:127-153 (SOAP.step), 214-238 (init_preconditioner), 337-370",
    options={"max_precond_dim": 10000, "merge_dims": False, "precondition_1d": False, "data_format": "channels_first"},
    constructor=words("lr betas shampoo_beta eps weight_decay precondition_frequency normalize_grads correct_bias"),
    temporaries=None,
    refuses=refuse,
    needs="a float32 gradient for what it preconditions: GG is float32 whatever the gradient, and lerp_ takes one dtype",
    accepts=lambda p: p.grad_dtype == "float32" or p.ndim < 2,
)
def soap(p: Param, o: Options) -> Iterator[State]:
    """Moments in the gradient's dtype; each factor is made by ``torch.zeros`` in torch's default dtype."""
    yield whole(p, "exp_avg", "momentum", p.grad_dtype)
    yield whole(p, "exp_avg_sq", "variance", p.grad_dtype)
    for length, there in axes(p, o):
        kept = as_count(both(there, length <= o.max_precond_dim))
        yield State("GG", "preconditioner", "float32", length * length, count=kept)
        yield State("Q", "preconditioner", "float32", length * length, count=kept)
