"""A model that is run and not trained, played: plain evaluation, a prefill, a step of decoding; what each holds, as a tape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memcalc.arrays import Count
from memcalc.cache_options import cache_options
from memcalc.engines.analytic.converted import Converter
from memcalc.engines.analytic.inputs import Reading, read_inputs
from memcalc.engines.analytic.playing import policy_of, require_heeded, until_undisturbed
from memcalc.errors import InputError, NotModelledError
from memcalc.families.base import Family
from memcalc.implementations import USUAL, load_implementation
from memcalc.implementations.base import Generation
from memcalc.inference import Asked
from memcalc.job import Job
from memcalc.kernels.behaviour import Behaviour
from memcalc.models import Model
from memcalc.parallelism.base import Holding
from memcalc.plan import Plan
from memcalc.play.caching import DynamicCache, KeyValueCache, StaticCache
from memcalc.play.caching_fp8 import FP8Cache
from memcalc.play.machine import Machine
from memcalc.records import dataclass, replace
from memcalc.tape.events import Alloc, Buffer, Event, Mark, allocs


@dataclass
class Forwards:
    """Forwards one after another.

    Attributes:
        before: what the first of them finds: its inputs, and a cache.
        events: of each forward, from its first mark on.
        workspaces: what libraries took at first use, and keep.
        assumed: what was assumed on the way.
    """

    before: tuple[Event, ...]
    events: tuple[tuple[Event, ...], ...]
    workspaces: tuple[Buffer, ...]
    assumed: tuple[str, ...]


def play_forwards(
    job: Job, asked: Asked, plan: Plan, model: Model, family: Family, behaviour: Behaviour, *, count: int = 1,
    unrolled: bool = False,
) -> Forwards:  # fmt: skip
    """So many forwards, of which the last is the one that was asked for: in decoding, those before it find a token less each.

    Raises:
        NotModelledError: a family that is not played, or not with a cache.
        InputError: a head that gives no next token.
    """
    if family.play is None or model.architecture is None:
        raise NotModelledError("model.model_type", model.family, "has activations that are not modelled yet", "use mode train")
    if job.mode != "evaluate":
        _check_family(model, family)
        if asked.kind != "dynamic" and "source_length" in family.inputs:
            raise NotModelledError(
                "inference.cache", asked.kind, "is not modelled for a model with an encoder yet", "use dynamic"
            )

    generation = generation_of(model)

    def once() -> Forwards | None:
        machine = Machine(policy_of(plan, model, job, behaviour))
        machine.tied, machine.unrolled = dict(model.tied), unrolled
        machine.recording = machine.training = False
        machine.path = model.prefix
        reading = _reading(job, asked, family, model, machine.policy.dtype)
        for back in reversed(range(count)):
            _forward(machine, job, asked, plan, family, model, reading, back)
        require_heeded(machine, job.training, model, family)
        if not machine.undisturbed():
            return None
        found = _converted(machine, reading)
        if generation is None:
            return found
        more = tuple(allocs(*one) for one in generation.held(model, reading.batch, asked.capacity, machine.policy.dtype))
        return replace(found, before=(*more, *found.before), assumed=(*found.assumed, *generation.said))

    return until_undisturbed(model, once)


def generation_of(model: Model) -> Generation | None:
    """How a project's own code generates; None for transformers'."""
    return None if model.implementation == USUAL else load_implementation(model.implementation).generates


def _check_family(model: Model, family: Family) -> None:
    architecture = model.architecture or ""
    if not architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        raise InputError(
            "model.architectures", architecture, "has no head that gives a next token", "use mode evaluate, or another head"
        )
    decodes_alone = "source_length" in family.inputs and not architecture.endswith("ForConditionalGeneration")
    if not family.caches or decodes_alone:
        raise NotModelledError(
            "model.model_type", model.family, "is not modelled with a cache of keys and values yet", "use mode evaluate"
        )


def _reading(job: Job, asked: Asked, family: Family, model: Model, dtype: str) -> Reading:
    """The batch: with labels in plain evaluation, without them where a cache is kept."""
    reading = read_inputs(asked.training, family, model, dtype)
    if job.mode == "evaluate" or "labels" not in reading.batch.values:
        return reading
    values = dict(reading.batch.values)
    labels = values.pop("labels")
    gone = {"labels"}
    if "source_length" in family.inputs:
        values["decoder_input_ids"] = labels
        if job.mode == "decode":  # the encoder has read them
            gone |= {"input_ids", "input_features"}
    kept = [buffer for buffer in reading.buffers if buffer.site not in gone]
    if "source_length" in family.inputs:
        kept.append(Buffer("decoder_input_ids", labels.nbytes, "input"))
    return replace(reading, batch=replace(reading.batch, values=values), buffers=tuple(kept))


def _forward(
    machine: Machine, job: Job, asked: Asked, plan: Plan, family: Family, model: Model, reading: Reading, back: int
) -> None:
    """One of them; ``back`` is how many come after it."""
    machine.mark("forward")
    found = machine.cache is not None and (job.mode == "decode" or machine.cache.lasting)
    if job.mode != "evaluate" and not found:
        machine.cache = None
        generation, past = generation_of(model), asked.context - back if job.mode == "decode" else 0
        kept = None if generation is None else generation.cache(past, asked.capacity, machine.policy.dtype)
        machine.cache = kept or cache_of(asked, past)
    machine.autocast = plan.scheme.copy
    assert family.play is not None
    output = family.play(machine, model.architecture, model.config, model.root, reading.batch)
    machine.mark("loss")
    machine.leave_autocast()
    del output
    if machine.cache is not None and job.mode == "decode":
        machine.cache.past = machine.cache.past + 1


def cache_of(asked: Asked, past: Count) -> KeyValueCache:
    """A cache that has seen so many tokens.

    Raises:
        InputError: options that it does not take.
    """
    if asked.kind == "dynamic":
        return DynamicCache(past)
    if asked.kind == "static":
        return StaticCache(past, asked.capacity)
    if asked.kind == "quantized-fp8":
        return FP8Cache(past)
    from memcalc.play.caching_grouped import GroupedCache
    from memcalc.play.hqq import HQQ
    from memcalc.play.quanto import Quanto

    options = cache_options(asked.kind, asked.arguments)
    return GroupedCache(past, asked.context, options, (Quanto if asked.kind == "quantized-quanto" else HQQ)(options))


def _converted(machine: Machine, reading: Reading) -> Forwards:
    converter = Converter()
    tape = [*machine.earlier, *machine.tape]
    converter.look(tape)
    earlier: list[Event] = []
    parts: list[list[Event]] = []
    for event in converter.events(tape):
        if isinstance(event, Mark) and event.phase == "forward":
            parts.append([event])
        else:
            (parts[-1] if parts else earlier).append(event)
    inputs = tuple(Alloc(buffer) for buffer in reading.buffers)
    machine.cache = machine.encoded = None  # what is still held dies off the tape
    return Forwards(
        (*inputs, *earlier), tuple(map(tuple, parts)), tuple(converter.workspaces.values()),
        (*reading.assumptions, *machine.assumed),
    )  # fmt: skip


def tape_of(resident: Sequence[Holding], forwards: Forwards) -> list[Event]:
    """What is kept, and the forwards; the last of them is iteration 2."""
    tape: list[Event] = [Mark("init", 3 - len(forwards.events))]
    tape += [allocs(held.buffer, held.times) for held in resident]
    tape += forwards.before
    tape += [Alloc(buffer) for buffer in forwards.workspaces]
    for number, events in enumerate(forwards.events, 3 - len(forwards.events)):
        tape += [Mark(event.phase, number) if isinstance(event, Mark) else event for event in events]
    return tape


def play_job(mapping: dict[str, Any], *, count: int = 1, unrolled: bool = False) -> Forwards:
    """Forwards of a job written as a mapping; for benchmarks and tests."""
    from memcalc.engines.analytic.step import family_of
    from memcalc.inference import asked_of
    from memcalc.job import read_job
    from memcalc.plan import make_plan
    from memcalc.prepared import prepared
    from memcalc.readers.source import read_model

    job = read_job(mapping)
    model = prepared(read_model(job.model), job)
    asked = asked_of(job, model.config)
    return play_forwards(
        job, asked, make_plan(job), model, family_of(model, trains=False), Behaviour(), count=count, unrolled=unrolled
    )  # fmt: skip
