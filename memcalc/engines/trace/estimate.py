"""From a job to a footprint, by running its step on tensors without data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from memcalc.allocator.played import Replay
from memcalc.allocator.replay import replay
from memcalc.allocator.settings import asked_settings
from memcalc.engines.trace.assemble import Told, footprint_of, tape_of
from memcalc.engines.trace.bridge import cuda_is_here
from memcalc.engines.trace.failures import (
    FailedError,
    UnrunnableError,
    ValueNeededError,
    kernel_warnings,
    quiet_libraries,
    require_runnable,
    take,
)
from memcalc.engines.trace.faking import faked
from memcalc.engines.trace.inferring import loop_of
from memcalc.engines.trace.kernels import Kernels
from memcalc.engines.trace.loop import ITERATIONS, Asked, CustomStep
from memcalc.engines.trace.machine import Machine, machine_of
from memcalc.engines.trace.presence import as_real_tensors
from memcalc.engines.trace.refusals import require_one_rank, require_own_step
from memcalc.engines.trace.routing import assumed, experts_of
from memcalc.engines.trace.sites import Sites
from memcalc.engines.trace.thrift import no_values
from memcalc.engines.trace.tracker import Tracker
from memcalc.engines.trace.values import Values
from memcalc.errors import InputError, NotModelledError
from memcalc.footprint import Footprint, ModelSummary
from memcalc.implementations import USUAL
from memcalc.inference import check_inference, told_of, trains
from memcalc.job import Job
from memcalc.plan import Plan, make_plan, understood
from memcalc.positions import refuse_too_long
from memcalc.records import dataclass
from memcalc.runtime.around import only_kernel
from memcalc.runtime.build import Built, build, with_lora
from memcalc.runtime.family_inputs import IMAGE, SEQUENCE
from memcalc.runtime.inputs import inferred, inputs_of
from memcalc.runtime.losses import make_loss
from memcalc.runtime.target import load_function
from memcalc.tape.events import Event

Progress = Callable[[str, int], None]
"""Told what is under way, and how many operators have been seen."""


@dataclass
class Traced:
    """A step, traced.

    Attributes:
        footprint: what it takes.
        tape: every allocation and free, from the first parameter to the end of a steady step.
        replay: the tape as the allocator played it.
        operators: how often each operator was called.
    """

    footprint: Footprint
    tape: list[Event]
    replay: Replay
    operators: dict[str, int]


@dataclass
class Feed:
    """What a trace is told beside its job.

    Attributes:
        inputs: in place of the family's own, as ``--input`` takes them.
        loss: as ``--loss`` takes it, or a function of the output.
        step: a person's own step, ``step(model, batch, optimizer)``, or ``py:package.module:function``.
        allocator: the allocator's settings, as PYTORCH_CUDA_ALLOC_CONF has them, in place of the job's.
        lora: options of peft's LoRA.
        app_dir: the folder put on the import path for ``py:``.
        base_dir: the folder relative paths start from.
        progress: told how far it is.
    """

    inputs: Sequence[str] = ()
    loss: str | Callable[[Any], torch.Tensor] | None = None
    step: str | CustomStep | None = None
    allocator: str = ""
    lora: Mapping[str, Any] | None = None
    app_dir: Path | None = None
    base_dir: Path | None = None
    progress: Progress = lambda what, count: None


def trace_job(job: Job, feed: Feed | None = None) -> Traced:
    """The step a job names, traced.

    Raises:
        InputError: a job that cannot be, or a module that fails.
        MissingPackageError: the package that has the model's class is not installed.
        NotModelledError: several ranks, or code that asks for a tensor's values.
    """
    feed = feed or Feed()
    if not feed.inputs:
        refuse_too_long(job, feed.app_dir, feed.base_dir)

    def make() -> Built:
        return build(job, inputs=feed.inputs, app_dir=feed.app_dir, base_dir=feed.base_dir)

    return _traced(job, feed, make)


def trace_module(module: torch.nn.Module, job: Job, feed: Feed, inputs: Any = None) -> Traced:
    """The same for a live module, whose own tensors are put aside meanwhile and come back untouched."""
    training = job.training
    sequence, image = training.sequence_length or SEQUENCE, training.image_size or IMAGE
    read = inputs_of(inputs) or inferred(module, training.micro_batch_size or 1, sequence, image)
    batch = read[0].shape[0] if read[0].shape else 1

    def make() -> Built:
        name = type(module).__name__
        return Built(module, name, "module", name, read, {}, {"micro_batch_size": batch}, "a live module")

    return _traced(job, feed, make)


def _traced(job: Job, feed: Feed, make: Callable[[], Built]) -> Traced:
    """By the optimizer's own class; by the registry's word where that class cannot run without data."""
    plan = make_plan(job)
    require_one_rank(plan)
    if not trains(job):
        _check_forwards(job, feed)
    if feed.step is not None:
        require_own_step(job)
    _refuse_unbuilt(job)
    machine = machine_of(job)
    try:
        require_runnable(plan.optimizer)
        return _routed(job, plan, feed, make, machine, real=True)
    except UnrunnableError as unrunnable:
        reason = str(unrunnable)
    traced = _routed(job, plan, feed, make, machine, real=False)
    word = f"states and temporaries of {plan.optimizer.name} are the registry's: its class does not run on a trace ({reason})"
    footprint = replace(traced.footprint, assumptions=(*traced.footprint.assumptions, word))
    return Traced(footprint, traced.tape, traced.replay, traced.operators)


def _check_forwards(job: Job, feed: Feed) -> None:
    """Refuse what a job that does not train has no use for.

    Raises:
        InputError: a step, a loss or adapters of a person's own.
    """
    check_inference(job)
    for flag, value in (("--step", feed.step), ("--loss", feed.loss)):
        if value is not None:
            way_out = "leave it out; a loop of one's own is traced by memcalc.tracing"
            raise InputError(flag, str(value), f"is of no use in mode {job.mode}", way_out)


def _routed(job: Job, plan: Plan, feed: Feed, make: Callable[[], Built], machine: Machine, *, real: bool) -> Traced:
    """Without values; where they are asked for after a choice among experts, once more with those that follow from it.

    Most models need none, and their trace is not to pay for any.
    """
    try:
        found = _run(job, plan, feed, make, machine, real=real, valued=False)
    except (ValueNeededError, FailedError) as needed:
        if not needed.chosen:
            raise
        return _run(job, plan, feed, make, machine, real=real, valued=True)
    if job.training.routing_imbalance is not None:
        rule = "changes nothing, as no size in this model hangs on a router's choice"
        raise InputError("training.routing_imbalance", job.training.routing_imbalance, rule, "leave it out")
    return found


def _run(job: Job, plan: Plan, feed: Feed, make: Callable[[], Built], machine: Machine, *, real: bool, valued: bool) -> Traced:
    training = job.training
    loss = feed.loss if callable(feed.loss) else make_loss(feed.loss, feed.app_dir)[1]
    step = feed.step
    if isinstance(step, str):
        step = load_function(step, feed.app_dir, path="--step", named="takes model, batch and optimizer")
    asked = Asked(
        plan=plan, arguments=training.optimizer_args, accumulation=training.gradient_accumulation_steps,
        max_norm=training.max_grad_norm, checkpointing=training.activation_checkpointing, loss=loss, step=step,
        set_to_none=training.set_to_none, real=real,
    )  # fmt: skip
    sites = Sites()
    kernels = Kernels(machine.behaviour)
    imbalance = training.routing_imbalance or 1.0
    tracker = Tracker(sites, kernels)
    tracker.progress = feed.progress
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_libraries())
        mode = stack.enter_context(cuda_is_here(machine))
        mode.whole = training.batch == "full"
        feed.progress("building the model", 0)
        with no_values():
            built = make()
            lora = job.training.lora if feed.lora is None else feed.lora
            if lora is not None:
                built = built._replace(module=with_lora(built.module, lora))
        stack.enter_context(faked(built.module, mode))
        stack.enter_context(as_real_tensors())
        if valued:
            mode.values = Values(experts_of(built.module), imbalance, sites, mode.without_values)
        loop = loop_of(job, asked, tracker, mode)
        with sites.watching(), only_kernel(training.attention), tracker:
            take(loop, built)
        summary = _summary(built, loop.module)
        parts, notes = loop.parts, (*loop.step.notes, *getattr(loop, "assumptions", ()))
        forwards = None if trains(job) else loop.running.asked.told
        routed = assumed(mode.values.read, imbalance) if mode.values is not None else ()
        del loop
    tape = tape_of(tracker)
    played = replay(tape, feed.allocator or asked_settings(job))
    settled = job.model_copy(update={"training": training.model_copy(update=_sizes(built, job))})
    told = understood(settled, plan) if forwards is None else told_of(settled, forwards, plan)
    told["behaviour"] |= machine.told()
    told["inputs"] = [each.text() for each in built.inputs]
    footprint = footprint_of(
        tape,
        played,
        Told(
            summary, told, parts, plan.stage, (
                *built.assumptions, *(plan.assumptions if forwards is None else ()), *machine.assumptions, *notes,
                *mode.assumed, *routed,
                *_of_the_model(built, tracker.operators),
            ),
            kernel_warnings(kernels),
        ),
        ITERATIONS,
    )  # fmt: skip
    return Traced(footprint, tape, played, {str(func): count for func, count in tracker.operators.items()})


def _of_the_model(built: Built, operators: Mapping[Any, int]) -> Iterator[str]:
    """What is assumed of how a model runs on a GPU."""
    if any("_grouped_mm" in str(func) for func in operators):
        yield "experts run by grouped matrix multiplication, as transformers chooses on a GPU: no size depends on the routing"
    if built.family in ("mamba", "mamba2") and find_spec("mamba_ssm") is None:
        yield "Mamba's own kernels are not installed here: its slow path in PyTorch is what was traced"


def _summary(built: Built, module: Any) -> ModelSummary:
    params = list(module.parameters())
    return ModelSummary(
        name=built.name, family=built.family, architecture=built.architecture,
        num_parameters=sum(p.numel() for p in params),
        num_trainable_parameters=sum(p.numel() for p in params if p.requires_grad), num_tensors=len(params),
    )  # fmt: skip


def _sizes(built: Built, job: Job) -> dict[str, int]:
    return {key: value for key, value in built.sizes.items() if getattr(job.training, key) is None}


def _refuse_unbuilt(job: Job) -> None:
    """What this engine does not build by itself.

    Raises:
        NotModelledError: another implementation's code, other kernels than are installed, or a quantised base.
    """
    asked, there = job.implementation_args.get("kernels"), "torch" if find_spec("mamba_ssm") is None else "mamba-ssm"
    if asked not in (None, there):
        raise NotModelledError("implementation_args.kernels", asked, f"is not what runs here: {there}", "use engine analytic")
    if job.implementation != USUAL:
        raise NotModelledError("implementation", job.implementation, "is not built from a config",
                               "give its module, as py:package.module:factory, or use engine analytic")  # fmt: skip
    if job.training.quantization is not None:
        raise NotModelledError("training.quantization", job.training.quantization, "has kernels that a trace cannot run",
                               "use engine analytic")  # fmt: skip
