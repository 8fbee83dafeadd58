"""A job measured in this process: the rank that ``torchrun`` started, or the one process there is."""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcalc.campaign import RunSettings
from memcalc.errors import InputError, MemcalcError, MissingPackageError
from memcalc.job import Job, read_job
from memcalc.measurement import Environment, Failure, Measurement, ModelSummary, Rank, Settings
from memcalc.plan import Plan, make_plan, understood
from memcalc.positions import refuse_too_long
from memcalc.records import dataclass

if TYPE_CHECKING:
    from memcalc.engines.measure.loop import Loop
    from memcalc.engines.measure.question import Question
    from memcalc.runtime.ranks import World


@dataclass(frozen=True, slots=True)
class Ask:
    """What is to be measured.

    Attributes:
        request: the job, as ``read_job`` reads it.
        device: ``cpu`` or ``cuda``.
        settings: what a measurement is told beside it.
        case: what to call the record.
        app_dir: the folder for ``py:`` models.
        base_dir: the folder relative paths start from.
        command: how it was asked, for the record.
    """

    request: dict[str, Any]
    device: str = "cpu"
    settings: RunSettings = RunSettings()
    case: str = "case"
    app_dir: str | None = None
    base_dir: str | None = None
    command: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[Path | None, Path | None]:
        """(that of the code, that of relative paths)."""
        return (None if self.app_dir is None else Path(self.app_dir)), (None if self.base_dir is None else Path(self.base_dir))


def measure_here(ask: Ask) -> Measurement | None:
    """The record; None on ranks that have handed theirs to rank 0.

    Whatever goes wrong once the job is understood is a record too, with ``failure`` saying what.

    Raises:
        MemcalcError: a job that cannot be, or no torch or no device to run it on.
    """
    begun = time.perf_counter()
    if not ask.settings.inputs:
        refuse_too_long(read_job(ask.request), *ask.folders)  # before torch is imported, which takes seconds
    if ask.device == "cpu":
        # torchao compiles its steps, which changes kernels and no state, and needs a C++ compiler here
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    try:
        from memcalc.runtime.ranks import process_group, require_cuda, world
    except ImportError:
        raise MissingPackageError.extra("measure", "torch", "torch") from None
    here = world()
    job = _for_ranks(read_job(_named(ask.request)), here)
    if job.behaviour.allocator is not None:
        raise InputError("behaviour.allocator", job.behaviour.allocator, "is not what a measured process is started with",
                         "set PYTORCH_CUDA_ALLOC_CONF around it, and leave it out")  # fmt: skip
    plan = make_plan(job)
    if plan.keeps_gradients:
        ask = replace(ask, settings=ask.settings.model_copy(update={"set_to_none": False}))
    _require_ranks(plan, here)
    if ask.device == "cuda":
        require_cuda()
    with process_group(here, ask.device, always=plan.backend == "deepspeed"):
        return _measured(ask, job, plan, here, begun)


def _measured(ask: Ask, job: Job, plan: Plan, here: World, begun: float) -> Measurement | None:
    from memcalc.engines.measure.environment import environment
    from memcalc.engines.measure.question import Question
    from memcalc.runtime.ranks import gathered

    app_dir, base_dir = ask.folders
    question = Question(job, plan, ask.settings, ask.device, here, app_dir=app_dir, base_dir=base_dir)
    rank, failure, loop = _run(question)
    if failure is None and here.size > 1:
        ranks = [Rank.model_validate(each) for each in gathered(rank.model_dump(mode="json"), here)]
        if here.rank > 0:
            return None
    else:
        ranks = [rank]
    return _record(ask, job, plan, loop, ranks, failure, environment(ask.device, here.local, list(ask.command)), begun)


def _run(question: Question) -> tuple[Rank, Failure | None, Loop]:
    """One rank's loop, run to its end or to its failure."""
    import torch._dynamo  # noqa: F401 - every torch optimizer imports it, and it is large: before the collections to come

    from memcalc.engines.measure.assemble import assemble
    from memcalc.engines.measure.device import DeviceWatch
    from memcalc.engines.measure.loop import Loop
    from memcalc.engines.measure.meter import make_meter

    watch = DeviceWatch(question)
    failure = None
    gc.freeze()  # what is there already is not ours to look through, again and again
    with make_meter(question.device, question.here.local) as meter:
        loop = Loop(question, meter)
        try:
            watch.begin(loop)
            loop.run()
        except Exception as error:
            failure = failure_of(error, loop, watch.out_of_memory())
        rank = assemble(loop)
        taken = [each for each in loop.iterations if not each.skipped]
        if failure is None and not taken:
            message = "every step was left out for gradients that are not finite, so no state was born"
            failure = Failure(kind="non_finite", message=message, rank=question.here.rank)
        if failure is None:
            rank = watch.finish(loop, rank)
    gc.unfreeze()
    return rank, failure, loop


