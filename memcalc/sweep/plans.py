"""The living points of a stretch, parted by plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from memcalc.job import Job
from memcalc.mesh import spread
from memcalc.plan import Plan
from memcalc.sweep import resolve
from memcalc.sweep.axes import NONE, RANKS, Array
from memcalc.sweep.distinct import distinct
from memcalc.sweep.stretch import Stretch

SCALARS = ("source_length", "image_size")
"""Sizes of what a model reads that a job holds as one number: points that differ in them are answered apart."""


@dataclass(frozen=True, slots=True)
class Planned:
    """Points of one plan, what their jobs have in common, and their ranks."""

    job: Job
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
        for job, mine in _played_alike(stretch, setting.job, rows):
            yield from _under(stretch, job, (block.first, code), mine)


def _played_alike(stretch: Stretch, job: Job, rows: Array) -> Iterator[tuple[Job, Array]]:
    """The points of one setting, parted by what else their step is played on: GPU, and sizes that no array holds."""
    gpus, gpu_of = stretch.gpus()
    if job.scope == "states" or job.behaviour.gpu is not None:  # no kernel runs, or not on the device that is to hold it
        gpus, gpu_of = (None,), np.zeros_like(gpu_of)
    sizes = {key: stretch.number(f"training.{key}")[rows] for key in SCALARS}
    firsts, which = distinct(gpu_of[rows], *sizes.values())
    for index, first in enumerate(firsts.tolist()):
        training = job.training.model_copy(update=_one(sizes, first))
        hardware = job.hardware.model_copy(update={"gpu": gpus[gpu_of[rows[first]]]})
        yield job.model_copy(update={"training": training, "hardware": hardware}), rows[which == index]


def _under(stretch: Stretch, job: Job, key: tuple[int, int], rows: Array) -> Iterator[Planned]:
    """The points of one job, parted by whether they have several ranks."""
    given = {key.partition(".")[2]: stretch.number(key)[rows] for key in RANKS}
    dp, shard, replicate = (np.maximum(given[name], 0) for name in ("dp", "dp_shard", "dp_replicate"))
    shards, replicas, contradicted, idle = spread(dp, shard, replicate, job.parallelism.zero_stage)
    shards, replicas = (np.broadcast_to(np.asarray(found), rows.shape) for found in (shards, replicas))
    unmodelled = np.logical_or.reduce([given[name] > 1 for name in ("tp", "pp", "cp", "ep")])
    refused = contradicted | idle | unmodelled
    _refuse(stretch, job, key, rows[refused], {name: table[refused] for name, table in given.items()})
    for several in (False, True):
        mine = np.flatnonzero(~refused & ((shards * replicas > 1) == several))
        if not len(mine):
            continue
        for column, table in (("dp", shards * replicas), ("dp_shard", shards), ("dp_replicate", replicas)):
            stretch.rows.put(column, rows[mine], table[mine])
        plan = stretch.known.plans.get((*key, several), partial(resolve.plan, job, _one(given, mine[0])))
        if isinstance(plan, str):
            stretch.refuse(rows[mine], plan)
            continue
        for column, word in (
            ("optimizer", plan.optimizer.name),
            ("precision", plan.scheme.name),
            ("zero_backend", plan.backend),
        ):
            stretch.rows.words[column].put(rows[mine], word)
        yield Planned(job, plan, several, rows[mine], shards[mine], replicas[mine])


def _one(given: Mapping[str, Array], at: int) -> dict[str, int | None]:
    """One point's ranks or sizes, as a job has them."""
    return {name: None if table[at] == NONE else int(table[at]) for name, table in given.items()}


def _refuse(stretch: Stretch, job: Job, key: tuple[int, int], rows: Array, given: Mapping[str, Array]) -> None:
    """Say of points whose ranks cannot be why they have no plan.

    A kind of parallelism nobody models is found first of all, then what is wrong with the setting whatever its ranks, and
    then what is wrong with the ranks.
    """
    if not len(rows):
        return
    firsts, which = distinct(*given.values())
    for index, first in enumerate(firsts.tolist()):
        ranks = _one(given, first)
        own, at_once = resolve.refusal(job, ranks)
        said = own
        if not at_once:
            of_setting = stretch.known.plans.get((*key, "refused"), partial(_but, own, job, ranks))
            said = of_setting if isinstance(of_setting, str) and of_setting else own
        stretch.refuse(rows[which == index], said)


def _but(own: str, job: Job, ranks: Mapping[str, int | None]) -> str:
    """What is wrong with a setting whatever its ranks; empty if nothing is but what is wrong with these."""
    said = resolve.plan(job, ranks)
    return said if isinstance(said, str) and said != own else ""
