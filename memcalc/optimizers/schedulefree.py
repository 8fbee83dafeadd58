"""schedulefree 1.4.1: the average is recomputed from the parameters and ``z``; only the Reference class keeps x and y."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memcalc.optimizers._parts import whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, no_temporaries, optimizer
from memcalc.optimizers.script import Section, in_turn, together

_LISTS: dict[str, Any] = {"options": {"foreach": True}, "implementations": ("foreach", "single")}


def _denominator(o: Options, form: Implementation) -> list[Section]:
    """The denominator of every tensor, or of one and of the tensor before it."""
    return [together("+denom")] if form == "foreach" else [in_turn("+denom")]


_ADAMW = words("lr betas eps weight_decay warmup_steps r weight_lr_power")


@optimizer(
    "schedulefree:AdamWScheduleFree",
    cls="schedulefree.AdamWScheduleFree",
    summary="z and a variance in the parameter's dtype: Adam's bytes without a step tensor",
    source="schedulefree 1.4.1 schedulefree/adamw_schedulefree.py:103-214 (AdamWScheduleFree.step)",
    constructor=_ADAMW,
    script=_denominator,
    **_LISTS,
)
@optimizer(
    "schedulefree:AdamWScheduleFreePaper",
    cls="schedulefree.AdamWScheduleFreePaper",
    summary="z and a variance in the parameter's dtype, bias correction as in the paper",
    source="schedulefree 1.4.1 schedulefree/adamw_schedulefree_paper.py:107-218 (AdamWScheduleFreePaper.step)",
    constructor=_ADAMW,
    script=_denominator,
    **_LISTS,
)
@optimizer(
    "schedulefree:RAdamScheduleFree",
    cls="schedulefree.RAdamScheduleFree",
    summary="z and a variance in the parameter's dtype",
    source="schedulefree 1.4.1 schedulefree/radam_schedulefree.py:104-230 (RAdamScheduleFree.step)",
    constructor=words("lr betas eps weight_decay r weight_lr_power silent_sgd_phase"),
    script=_denominator,  # once the rectification sets in (rho_t > 4, step 6 with the default betas)
    **_LISTS,
)
def adamw_schedule_free(p: Param, o: Options) -> Iterator[State]:
    """The fast iterate ``z``, a clone of the weights, and the variance."""
    yield whole(p, "z", "momentum")
    yield whole(p, "exp_avg_sq", "variance")


@optimizer(
    "schedulefree:SGDScheduleFree",
    cls="schedulefree.SGDScheduleFree",
    summary="z in the parameter's dtype",
    source="schedulefree 1.4.1 schedulefree/sgd_schedulefree.py:96-192 (SGDScheduleFree.step)",
    constructor=words("lr momentum weight_decay warmup_steps r weight_lr_power"),
    temporaries=no_temporaries,
    **_LISTS,
)
def sgd_schedule_free(p: Param, o: Options) -> Iterator[State]:
    """The fast iterate ``z``."""
    yield whole(p, "z", "momentum")


@optimizer(
    "schedulefree:AdamWScheduleFreeReference",
    cls="schedulefree.AdamWScheduleFreeReference",
    summary="x, y, z and a variance in the parameter's dtype: four buffers",
    source="schedulefree 1.4.1 schedulefree/adamw_schedulefree_reference.py:112-197 (AdamWScheduleFreeReference.step)",
    constructor=_ADAMW | words("decay_at_z foreach"),  # foreach is taken and ignored
    # the normalised gradient beside the denominator, whose name stays bound
    script=lambda o, form: [in_turn("+denom +normalised -normalised")],
)
def adamw_schedule_free_reference(p: Param, o: Options) -> Iterator[State]:
    """Every sequence of the paper kept apart."""
    yield whole(p, "z", "momentum")
    yield whole(p, "exp_avg_sq", "variance")
    yield whole(p, "x", "average")
    yield whole(p, "y", "average")