def failure_of(error: Exception, loop: Loop, out_of_memory: Mapping[str, int]) -> Failure:
    """An exception as data."""
    phase, iteration = loop.recorder.where
    told: dict[str, Any] = {"rank": loop.question.here.rank, "phase": phase, "iteration": iteration}
    first = next((line for line in str(error).strip().splitlines() if line.strip()), "")
    if isinstance(error, MissingPackageError):
        return Failure(kind="missing_package", message=str(error), **told)
    if isinstance(error, MemcalcError):
        return Failure(kind="refused", message=str(error), **told)
    asked = _ran_out(error, first)
    message = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if asked is None:
        return Failure(kind="raised", message=message, **told)
    return Failure(kind="out_of_memory", message=message, **told, **{"asked": asked or None, **out_of_memory})


def _ran_out(error: Exception, message: str) -> int | None:
    """Bytes asked for when memory ran out, 0 where the message does not say; None for any other error.

    source: pytorch c10/core/impl/alloc_cpu.cpp:alloc_cpu ("you tried to allocate N bytes")
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in message:
        found = re.search(r"tried to allocate (\d+) bytes", message)
        return int(found[1]) if found else 0
    return None


def _record(
    ask: Ask, job: Job, plan: Plan, loop: Loop, ranks: list[Rank], failure: Failure | None, where: Environment, begun: float
) -> Measurement:
    from memcalc.runtime.inputs import Input

    built = getattr(loop, "built", None)
    sizes: dict[str, int] = dict(built.sizes) if built else {}
    training = {key: value for key, value in sizes.items() if getattr(job.training, key) is None}
    settled = job.model_copy(update={"training": job.training.model_copy(update=training)})
    told = understood(settled, plan)
    told["engine"] = "measure"
    told["behaviour"] = {"torch": where.torch, "cuda": where.cuda, "cudnn": where.cudnn, "gpu": where.device.name}
    inputs: list[Input] = built.inputs if built else []
    status = "measured" if failure is None else "out_of_memory" if failure.kind == "out_of_memory" else "failed"
    settings = ask.settings
    return Measurement(
        case=ask.case, status=status, created=now(), environment=where,
        request=settled.model_dump(mode="json", exclude_defaults=True), job=told,
        model=ModelSummary(
            name=built.name, family=built.family, architecture=built.architecture, num_parameters=loop.counts[0],
            num_trainable_parameters=loop.counts[1], num_tensors=loop.counts[2],
        ) if built else None,
        zeros=loop.zeros,
        settings=Settings(
            device="cuda" if ask.device == "cuda" else "cpu", iterations=settings.iterations, set_to_none=settings.set_to_none,
            seed=settings.seed, inputs=[each.text(loop.floating) for each in inputs], loss=loop.loss_name,
            attention=job.training.attention, schedule=settings.schedule, lora=settings.lora,
            built_by=built.built_by if built else "",
        ),
        ranks=ranks, failure=failure, seconds=round(time.perf_counter() - begun, 3),
        warnings=list(built.assumptions) if built else [],
    )  # fmt: skip


def _named(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with a short name of this engine's own models spelled out."""
    from memcalc.runtime.models import SHORT

    model = request.get("model")
    return {**request, "model": SHORT.get(model, model) if isinstance(model, str) else model}


def _for_ranks(job: Job, here: World) -> Job:
    """The job over the ranks there are, where it does not say how many it wants."""
    parallelism = job.parallelism
    if here.size == 1 or any(value is not None for value in (parallelism.dp, parallelism.dp_shard, parallelism.dp_replicate)):
        return job
    return job.model_copy(update={"parallelism": parallelism.model_copy(update={"dp": here.size})})


def _require_ranks(plan: Plan, here: World) -> None:
    wanted = int(plan.shards * plan.replicas)
    if wanted != here.size:
        way_out = f"start it with torchrun --nproc-per-node {wanted}" if here.size == 1 else "leave dp out"
        raise InputError("parallelism.dp", wanted, f"is not the {here.size} ranks that are running", way_out)
    if plan.replicas > 1 and plan.shards > 1:
        raise InputError(
            "parallelism.dp_replicate", int(plan.replicas), "beside dp_shard cannot be run by this loop", "use one"
        )


def now() -> str:
    """UTC, to the second."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
