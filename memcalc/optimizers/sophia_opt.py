"""sophia-opt 0.2.2, the PyPI package of Liuhong99/Sophia's ``sophia.py`` (commit a7e1572 adds a closure argument)."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.optimizers._parts import asked, live, scalar, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary, optimizer


def _temporaries(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    # abs, rho*bs*hess and its sum with 1e-15 (maximize: and -grad), beside the previous ratio: _single_tensor_sophiag
    yield from live("ratio", p.nbytes, 4 if asked(o, "maximize") else 3, 1)


@optimizer(
    "sophia-opt:SophiaG",
    cls="sophia_opt.SophiaG",
    summary="momentum and a Hessian diagonal in the parameter's dtype: Adam's bytes",
    source="sophia-opt 0.2.2 sophia_opt/__init__.py:SophiaG.step, _single_tensor_sophiag; repository Liuhong99/Sophia a7e1572",
    options={"capturable": False, "maximize": False},
    constructor=words("lr betas rho weight_decay"),
    temporaries=_temporaries,
)
def sophia_g(p: Param, o: Options) -> Iterator[State]:
    """The Hessian takes the variance's place; ``update_hessian`` needs a backward pass of its own, no part of the step."""
    yield scalar("step", "step", "float32", "device" if o.capturable else "host")
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "hessian", "variance")
