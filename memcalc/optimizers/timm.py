"""timm 1.0.31: the optimizers of ``timm.optim``. Most keep what torch's of the same name keep, and count their steps elsewhere.

``foreach=None`` takes the step over lists on CUDA. Where an L2 cache of 2**22 elements and four streams of them exists
(half precision on an A100, any dtype on larger ones) timm cuts the lists into chunks of that size; the sums given here are
then an upper bound, and else exact (timm/optim/_helpers.py, _foreach_chunks). ``caution`` changes no state; the step it
adds masks to is a variant of its own, ``+caution``, and has not been measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from memcalc.optimizers._parts import Pairs, asked, live, scalar, whole, words
from memcalc.optimizers.base import (
    Implementation,
    Options,
    Param,
    State,
    StatesOf,
    TemporariesOf,
    Temporary,
    optimizer,
    variant,
)

SOURCE = "timm 1.0.31 timm/optim/"
LISTS: dict[str, Any] = {"foreach": None}
Extra = Mapping[str, Pairs]


def stepped(
    *, foreach: int = 0, single: Pairs, adds: Mapping[str, int] | None = None, when: Extra | None = None
) -> TemporariesOf:
    """Whole copies of tensors a step holds, and what switches that are on add to them.

    Args:
        foreach: copies of every tensor in the step over lists.
        single: (current, previous) copies for each moment of the step that takes tensors in turn.
        adds: for each switch, how many copies it adds to every tensor of a list.
        when: for each set of switches that are on (joined by a blank, in alphabetical order), the moments in turn.
    """

    def temporaries(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
        if implementation == "foreach":
            count = foreach + sum(more for switch, more in (adds or {}).items() if asked(o, switch))
            yield Temporary("update", p.nbytes, "sum", count=count)
            return
        switches = sorted({switch for joined in when or {} for switch in joined.split()})
        moments = (when or {}).get(" ".join(switch for switch in switches if asked(o, switch)), single)
        for moment, (current, previous) in enumerate(moments):
            yield from live(str(moment), p.nbytes, current, previous)

    return temporaries


def _refuse_caution(options: Options) -> Iterator[tuple[str, str]]:
    if asked(options, "caution"):
        yield "caution", "changes what the step needs; name the variant +caution"


def register(
    cls: str, file: str, summary: str, options: Mapping[str, Any], rest: str, temporaries: TemporariesOf | None, **more: Any
) -> Callable[[StatesOf], StatesOf]:
    """Register a class and, where it has a cautious form, that as a variant whose step nobody has measured."""
    common: dict[str, Any] = {"cls": f"timm.optim.{file.removesuffix('.py')}.{cls}", "source": f"{SOURCE}{file}:{cls}.step"}
    common |= {"summary": summary, "constructor": words(rest), **more}
    if LISTS.items() <= options.items():
        common["implementations"] = ("foreach", "single")

    def register_both(states: StatesOf) -> StatesOf:
        cautious = "caution" in options
        refuses: dict[str, Any] = {"refuses": _refuse_caution} if cautious else {}
        optimizer(f"timm:{cls}", options=options, temporaries=temporaries, **refuses, **common)(states)
        if cautious:
            preset = {"caution": True}
            name = f"timm:{cls}+caution"
            optimizer(name, options={**options, **preset}, temporaries=None, preset=preset, **common)(states)
        return states

    return register_both


CAUTION = {"caution": False}
_ADAMW = "lr betas eps weight_decay corrected_weight_decay"


@register(
    "Lamb",
    "lamb.py",
    "momentum and variance in the parameter's dtype; one step counter for each group",
    {**LISTS, **CAUTION, "max_grad_norm": 1.0},
    f"{_ADAMW} bias_correction grad_averaging trust_clip always_adapt decoupled_decay",
    # clipping by the global norm divides into new gradients
    stepped(foreach=2, single=((2, 2),), adds={"max_grad_norm": 1}, when={"max_grad_norm": ((3, 2),)}),
    nullable=frozenset({"max_grad_norm"}),
    shared=lambda params, o: iter((scalar("step", "step", "float32", "host"),)),
)
def lamb(p: Param, o: Options) -> Iterator[State]:
    """Two moments; the step is the group's own host scalar."""
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")


@register(
    "AdamWLegacy",
    "adamw.py",
    "momentum and variance in the parameter's dtype",
    {**LISTS, **CAUTION, "amsgrad": False, "maximize": False, "capturable": False, "clipping_threshold": None},
    _ADAMW,
    stepped(foreach=1, single=((2, 1),), adds={"maximize": 1, "clipping_threshold": 1}, when={"maximize": ((3, 1),)}),
)
def adamw_legacy(p: Param, o: Options) -> Iterator[State]:
    """Torch's AdamW as it was, with a step scalar for each tensor."""
    yield scalar("step", "step", "float32", "device" if o.capturable else "host")
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")
    if o.amsgrad:
        yield whole(p, "max_exp_avg_sq", "variance")


