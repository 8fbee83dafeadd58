"""The ways of training, or of keeping keys and values, that are tried for what fits: a grid, and the jobs it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from memcalc.cache_options import TAKEN_BY
from memcalc.errors import InputError
from memcalc.inference import check_options, check_uncached
from memcalc.job import Job, read_job
from memcalc.records import dataclass


@dataclass(frozen=True, slots=True)
class Grid:
    """The ways that are tried, each with each; None for what is left open.

    Attributes:
        optimizers: names; of what is left open the job's own, or :data:`OPTIMIZERS` where it says nothing either.
        precisions: schemes; likewise, or :data:`PRECISIONS`. Where nothing trains, the job's.
        checkpointing: ways of it; likewise, or :data:`CHECKPOINTING`.
        zero_stages: 0 to 3; the job's where left open.
        caches: of keys and values, where nothing trains; the job's where left open.
    """

    optimizers: Sequence[str] | None = None
    precisions: Sequence[str] | None = None
    checkpointing: Sequence[str] | None = None
    zero_stages: Sequence[int] | None = None
    caches: Sequence[str] | None = None


OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "sgd")
PRECISIONS = ("amp-bf16", "bf16", "bf16-pure")
CHECKPOINTING = ("none", "full")
"""What is tried in training, where neither the grid nor the job says."""


def grid_of(
    optimizers: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    checkpointing: Sequence[str] | None = None,
    zero_stages: Sequence[str] | None = None,
    caches: Sequence[str] | None = None,
) -> Grid:
    """A grid from words; None for what nobody said.

    Raises:
        InputError: a ZeRO stage that is no number.

    >>> grid_of(["sgd"], zero_stages=["0", "3"])
    Grid(optimizers=['sgd'], precisions=None, checkpointing=None, zero_stages=[0, 3], caches=None)
    """
    for word in zero_stages or ():
        if word not in ("0", "1", "2", "3"):
            raise InputError("--zero-stages", word, "is no ZeRO stage", "use 0, 1, 2 or 3")
    stages = None if zero_stages is None else [int(word) for word in zero_stages]
    return Grid(optimizers, precisions, checkpointing, stages, caches)


def check_grid(job: Job, grid: Grid) -> None:
    """Refuse ways that a job of its mode does not have.

    Raises:
        InputError: ways of training where nothing trains, or of caching where no cache is kept.
    """
    training = ("optimizers", "checkpointing", "zero_stages") if job.mode != "train" else ()
    caching = () if job.mode in ("prefill", "decode") else ("caches",)
    for name in (*training, *caching):
        tried = getattr(grid, name)
        if tried is not None:
            rule = "where nothing trains" if name in training else "which keeps no cache"
            way_out = "leave it out" if name in training else "leave it out, or set mode to prefill or decode"
            shown = ",".join(str(one) for one in tried)
            raise InputError(f"--{name.replace('_', '-')}", shown, f"is of no use in mode {job.mode}, {rule}", way_out)
    check_uncached(job)
    if job.mode in ("prefill", "decode"):
        check_options(job, _caches(grid, job))


def _tried(grid: Sequence[str] | None, job: Job, key: str, usual: Sequence[str]) -> Sequence[str]:
    """What the grid says, or the job, or what is usual."""
    if grid is not None:
        return grid
    return (getattr(job.training, key),) if key in job.training.model_fields_set else usual


def trained(job: Job, grid: Grid) -> Iterator[Job]:
    """Each optimizer with each precision, way of checkpointing and stage."""
    stages = (job.parallelism.zero_stage,) if grid.zero_stages is None else grid.zero_stages
    optimizers = _tried(grid.optimizers, job, "optimizer", OPTIMIZERS)
    precisions = _tried(grid.precisions, job, "precision", PRECISIONS)
    ways = _tried(grid.checkpointing, job, "activation_checkpointing", CHECKPOINTING)
    for optimizer, precision, checkpointing, stage in product(optimizers, precisions, ways, stages):
        training = {"optimizer": optimizer, "precision": precision, "activation_checkpointing": checkpointing}
        told = job.model_dump(exclude_unset=True)
        told["training"] = {**told.get("training", {}), **training}
        told["parallelism"] = _sharded({**told.get("parallelism", {}), "zero_stage": stage})
        yield read_job(told)


def forwards(job: Job, grid: Grid) -> Iterator[Job]:
    """Each precision with each cache, of a model that does not train; the job's own where the grid names none."""
    precisions = (job.training.precision,) if grid.precisions is None else grid.precisions
    for precision, cache in product(precisions, _caches(grid, job)):
        told = job.model_dump(exclude_unset=True)
        told["training"] = {**told.get("training", {}), "precision": precision}
        if job.mode != "evaluate":
            told["inference"] = {**_taken(told.get("inference", {}), cache), "cache": cache}
        yield read_job(told)


def _caches(grid: Grid, job: Job) -> Sequence[str]:
    return (job.inference.cache,) if grid.caches is None else grid.caches


def _taken(inference: dict[str, Any], cache: str) -> dict[str, Any]:
    """Without the options that other kinds of cache have a use for, and this one has not."""
    return {key: value for key, value in inference.items() if cache in TAKEN_BY.get(key, (cache,))}


def _sharded(parallelism: dict[str, Any]) -> dict[str, Any]:
    """Stages that FSDP2 does not have are torch's own: DistributedDataParallel and ZeroRedundancyOptimizer."""
    below = parallelism.get("zero_backend") == "fsdp2" and parallelism["zero_stage"] < 2
    return {**parallelism, "zero_backend": "torch", "zero_args": {}} if below else parallelism
