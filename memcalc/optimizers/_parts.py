"""The few shapes that third-party optimizers' states take: whole copies, scalars, rows and columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from memcalc.arrays import Count, maximum, minimum, product
from memcalc.optimizers.base import Implementation, Options, Param, Place, State, TemporariesOf, Temporary
from memcalc.tensors import itemsize


def words(text: str) -> frozenset[str]:
    """The names of the options that change no byte, written as one string.

    >>> sorted(words("lr eps"))
    ['eps', 'lr']
    """
    return frozenset(text.split())


def whole(param: Param, name: str, part: str, dtype: str | None = None) -> State:
    """A state of the parameter's own shape, in its dtype unless told."""
    return State(name, part, dtype or param.dtype, param.numel)


def scalar(name: str, part: str, dtype: str, place: Place = "device") -> State:
    """One element: a 0-dim tensor or one of a single entry."""
    return State(name, part, dtype, 1, place=place)


def rows(shape: Sequence[Count]) -> Count:
    """Elements left when the last dimension is averaged away.

    >>> rows((8, 6)), rows((8, 3, 2, 2))
    (8, 48)
    """
    return product(shape[:-1])


def columns(shape: Sequence[Count]) -> Count:
    """Elements left when the last dimension but one is averaged away.

    >>> columns((8, 6)), columns((8, 3, 2, 2))
    (6, 48)
    """
    return product(shape[:-2]) * shape[-1]


def factored(param: Param, dtype: str, stem: str = "exp_avg_sq", part: str = "variance") -> Iterator[State]:
    """A second moment kept as row and column means over the last two dimensions; whole below two dimensions."""
    if param.ndim >= 2:
        yield State(f"{stem}_row", part, dtype, rows(param.shape))
        yield State(f"{stem}_col", part, dtype, columns(param.shape))
    else:
        yield State(stem, part, dtype, param.numel)


def factor_sides(param: Param) -> Count:
    """Elements of the row and column factors whose product replaces a factored moment; none below two dimensions."""
    return rows(param.shape) + columns(param.shape) if param.ndim >= 2 else 0


def upcast(dtype: str) -> str:
    """What a ``grad.float()`` on half-precision gradients leaves: float32 for the half types, itself otherwise."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def hidden_matrix(param: Param) -> bool:
    """Whether recipes hand a tensor to a matrix optimizer: a matrix or more, neither embedding nor output head nor norm."""
    named = param.name.lower()
    return (
        param.ndim >= 2
        and param.kind not in ("embedding", "norm", "batch_norm")
        and not ("embed" in named or "lm_head" in named)
    )


def shorter(param: Param) -> Count:
    """The smaller of a matrix's two sides."""
    return minimum(param.shape[0], param.shape[1])


def longer(param: Param) -> Count:
    """The larger of a matrix's two sides."""
    return maximum(param.shape[0], param.shape[1])


Pairs = tuple[tuple[int, int], ...]
"""For each moment of a step that takes tensors in turn: copies of the current tensor, and of the one before it."""


def live(moment: str, nbytes: Count, current: int = 1, previous: int = 0) -> Iterator[Temporary]:
    """One moment's buffers of the current tensor, and those a Python name still holds of the one before it."""
    yield Temporary("update", nbytes, "max", count=current, moment=moment)
    yield Temporary("update", nbytes, "previous", count=previous, moment=moment)


def copies(*, foreach: int = 0, single: Pairs, dtype: str | None = None) -> TemporariesOf:
    """A step whose needs are whole copies of tensors, in the parameter's dtype unless told.

    Args:
        foreach: copies of every tensor at once, in the step over lists.
        single: in the step that takes tensors in turn, (copies of the current, copies of the previous) for each moment
            that can be the worst, depending on how the two compare in size.
        dtype: the copies' dtype where it is not the parameter's.
    """

    def temporaries(param: Param, options: Options, implementation: Implementation) -> Iterator[Temporary]:
        nbytes = param.numel * itemsize(dtype or param.dtype)
        if implementation == "foreach":
            yield Temporary("update", nbytes, "sum", count=foreach)
        else:
            for moment, (current, previous) in enumerate(single):
                yield from live(str(moment), nbytes, current, previous)

    return temporaries


def asked(options: Options, name: str) -> bool:
    """Whether a switch that defaults to None, False or 0 is on."""
    value: Any = options.get(name)
    return bool(value)
