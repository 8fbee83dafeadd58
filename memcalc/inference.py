"""A model that is run and not trained: what a job asks of plain evaluation, of a prefill and of a step of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memcalc.arrays import Condition, Count, is_array, minimum
from memcalc.cache_options import GROUPED, TAKEN_BY, cache_options
from memcalc.errors import InputError, NotModelledError, either
from memcalc.implementations import USUAL
from memcalc.job import Inference, Job, Training
from memcalc.plan import Plan, make_plan, understood
from memcalc.records import dataclass

CONTEXT = 128
"""Tokens in the cache where the job does not say: as many as a sequence has then."""
TRAINING_ONLY = (
    "optimizer", "optimizer_args", "gradient_accumulation_steps", "activation_checkpointing", "max_grad_norm", "set_to_none",
    "optimizer_in_backward", "freeze",
)  # fmt: skip
"""Keys of training that have nothing to do where nothing trains."""
LENGTHS = ("max_position_embeddings", "n_positions", "max_target_positions", "n_ctx")


@dataclass
class Asked:
    """What is run, every default filled in.

    Attributes:
        kind: of cache; empty in plain evaluation.
        context: tokens in the cache when the step begins.
        capacity: tokens that a static cache holds.
        arguments: options of a quantised cache.
        training: the job's own sizes, those of one token where it decodes.
        assumptions: what the job left open.
    """

    kind: str
    context: Count
    capacity: Count
    arguments: dict[str, Any]
    training: Training
    assumptions: tuple[str, ...]


def trains(job: Job) -> bool:
    """Whether a job is a training step.

    Raises:
        InputError: it is, and says something of a cache.
    """
    if job.mode != "train":
        return False
    for key in sorted(job.inference.model_fields_set):
        raise InputError(
            f"inference.{key}", getattr(job.inference, key), "is of no use in training", "set mode to prefill or decode"
        )
    return True


def check_inference(job: Job) -> None:
    """Refuse what a model that does not train has no use for.

    Raises:
        InputError: keys of training, or of another mode.
        NotModelledError: several ranks, or code that is not transformers'.
    """
    for key in TRAINING_ONLY:
        if key in job.training.model_fields_set:
            value = getattr(job.training, key)
            raise InputError(f"training.{key}", value, f"is of no use in mode {job.mode}, where nothing trains", "leave it out")
    if job.mode != "evaluate" and "cross_entropy" in job.training.model_fields_set:
        raise InputError(
            "training.cross_entropy",
            job.training.cross_entropy,
            f"is of no use in mode {job.mode}, which has no loss",
            "leave it out",
        )
    if job.parallelism.zero_args:
        raise InputError("parallelism.zero_args", ", ".join(job.parallelism.zero_args), "are of no use where nothing trains",
                         "leave them out")  # fmt: skip
    if job.implementation != USUAL:
        raise NotModelledError("implementation", job.implementation, f"has no mode {job.mode} yet", f"use {USUAL}")
    plan = make_plan(job)
    if plan.scheme.backend is not None:
        raise InputError(
            "training.precision", plan.scheme.name, f"is a layout for training under {plan.scheme.backend}", "use bf16 or fp16"
        )
    ranks = plan.shards * plan.replicas
    if ranks > 1 or job.parallelism.zero_stage or job.parallelism.zero_backend is not None:
        raise NotModelledError("parallelism", f"{ranks} ranks", f"are not modelled in mode {job.mode}", "ask for one rank")
    check_uncached(job)
    _check_mode(job, job.inference)


def check_uncached(job: Job) -> None:
    """Refuse what is said of a cache where none is kept.

    Raises:
        InputError: it is.
    """
    for key in sorted(job.inference.model_fields_set) if job.mode == "evaluate" else ():
        value = getattr(job.inference, key)
        raise InputError(f"inference.{key}", value, "is of no use in mode evaluate, which keeps no cache", "leave it out")


def _check_mode(job: Job, given: Inference) -> None:
    if job.mode == "prefill" and given.context_length is not None:
        raise InputError(
            "inference.context_length", given.context_length, "is of no use in mode prefill, whose cache is empty",
            "give the prompt as sequence_length",
        )  # fmt: skip
    if job.mode == "decode" and job.training.sequence_length is not None:
        raise InputError(
            "training.sequence_length", job.training.sequence_length, "is of no use in mode decode, which reads one token",
            "give the tokens before it as context_length",
        )  # fmt: skip
    check_options(job, (given.cache,))


def check_options(job: Job, caches: Sequence[str]) -> None:
    """Refuse options of a cache for which none of these kinds has a use.

    Raises:
        InputError: one.
    """
    for key, verb in (("max_cache_length", "is"), ("cache_args", "are")):
        value = getattr(job.inference, key)
        if value and not set(caches) & set(TAKEN_BY[key]):
            rule = f"{verb} of no use to a {either(caches)} cache"
            raise InputError(f"inference.{key}", value, rule, f"leave it out, or use cache {either(TAKEN_BY[key])}")


def asked_of(job: Job, config: Any, *, both: bool = False) -> Asked:
    """What a job asks for, of a model whose config is given; ``both`` says that an encoder reads beside a decoder.

    Raises:
        InputError: a static cache too short for what is put into it.
    """
    if job.mode == "evaluate":
        return Asked("", 0, 0, {}, job.training, ("evaluation keeps no cache: use_cache is off",))
    given, training = job.inference, job.training
    said: list[str] = []
    context: Count = 0
    if job.mode == "decode":
        context, training = _decoding(given, training, config, said, both=both)
    asked: Count | None = training.sequence_length
    tokens: Count = _usual(config) if asked is None else asked
    if asked is None:
        training = training.model_copy(update={"sequence_length": tokens})
        said.append(f"sequence_length is {tokens}")
    needed = context + tokens
    capacity: Count = needed if given.max_cache_length is None else given.max_cache_length
    if given.cache == "static":
        if given.max_cache_length is None:
            said.append(f"the static cache holds {needed} tokens, all that the step puts into it")
        elif _any(needed > capacity):
            raise InputError(
                "inference.max_cache_length", _most(capacity),
                f"is less than the {_most(needed)} tokens that the step puts into it", "make it longer",
            )  # fmt: skip
    if given.cache in GROUPED:
        options = cache_options(given.cache, given.cache_args)
        if job.mode == "decode":
            said.append(
                f"the step is the one in {options.cycle} that quantises the cache anew; in a shorter context the first token "
                "alone is quantised"
            )
    return Asked(given.cache, context, capacity, dict(given.cache_args), training, tuple(said))


def _decoding(given: Inference, training: Training, config: Any, said: list[str], *, both: bool) -> tuple[Count, Training]:
    """(tokens in the cache, sizes of one token more)."""
    context: Count | None = given.context_length
    if context is None:
        context = _usual(config, after=1)
        said.append(f"context_length is {context}")
    sizes: dict[str, Any] = {"sequence_length": 1}
    if training.source_length is None and not hasattr(config, "max_source_positions"):  # which says it of audio
        sizes["source_length"] = _usual(config)
        if both:
            said.append(f"source_length is {sizes['source_length']}")
    return context, training.model_copy(update=sizes)


def _usual(config: Any, after: int = 0) -> Count:
    """Tokens where nobody says, of which a model has positions for so many and ``after`` more."""
    parts = (config, getattr(config, "text_config", None))
    found = (getattr(part, name, None) for part in parts for name in LENGTHS)
    longest = next((value for value in found if value is not None), None)
    return CONTEXT if longest is None else minimum(CONTEXT, longest - after)


def told_of(job: Job, asked: Asked, plan: Plan) -> dict[str, Any]:
    """The job as understood, without what only training has."""
    told = understood(job, plan)
    told["training"] |= dict.fromkeys((*TRAINING_ONLY, "optimizer_implementation"))
    if asked.kind:
        lengths = {"context_length": int(asked.context) if job.mode == "decode" else None}
        if asked.kind == "static":
            lengths["max_cache_length"] = int(asked.capacity)
        told["inference"] |= lengths
    return told


def _most(size: Count) -> int:
    """The number, or the largest of many jobs'."""
    return int(size.max()) if is_array(size) else int(size)  # type: ignore[union-attr]


def _any(condition: Condition) -> bool:
    return bool(condition.any()) if is_array(condition) else bool(condition)  # type: ignore[union-attr]
