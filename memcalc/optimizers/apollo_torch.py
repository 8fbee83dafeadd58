"""apollo-torch 1.0.3: Adam's moments of a randomly projected gradient, used only to scale the raw one.

The random matrix could be drawn again from its seed and is kept all the same. Rank, projection and scaling belong to
parameter groups, not to the constructor; ``target_modules`` are the words that choose the weights of linear layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memcalc.arrays import Count, where
from memcalc.optimizers._parts import longer, scalar, shorter, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, optimizer, variant
from memcalc.optimizers.galore_torch import PLAIN, chosen_first, projected, projector
from memcalc.optimizers.galore_torch import low_rank as svd_low_rank
from memcalc.optimizers.script import Op, Section, in_turn
from memcalc.records import replace
from memcalc.tensors import itemsize

OWN: dict[str, Any] = {
    "rank": 256,
    "proj": "random",
    "proj_type": "std",
    "scale_type": "channel",
    "target_modules": ("attn", "mlp"),
}


def _refuse(options: Options) -> Iterator[tuple[str, str]]:
    """What _initialize_projector and GradientProjector raise for."""
    if options.proj not in ("random", "svd"):
        yield "proj", "is neither random nor svd"
    if options.proj_type not in ("std", "reverse_std", "right", "left"):  # full is not implemented, or breaks under svd
        yield "proj_type", "is not a projection; use std, reverse_std, right or left"
    if options.scale_type not in ("channel", "tensor"):
        yield "scale_type", "is neither channel nor tensor"
    if options.scale_type == "channel" and options.proj_type == "reverse_std":
        yield "scale_type", "is channel, whose factors do not fit the gradient under reverse_std"


def _low_rank(p: Param, o: Options) -> Count:
    """Elements of the projected gradient. A random matrix has ``rank`` rows even where the tensor has fewer."""
    if o.proj == "svd":
        rows, columns = svd_low_rank(p, o)
        return rows * columns
    kept, _ = _sides(p, o)
    return kept * int(o.rank)


def _sides(p: Param, o: Options) -> tuple[Count, Count]:
    """The side that stays and the side projected away (apollo_torch/random_projector.py:88-129)."""
    m, n = p.shape
    if o.proj_type in ("right", "left"):
        return (m, n) if o.proj_type == "right" else (n, m)
    return (longer(p), shorter(p)) if o.proj_type == "std" else (shorter(p), longer(p))


LIMITED = "+norm:1g %n +eps:1g +ratio:1g -eps +small:1b -small -ratio +limited:ng =scaled:limited +kept:1g -kept"
"""The norm-growth limiter: the scaled gradient divided, and its norm, a new tensor in each step."""


def _script(o: Options, form: Implementation) -> list[Section]:
    """apollo.py:AdamW.step: one factor for each channel, or for the tensor, from the norms of both projected gradients."""

    def turn(p: Param) -> Iterator[Op]:
        if not projected(p, o):
            yield from in_turn(PLAIN).body(p)
            return
        # one factor for each channel of the side norms are taken along: columns of a wide matrix, rows of a tall one
        channels = where(p.shape[0] < p.shape[1], p.shape[1], p.shape[0]) if o.scale_type == "channel" else 1
        size = itemsize(p.grad_dtype)
        whole_norm = "%n" if o.scale_type == "tensor" else ""
        yield from in_turn(
            f"+grad:ng +denom:ng +update:ng +first:one {whole_norm} +second:one {whole_norm} +sum:one -second +factor:one"
            " -first -sum", one=lambda _: channels * size,
        ).body(replace(p, shape=(_low_rank(p, o),)))  # fmt: skip
        yield from in_turn(f"+scaled:ng {'' if o.disable_nl else LIMITED} -update -grad").body(p)

    return [Section(True, turn)]


@optimizer(
    "apollo-torch:APOLLOAdamW",
    cls="apollo_torch.APOLLOAdamW",
    summary="both moments at rank r for projected weights, and the random projection; Adam's two moments for the rest",
    source="apollo-torch 1.0.3 apollo_torch/apollo.py:AdamW.step, apollo_torch/random_projector.py:GradientProjector",
    options={**OWN, "disable_nl": False},
    own=frozenset(OWN),
    constructor=words("lr betas eps weight_decay correct_bias scale_front no_deprecation_warning"),
    script=_script,
    group=chosen_first,
    refuses=_refuse,
)
def apollo(p: Param, o: Options) -> Iterator[State]:
    """Moments of the projected gradient, its projection and, for the norm-growth limiter, the last norm."""
    if not projected(p, o):
        yield whole(p, "exp_avg", "momentum", p.grad_dtype)
        yield whole(p, "exp_avg_sq", "variance", p.grad_dtype)
        return
    yield State("exp_avg", "momentum", p.grad_dtype, _low_rank(p, o))
    yield State("exp_avg_sq", "variance", p.grad_dtype, _low_rank(p, o))
    if o.proj == "svd":
        yield from projector(p, o, p.grad_dtype)
    else:
        yield State("projector.ortho_matrix", "preconditioner", p.grad_dtype, o.rank * _sides(p, o)[1])
    if not o.disable_nl:
        yield scalar("scaled_grad", "scales", p.grad_dtype)


variant("apollo-torch:APOLLOAdamW+mini", rank=1, scale_type="tensor")
