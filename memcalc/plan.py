"""A job with every name resolved: scheme, optimizer and options, the engine that shards, and over how many ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from memcalc.allocator.settings import asked_settings
from memcalc.arrays import Count
from memcalc.errors import InputError, NotModelledError
from memcalc.job import Job, Parallelism, Training
from memcalc.mesh import mesh, refuse_unmodelled
from memcalc.models import Model
from memcalc.optimizers.base import Implementation, Optimizer, Options
from memcalc.optimizers.names import find_optimizer
from memcalc.optimizers.step import measured
from memcalc.parallelism.base import Setting
from memcalc.precision import SCHEMES, Scheme
from memcalc.records import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """What an engine computes with; ``shards``, ``replicas`` and ``accumulation`` may be arrays.

    Attributes:
        scheme: the precision scheme.
        optimizer: the registry's entry.
        options: its options, defaults filled in.
        implementation: the form of its step.
        backend: the data-parallel engine.
        stage: ZeRO stage.
        shards: ranks the states are split over.
        replicas: groups of them.
        zero_args: the engine's options, as given.
        accumulation: micro-batches to a step.
        keeps_gradients: whether ``zero_grad`` fills gradients with zeros, so that they live from step to step.
        clips: whether gradients are clipped before the optimizer's step.
        in_backward: whether each parameter has an instance of the optimizer, stepped as its gradient comes.
        cross_entropy: the loss of a language model's head.
        assumptions: what the job left open.
    """

    scheme: Scheme
    optimizer: Optimizer
    options: Options
    implementation: Implementation
    backend: str
    stage: int
    shards: Count
    replicas: Count
    zero_args: dict[str, bool | int | float]
    accumulation: Count
    keeps_gradients: bool
    clips: bool
    assumptions: tuple[str, ...]
    in_backward: bool = False
    cross_entropy: str = "plain"

    @property
    def frees_gradients(self) -> bool:
        """Whether each gradient dies inside backward."""
        return self.in_backward or self.optimizer.frees_gradients

    @property
    def steps_alone(self) -> bool:
        """Whether each parameter takes its step by itself inside backward, beside its own gradient."""
        return (self.in_backward or self.optimizer.on_arrival) and self.backend == "torch" and not self.stage

    def setting(self, model: Model) -> Setting:
        """The question for the data-parallel engine."""
        return Setting(
            model=model, scheme=self.scheme, optimizer=self.optimizer, implementation=self.implementation,
            stage=self.stage, shards=self.shards, replicas=self.replicas, args=self.zero_args,
        )  # fmt: skip


def make_plan(job: Job) -> Plan:
    """Resolve a job's names.

    Raises:
        InputError: an unknown optimizer, option, precision, or a mesh that contradicts itself.
        NotModelledError: tensor, pipeline, context or expert parallelism, gradients that an engine of its own would have to
            keep, or a routing for an engine that routes nothing.
    """
    training, parallelism = job.training, job.parallelism
    refuse_unmodelled(parallelism)
    asked_settings(job)  # refused here, whichever engine answers
    scheme = SCHEMES.get(training.precision, "training.precision")
    optimizer = find_optimizer(training.optimizer, "training.optimizer")
    options = optimizer.resolve(training.optimizer_args)
    shards, replicas = mesh(parallelism)
    backend, assumed = _backend(parallelism, scheme, shards * replicas)
    _refuse_unused(job, backend)
    if training.compile:
        raise NotModelledError(
            "training.compile", True, "lets a compiler decide what is fused, kept and recomputed, which is not modelled",
            "leave it out: eager code is what is estimated",
        )  # fmt: skip
    _refuse_packed(training)
    if training.batch != "full" and training.cross_entropy in ("chunked", "cce"):
        raise NotModelledError(
            "training.batch", training.batch, f"leaves open how many labels count, which {training.cross_entropy} asks",
            "use full, or cross_entropy liger",
        )  # fmt: skip
    _refuse_in_backward(training, scheme, optimizer, backend, shards * replicas)
    implementation, why = _implementation(scheme, optimizer, options, backend)
    assumptions = list(why) if measured(optimizer) else []
    if assumed:
        assumptions.append(assumed)
    return Plan(
        scheme=scheme, optimizer=optimizer, options=options, implementation=implementation, backend=backend,
        stage=parallelism.zero_stage, shards=shards, replicas=replicas, zero_args=parallelism.zero_args,
        accumulation=training.gradient_accumulation_steps, keeps_gradients=not training.set_to_none,
        clips=training.max_grad_norm is not None, assumptions=tuple(assumptions),
        in_backward=training.optimizer_in_backward, cross_entropy=training.cross_entropy,
    )  # fmt: skip


def _refuse_packed(training: Training) -> None:
    """Refuse packed rows whose sequences are not counted where flash-attn's kernels follow them; rows of others have none.

    Raises:
        InputError: a number of sequences of rows that are not packed, or of one, which is no packed row.
        NotModelledError: none, though flash-attn's backward holds 128 rows more for each.
    """
    asked, path = training.packed_sequences, "training.packed_sequences"
    if asked is None and training.attention == "flash_attention_2" and training.batch == "packed":
        rule = "leaves open how many sequences there are, of which flash-attn's backward holds 128 rows more each"
        raise NotModelledError("training.batch", "packed", rule, f"give {path}")
    if asked is not None and training.batch != "packed":
        raise InputError(path, asked, "are sequences of packed rows, and these are not", "leave it out, or use batch packed")
    if asked == 1:
        raise InputError(path, asked, "is a row of one sequence, which transformers finds nothing packed in", "use batch full")


def _refuse_unused(job: Job, backend: str) -> None:
    """Refuse settings that this engine, or this data-parallel one, has no use for."""
    training = job.training
    if training.routing_imbalance is not None and job.engine != "trace":
        raise NotModelledError(
            "training.routing_imbalance", training.routing_imbalance, "is a trace's: no other engine assumes a routing",
            "use engine trace, or leave it out",
        )  # fmt: skip
    if not training.set_to_none and backend != "torch":
        raise NotModelledError(
            "training.set_to_none",
            False,
            f"is not modelled under {backend}, which gives gradients up by itself",
            "leave it out",
        )


ASKED = "training.optimizer_in_backward"


def _refuse_in_backward(training: Training, scheme: Scheme, optimizer: Optimizer, backend: str, ranks: Count) -> None:
    """Refuse what cannot be where every parameter is updated inside backward.

    Raises:
        InputError: a setting that needs all gradients at once, or after backward.
        NotModelledError: several ranks, or an optimizer that is not one instance for each parameter.
    """
    asked, name = training.optimizer_in_backward, optimizer.name
    if asked and optimizer.frees_gradients:
        raise InputError(ASKED, True, f"is what {name} does by itself", "leave it out")
    if not asked and not optimizer.on_arrival:
        return
    if asked and (backend != "torch" or ranks > 1):
        where = "several ranks" if backend == "torch" else backend
        raise NotModelledError(ASKED, True, f"is not modelled under {where}", "use one rank, or leave it out")
    if asked and (optimizer.group is not None or optimizer.cls in NOT_SINGLE):
        raise NotModelledError(ASKED, True, f"is not known of {name}, which is told of all parameters", "use another optimizer")
    path, value = (ASKED, str(True)) if asked else ("training.optimizer", name)
    if scheme.master is not None or scheme.scaler:
        why = "keeps masters, which are updated" if scheme.master is not None else "has a GradScaler, which unscales gradients"
        raise InputError(
            path, value, f"updates parameters inside backward, and precision {scheme.name} {why} after it",
            "use precision bf16-pure, fp32 or amp-bf16",
        )  # fmt: skip
    if training.max_grad_norm is not None:
        rule = "needs all gradients at once, and each is dropped inside backward"
        raise InputError("training.max_grad_norm", training.max_grad_norm, rule, "leave it out")
    if not training.set_to_none:
        raise InputError("training.set_to_none", False, "keeps no gradient that is dropped inside backward", "leave it out")


NOT_SINGLE = frozenset({"adam_mini.Adam_mini", "torch.optim.LBFGS", "torch.optim.SparseAdam"})
"""Classes that are told the model's names, that evaluate it again, or that take sparse gradients."""


