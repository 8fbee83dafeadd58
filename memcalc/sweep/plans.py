"""The living points of a stretch, parted by plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memcalc.engines.analytic.plan import Plan
from memcalc.job import Job
from memcalc.sweep import resolve
from memcalc.sweep.axes import Array
from memcalc.sweep.resolve import Ranks
from memcalc.sweep.stretch import Stretch

ONE, SEVERAL, REFUSED = 0, 1, 2
"""What ranks may come to: one, more, or an error."""


@dataclass(frozen=True, slots=True)
class Planned:
    """Points of one plan, and their ranks."""

    plan: Plan
    several: bool
    rows: Array
    shards: Array
    replicas: Array


def planned(stretch: Stretch) -> Iterator[Planned]:
    """Every living point under its plan; those without one are refused."""
    block, known = stretch.block, stretch.known
    setting_of, codes = stretch.codes("setting")
    for index, code in enumerate(codes):
        rows = np.flatnonzero(stretch.alive & (setting_of == index))
        if not len(rows):
            continue
        setting = known.settings.get((block.first, code), lambda: resolve.setting(block.part("setting", code)))  # noqa: B023
        if setting.job is None:
            stretch.refuse(rows, setting.error or "")
            continue
        stretch.rows.put("zero_stage", rows, setting.job.parallelism.zero_stage)
        stretch.by_states[rows] = setting.job.scope == "states"
        yield from _under(stretch, setting.job, (block.first, code), rows)


def _under(stretch: Stretch, job: Job, key: tuple[int, int], rows: Array) -> Iterator[Planned]:
    """The points of one setting, parted by whether they have several ranks."""
    mesh_of, codes = stretch.codes("mesh")
    present, which = np.unique(mesh_of[rows], return_inverse=True)
    found = [_ranks(stretch, codes[index], job.parallelism.zero_stage) for index in present.tolist()]
    shards = np.array([ranks.shards for ranks in found], dtype=np.int64)
    replicas = np.array([ranks.replicas for ranks in found], dtype=np.int64)
    fate = np.where([ranks.error is not None for ranks in found], REFUSED, (shards * replicas > 1).astype(np.int64))
    for index in np.flatnonzero(fate == REFUSED).tolist():
        stretch.refuse(rows[which == index], _why(stretch, job, key, found[index]))
    for state in (ONE, SEVERAL):
        members, chosen = np.flatnonzero(fate == state), np.flatnonzero(fate[which] == state)
        if not len(members):
            continue
        mine, its_shards, its_replicas = rows[chosen], shards[which[chosen]], replicas[which[chosen]]
        stretch.rows.put("dp", mine, its_shards * its_replicas)
        stretch.rows.put("dp_shard", mine, its_shards)
        stretch.rows.put("dp_replicate", mine, its_replicas)
        given = found[members[0]].given
        plan = stretch.known.plans.get((*key, state), lambda: resolve.plan(job, given))  # noqa: B023
        if isinstance(plan, str):
            stretch.refuse(mine, plan)
            continue
        for column, word in (
            ("optimizer", plan.optimizer.name),
            ("precision", plan.scheme.name),
            ("zero_backend", plan.backend),
        ):
            stretch.rows.words[column].put(mine, word)
        yield Planned(plan, state == SEVERAL, mine, its_shards, its_replicas)


def _ranks(stretch: Stretch, code: int, stage: int) -> Ranks:
    """What a mesh comes to under a stage."""
    block = stretch.block
    return stretch.known.ranks.get((block.first, code, stage), lambda: resolve.ranks(block.part("mesh", code), stage))


def _why(stretch: Stretch, job: Job, key: tuple[int, int], ranks: Ranks) -> str:
    """Why a refused mesh's points have no plan.

    A kind of parallelism nobody models is found first of all, then what is wrong with the setting whatever its ranks, and
    then what is wrong with the ranks.
    """
    own = ranks.error or ""
    if ranks.unmodelled:
        return own

    def of_setting() -> str:
        said = resolve.plan(job, ranks.given)
        return said if isinstance(said, str) and said != own else ""

    said = stretch.known.plans.get((*key, REFUSED), of_setting)
    return said if isinstance(said, str) and said else own
