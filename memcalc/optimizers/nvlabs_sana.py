"""The CAME that Sana trains with (github.com/NVlabs/Sana, commit 3e33661): an 8-bit momentum, everything else in float32.

Only matrices and 1x1 convolutions of more than ``min_8bit_size`` elements are quantised, by ``split(block_size)`` along their
first axis: a block is ``block_size`` rows, not elements, with a 0-dim scale and minimum of its own. ``step`` is a number.
"""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Condition, as_count, both, ceil_div, not_, product
from memcalc.optimizers._parts import scalar, upcast, words
from memcalc.optimizers.base import Options, Param, State, optimizer


def factored(p: Param) -> Condition:
    """Whether it is a matrix or a 1x1 convolution (optimizer.py, CAME8BitWrapper._get_options)."""
    if p.ndim == 4:
        return both(p.shape[2] == 1, p.shape[3] == 1)
    return p.ndim == 2


def quantised(p: Param, o: Options) -> Condition:
    """Whether the momentum is kept in 8 bit; a single element is handed back as it came (_should_use_8bit, _quantize_state)."""
    return both(factored(p), both(p.numel > o.min_8bit_size, p.numel > 1))


def blocks(p: Param, o: Options) -> Iterator[State]:
    """The momentum in blocks of rows: codes, the last block's of its own size, and a scale and a minimum for each block."""
    there = as_count(quantised(p, o))
    rows, row = p.shape[0], product(p.shape[1:])
    whole_blocks, rest = rows // o.block_size, rows % o.block_size
    yield State("exp_avg.data", "momentum", "uint8", o.block_size * row, count=there * whole_blocks)
    yield State("exp_avg.data", "momentum", "uint8", rest * row, count=there * as_count(rest > 0))
    for key in ("scale", "min"):
        yield State(f"exp_avg.{key}", "scales", "float32", 1, count=there * ceil_div(rows, o.block_size))


@optimizer(
    "nvlabs-sana:CAME8BitWrapper",
    cls="diffusion.utils.optimizer.CAME8BitWrapper",
    summary="an 8-bit momentum and fp32 row and column factors for large matrices and 1x1 convolutions; two fp32 buffers else",
    source="NVlabs/Sana 3e33661 diffusion/utils/optimizer.py:CAME8BitWrapper.step, _quantize_state, _should_use_8bit",
    options={"block_size": 2048, "min_8bit_size": 16384},
    constructor=words("lr eps clip_threshold betas weight_decay"),
    temporaries=None,
)
def came_8bit(p: Param, o: Options) -> Iterator[State]:
    """Momentum, variance and residual of ``grad.float()``, and the weights' RMS in the weights' dtype.

    A convolution whose kernel is not 1x1, a vector and a stack of matrices keep a whole variance and no residual.
    """
    dtype = upcast(p.grad_dtype)
    if p.ndim in (2, 4):
        yield from blocks(p, o)
    yield State("exp_avg", "momentum", dtype, p.numel, count=as_count(not_(quantised(p, o))))
    yield State("exp_avg_sq", "variance", dtype, p.numel, count=as_count(not_(factored(p))))
    if p.ndim in (2, 4):
        for moment, part in (("exp_avg_sq", "variance"), ("exp_avg_res", "residual")):
            yield State(f"{moment}_row", part, dtype, p.shape[0], count=as_count(factored(p)))
            yield State(f"{moment}_col", part, dtype, p.shape[1], count=as_count(factored(p)))
    yield scalar("RMS", "scales", p.dtype)
