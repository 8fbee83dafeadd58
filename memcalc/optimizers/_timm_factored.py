"""timm 1.0.31, continued: two Adafactors, which factor by the sizes of the sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memcalc.arrays import Condition, Count, as_count, both, maximum, minimum, not_, where
from memcalc.optimizers._parts import live, scalar, upcast, whole
from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary
from memcalc.optimizers.timm import CAUTION, register
from memcalc.tensors import itemsize


def two_largest(shape: Sequence[Count]) -> tuple[Count, Count]:
    """The largest dimension and the one after it, one at least.

    >>> two_largest((3, 40, 7, 20))
    (40, 20)
    """
    first: Count = 1
    second: Count = 1
    for side in shape:
        second = maximum(second, minimum(first, side))
        first = maximum(first, side)
    return first, second


def _big_vision_factors(p: Param, o: Options) -> tuple[Condition, Count, Count]:
    """Whether the variance is factored, and the elements of its two factors (timm/optim/adafactor_bv.py:27-46)."""
    if p.ndim < 2:
        return False, 0, 0
    first, second = two_largest(p.shape)
    threshold: Count = o.min_dim_size_to_factor
    return both(second >= threshold, p.numel > 0), p.numel // first, p.numel // second


def _big_vision_steps(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    does, row, column = _big_vision_factors(p, o)
    present, size = as_count(does), itemsize(p.dtype)
    yield from live("update", p.nbytes, 3, 1)
    # the factors of the reciprocal root, and the means the rows are divided by, one for each place of the other dimensions
    first, second = two_largest(p.shape)
    for elements in (row, column, p.numel // (first * second)):
        yield Temporary("factor", elements * size, "max", count=present, moment="update")


@register(
    "AdafactorBigVision",
    "adafactor_bv.py",
    "a bfloat16 momentum, and a variance factored over the two largest dimensions where the second is 16 or more",
    {**CAUTION, "min_dim_size_to_factor": 16, "momentum": 0.9, "momentum_dtype": "bfloat16"},
    "lr decay_rate decay_offset beta2_cap eps weight_decay clipping_threshold unscaled_wd corrected_weight_decay",
    _big_vision_steps,
    nullable=frozenset({"momentum"}),
)
def adafactor_big_vision(p: Param, o: Options) -> Iterator[State]:
    """The factors keep every dimension but one; a tensor that is not factored keeps its whole variance."""
    yield scalar("step", "step", "float32", "host")
    does, row, column = _big_vision_factors(p, o)
    yield State("exp_avg_sq_r", "variance", p.grad_dtype, row, count=as_count(does))
    yield State("exp_avg_sq_c", "variance", p.grad_dtype, column, count=as_count(does))
    yield State("exp_avg_sq", "variance", p.grad_dtype, p.numel, count=as_count(not_(does)))
    if o.momentum is not None:
        yield whole(p, "exp_avg", "momentum", o.momentum_dtype)


def _adafactor_factors(p: Param, o: Options) -> tuple[Condition, Count, Count]:
    """In and out channels where both exceed the threshold, else the last two (timm/optim/adafactor.py, _get_options)."""
    if p.ndim < 2:
        return False, 0, 0
    least: Count = o.min_dim_size_to_factor
    channels = both(p.shape[0] > least, p.shape[1] > least) if p.ndim > 2 else False
    last = both(p.shape[-2] > least, p.shape[-1] > least)
    column = where(channels, p.shape[0], p.shape[-2])
    row = where(channels, p.shape[1], p.shape[-1])
    does = channels | last
    return does, p.numel // maximum(row, 1), p.numel // maximum(column, 1)


def _adafactor_steps(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    size = itemsize(upcast(p.grad_dtype))
    does, row, column = _adafactor_factors(p, o)
    copies = 2 + int(upcast(p.grad_dtype) != p.grad_dtype) + int(upcast(p.dtype) != p.dtype)
    yield from live("square", p.numel * size, copies, 1 if o.betas is None else 0)
    yield from live("factors", p.numel * size, copies)
    for elements in (row, column):
        yield Temporary("factor", elements * size, "max", count=as_count(does), moment="factors")


def _relative_rate(params: Sequence[Param], o: Options) -> Iterator[State]:
    """Without a rate of its own, the group's becomes the last tensor's RMS, unless that tensor is all but zero."""
    if o.lr is None and o.scale_parameter and params:
        yield scalar("lr", "scales", upcast(params[-1].dtype))


@register(
    "Adafactor",
    "adafactor.py",
    "a float32 variance, factored where two sides exceed 16; betas adds a momentum",
    {**CAUTION, "min_dim_size_to_factor": 16, "betas": None, "lr": None, "scale_parameter": True},
    "eps eps_scale clip_threshold decay_rate weight_decay warmup_init",
    _adafactor_steps,
    shared=_relative_rate,
)
def adafactor(p: Param, o: Options) -> Iterator[State]:
    """Row and column means over the channels of a convolution, not over its kernel."""
    dtype = upcast(p.grad_dtype)
    if o.betas is not None:
        yield whole(p, "exp_avg", "momentum", dtype)
    does, row, column = _adafactor_factors(p, o)
    yield State("exp_avg_sq_row", "variance", dtype, row, count=as_count(does))
    yield State("exp_avg_sq_col", "variance", dtype, column, count=as_count(does))
    yield State("exp_avg_sq", "variance", dtype, p.numel, count=as_count(not_(does)))
    yield scalar("RMS", "scales", upcast(p.dtype))