@register(
    "NAdamW",
    "nadamw.py",
    "momentum and variance in the parameter's dtype, Nesterov's look-ahead in the step",
    {**LISTS, **CAUTION, "maximize": False, "capturable": False, "clipping_threshold": None},
    _ADAMW,
    stepped(foreach=3, single=((3, 1),), adds={"maximize": 1, "clipping_threshold": 1}, when={"maximize": ((4, 1),)}),
)
def nadamw(p: Param, o: Options) -> Iterator[State]:
    """Two moments and a step scalar."""
    yield scalar("step", "step", "float32", "device" if o.capturable else "host")
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")


def _adopt_steps(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    # the clipped quotient and the denominator, and a copy of the gradient where it is negated or decayed
    copied = o.maximize or (asked(o, "weight_decay") and not o.decoupled)
    if implementation == "foreach":
        yield Temporary("update", p.nbytes, "sum", count=2 + int(copied))
    else:
        yield from live("update", p.nbytes, 2 + int(copied), 2)
        if o.maximize:
            yield from live("copy", p.nbytes, 1, 3)  # made while everything of the previous tensor is still bound


@register(
    "Adopt",
    "adopt.py",
    "momentum and variance in the gradient's dtype",
    {**LISTS, **CAUTION, "maximize": False, "capturable": False, "weight_decay": 0.0, "decoupled": False},
    "lr betas eps clip_exp corrected_weight_decay differentiable",
    _adopt_steps,
)
def adopt(p: Param, o: Options) -> Iterator[State]:
    """Two moments and a step scalar."""
    yield scalar("step", "step", "float32", "device" if o.capturable else "host")
    yield whole(p, "exp_avg", "momentum", p.grad_dtype)
    yield whole(p, "exp_avg_sq", "variance", p.grad_dtype)


@register(
    "LaProp",
    "laprop.py",
    "momentum and variance in the parameter's dtype, two host scalars",
    {**LISTS, **CAUTION},
    _ADAMW,
    stepped(foreach=2, single=((2, 1), (1, 2))),
)
def laprop(p: Param, o: Options) -> Iterator[State]:
    """Two moments, the step and a running learning rate, which stay on the host."""
    yield scalar("step", "step", "float32", "host")
    yield scalar("exp_avg_lr_2", "scales", "float32", "host")
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")


@register(
    "Lion",
    "lion.py",
    "one momentum in the parameter's dtype",
    {**LISTS, **CAUTION, "maximize": False},
    "lr betas weight_decay corrected_weight_decay",
    stepped(foreach=1, single=((1, 1),), adds={"maximize": 1}, when={"maximize": ((2, 1), (1, 2))}),
)
def lion(p: Param, o: Options) -> Iterator[State]:
    """The momentum alone."""
    yield whole(p, "exp_avg", "momentum")


@register(
    "Adan",
    "adan.py",
    "momentum, variance, the difference's momentum and the negated previous gradient, in the parameter's dtype",
    {**LISTS, **CAUTION},
    "lr betas eps weight_decay no_prox",
    stepped(foreach=1, single=((2, 1),)),
)
def adan(p: Param, o: Options) -> Iterator[State]:
    """Four buffers, twice Adam's."""
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")
    yield whole(p, "exp_avg_diff", "momentum")
    yield whole(p, "neg_pre_grad", "previous_gradient", p.grad_dtype)


def _lars_steps(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    # the adapted gradient, and the one looked ahead to
    adapted = int(asked(o, "weight_decay") or o.always_adapt) + int(o.nesterov)
    yield Temporary("update", p.nbytes, "sum" if implementation == "foreach" else "max", count=adapted)


@register(
    "Lars",
    "lars.py",
    "SGD's momentum in the gradient's dtype; nothing without momentum",
    {**LISTS, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False, "always_adapt": False},
    "lr dampening trust_coeff eps trust_clip",
    _lars_steps,
)
def lars(p: Param, o: Options) -> Iterator[State]:
    """A clone of the first gradient, once momentum is asked for."""
    if o.momentum != 0:
        yield whole(p, "momentum_buffer", "momentum", p.grad_dtype)


variant("timm:Lars+momentum", momentum=0.9)

import memcalc.optimizers._timm_factored  # noqa: E402
import memcalc.optimizers._timm_matrix  # noqa: E402  registers the rest, with this file's helpers
import memcalc.optimizers._timm_more  # noqa: E402, F401