def _backend(parallelism: Parallelism, scheme: Scheme, ranks: int) -> tuple[str, str]:
    """(engine, what was assumed in choosing it)."""
    given = parallelism.zero_backend
    if scheme.backend is not None:
        if given not in (None, scheme.backend):
            raise InputError(
                "parallelism.zero_backend",
                given,
                f"does not have the layout {scheme.name}",
                f"use {scheme.backend} or leave it out",
            )
        if scheme.backend == "fsdp2" and parallelism.zero_stage == 0:
            raise InputError(
                "parallelism.zero_stage", 0, "leaves nothing for fsdp2-mixed to shard", "use 3 (or 2), or precision amp-bf16"
            )
        return scheme.backend, ""
    if given is not None:
        return given, ""
    if parallelism.zero_stage == 0:
        return "torch", "data parallelism is torch's DistributedDataParallel" if ranks > 1 else ""
    return "deepspeed", "ZeRO is DeepSpeed's"


def _implementation(
    scheme: Scheme, optimizer: Optimizer, options: Options, backend: str
) -> tuple[Implementation, Iterable[str]]:
    """The form of the step, and the word that says so."""
    asked = options.get("foreach") is not None or options.get("fused")
    if scheme.step == "textbook" and backend in ("torch", "fsdp2") and not asked:
        return "single", ("the textbook's step updates one tensor at a time, casting its gradient to the master's dtype",)
    chosen = optimizer.implementation(options)
    if len(optimizer.implementations) > 1 and not asked:
        return chosen, (f"{optimizer.name} takes its {chosen} step, CUDA's default",)
    return chosen, ()


def understood(job: Job, plan: Plan) -> dict[str, Any]:
    """The job with every default filled in and every short name resolved."""
    told = job.model_dump(mode="json")
    told["model"] = job.model if isinstance(job.model, str) else {**job.model}
    told["training"] |= {"optimizer": plan.optimizer.name, "optimizer_args": dict(plan.options)}
    told["training"]["optimizer_implementation"] = plan.implementation
    told["parallelism"] |= {
        "dp": int(plan.shards * plan.replicas), "dp_shard": int(plan.shards), "dp_replicate": int(plan.replicas),
        "zero_backend": plan.backend,
    }  # fmt: skip
    told["behaviour"]["gpu"] = job.behaviour.gpu or job.hardware.gpu
    if job.behaviour.allocator is None:
        del told["behaviour"]["allocator"]
    return told
