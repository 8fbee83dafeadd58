"""sophia-opt 0.2.2, the PyPI package of Liuhong99/Sophia's ``sophia.py`` (commit a7e1572 adds a closure argument)."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.optimizers._parts import asked, scalar, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, optimizer
from memcalc.optimizers.script import Section, in_turn


def _script(o: Options, form: Implementation) -> list[Section]:
    """_single_tensor_sophiag: |m| / (rho * bs * h + 1e-15), clamped; the last tensor's ratio and its -grad stay bound."""
    negated = "+grad" if asked(o, "maximize") else ""
    ratio = "+magnitude +scaled +sum -scaled +quotient -magnitude -sum +ratio -quotient"
    return [in_turn(f"{negated} {ratio} +sign -sign")]


@optimizer(
    "sophia-opt:SophiaG",
    cls="sophia_opt.SophiaG",
    summary="momentum and a Hessian diagonal in the parameter's dtype: Adam's bytes",
    source="sophia-opt 0.2.2 sophia_opt/__init__.py:SophiaG.step, _single_tensor_sophiag; repository Liuhong99/Sophia a7e1572",
    options={"capturable": False, "maximize": False},
    constructor=words("lr betas rho weight_decay"),
    script=_script,
)
def sophia_g(p: Param, o: Options) -> Iterator[State]:
    """The Hessian takes the variance's place; ``update_hessian`` needs a backward pass of its own, no part of the step."""
    yield scalar("step", "step", "float32", "device" if o.capturable else "host")
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "hessian", "variance")
