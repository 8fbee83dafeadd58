"""Which engine answers: by backend and stage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from memcalc.parallelism import plain
from memcalc.parallelism.base import Layout, Setting
from memcalc.play.around import Hooks

if TYPE_CHECKING:
    from memcalc.parallelism.fsdp2_units import Units

BACKENDS = ("deepspeed", "fsdp2", "megatron", "torch")


def layouts(setting: Setting, backend: str, ranks: int) -> list[Layout]:
    """The distinct layouts over ``ranks`` ranks (1 or any larger number: only whether there are several matters)."""
    if backend == "torch":
        if setting.stage == 0:
            return plain.ddp(setting) if ranks > 1 else plain.layouts(setting)
        module = "zero_redundancy"
    else:
        module = backend
    answer: Callable[[Setting, int], list[Layout]] = import_module(f"memcalc.parallelism.{module}").layouts
    return answer(setting, ranks)


def hooks_of(setting: Setting, backend: str, units: Units | None = None) -> Callable[[], Hooks] | None:
    """What makes an engine's hooks around the modules of a played step; None for one that leaves forward and backward alone.

    ``units`` are those of a project that says itself how its model is wrapped.
    """
    if backend != "fsdp2":
        return None
    from memcalc.parallelism.fsdp2_step import FullyShard

    return partial(FullyShard, setting, units)
