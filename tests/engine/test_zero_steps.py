"""The played step under DeepSpeed's ZeRO, against real steps of DeepSpeed over gloo, and against counts by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from memcalc.engines.analytic.peak import steps_of
from memcalc.engines.analytic.static import accounts
from memcalc.engines.analytic.step import steady_tape
from memcalc.job import read_job
from memcalc.plan import make_plan
from memcalc.prepared import prepared
from memcalc.readers.source import read_model
from memcalc.tape.events import Alloc, Mark
from memcalc.tape.unroll import unroll
from tests.engine.record_zero import FILE

SCALARS = 64
"""Bytes of single numbers (losses, flags of overflow, clipping's) in which a step on the CPU may differ from what is told."""
RECORDED = json.loads(FILE.read_text())
PHASES = ("forward", "backward", "optimizer_step")
Row = tuple[str, int, int, int]


def steps(one: dict[str, Any]) -> list[Any]:
    """The step of each rank that may be the highest."""
    keys = {key: value for key, value in one.items() if key not in ("name", "world", "ranks")}
    job = read_job({**keys, "dp": one["world"], "zero_backend": "deepspeed", "optimizer": "adamw", "attention": "eager"})
    plan, model = make_plan(job), prepared(read_model(job.model), job)
    return steps_of(job, plan, model, accounts(plan, model, one["world"])[0])[0]


def rows(step: Any) -> list[Row]:
    """(phase, bytes at its start, highest, at its end), above what is there between steps; without CUDA's workspaces."""
    live, found, between = 0, [], None
    for event in unroll(steady_tape(*step)):
        if isinstance(event, Mark):
            if found and event.phase not in ("loss", "zero_grad"):  # which is within the engine's step
                found[-1][3] = live
            if event.phase in PHASES:
                between = live if between is None else between
                found.append([event.phase, live, live, live])
        elif event.buffer.place == "device" and event.buffer.role != "workspace":
            live += event.buffer.requested * (1 if isinstance(event, Alloc) else -1)
            if found:
                found[-1][2] = max(found[-1][2], live)
    assert between is not None
    found[-1][3] = live
    assert live == between, "a step leaves what it found"
    return [(phase, *(at - between for at in rest)) for phase, *rest in found]


def close(ours: list[Row], theirs: list[Any]) -> bool:
    """Whether every phase starts, peaks and ends alike."""
    pairs = list(zip(ours, theirs, strict=True))
    return all(a[0] == b[0] and all(abs(x - y) <= SCALARS for x, y in zip(a[1:], b[1:], strict=True)) for a, b in pairs)


@pytest.mark.parametrize("one", RECORDED, ids=lambda one: one["name"])
def test_every_phase_is_as_a_real_step_of_deepspeed_has_it(one):
    """Start, highest and end of forward, backward and step: to the byte but for single numbers, on the rank that is highest.

    Every rank that is told of is one of the real ones, and the highest of all is among them.
    """
    told = [rows(step) for step in steps(one)]
    for ours in told:
        assert any(close(ours, theirs) for theirs in one["ranks"]), (ours, one["ranks"])
    assert abs(highest(told) - highest(one["ranks"])) <= SCALARS


def highest(ranks: Any) -> int:
    """The highest instant of any rank."""
    return max(top for rank in ranks for _, _, top, _ in rank)
