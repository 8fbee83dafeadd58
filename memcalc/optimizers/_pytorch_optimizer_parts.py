"""pytorch-optimizer 4.1.0: how its classes are registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from memcalc.optimizers._parts import words
from memcalc.optimizers._pytorch_optimizer_scripts import scripts_of
from memcalc.optimizers._pytorch_optimizer_steps import steps_of
from memcalc.optimizers.base import Options, Param, State, StatesOf, optimizer


def register(
    cls: str, file: str, summary: str, constructor: str, options: Mapping[str, Any] | None = None, **fields: Any
) -> Callable[[StatesOf], StatesOf]:
    """Register the decorated function as one class of the library.

    ``foreach`` among the constructor's words is an option that defaults to None, which batches whatever it can on a CPU too
    (pytorch_optimizer/base/optimizer.py:467-506, can_use_foreach); where a class defaults to False it stands in ``options``.
    What its step makes is in ``_pytorch_optimizer_scripts.py``, else what it holds for a moment in
    ``_pytorch_optimizer_steps.py``, where somebody has measured it.
    """
    names, known = words(constructor), dict(options or {})
    if "foreach" in names:
        known["foreach"] = None
    forms = ("single", "foreach") if known.get("foreach", False) is False else ("foreach", "single")
    return optimizer(
        f"pytorch-optimizer:{cls}",
        cls=f"pytorch_optimizer.{cls}",
        summary=summary,
        source=f"pytorch-optimizer 4.1.0 pytorch_optimizer/optimizer/{file}:{cls}.init_group, {cls}.step",
        options=known,
        constructor=names - {"foreach"},
        implementations=forms if "foreach" in known else ("single",),
        temporaries=steps_of(cls),
        script=scripts_of(cls, Options(known)),
        **fields,
    )


def buffers(kept: str) -> StatesOf:
    """States written as words: ``key:part``; ``~`` before it: one element; ``?option`` after it: only where that is on.

    >>> [s.name for s in buffers("m:momentum v:variance?amsgrad")(Param((2,)), Options({"amsgrad": False}))]
    ['m']
    """
    wanted = []
    for word in kept.split():
        state, _, option = word.partition("?")
        key, _, part = state.lstrip("~").partition(":")
        wanted.append((key, part, state.startswith("~"), option))

    def states(p: Param, o: Options) -> Iterator[State]:
        for key, part, single, option in wanted:
            if not option or o[option]:
                yield State(key, part, p.dtype, 1 if single else p.numel)

    return states
