"""The whole step of one rank as a tape: what is there from the start, forward, loss, backward, clipping and update.

Forward and backward are played on shapes (``memcalc.play``); what is kept is the layout's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from memcalc.arrays import Count
from memcalc.engines.analytic.inputs import Reading, read_inputs
from memcalc.engines.analytic.static import keeps_gradients
from memcalc.errors import NotModelledError
from memcalc.families.base import Family, load_family
from memcalc.kernels.behaviour import Behaviour
from memcalc.models import Model
from memcalc.parallelism.base import Holding
from memcalc.plan import Plan
from memcalc.play.graph import Engine, Leaf
from memcalc.play.machine import Machine, Policy
from memcalc.play.pointwise import scaled, to
from memcalc.play.values import Life
from memcalc.records import dataclass
from memcalc.tape.events import Alloc, Buffer, Event, Free, Mark, Phase, Repeat, allocs, frees


@dataclass
class Played:
    """Forward and backward of one iteration.

    Attributes:
        before: what the iteration finds: its inputs.
        events: from the first mark to the end of backward.
        gradients: what is left for the update, and how many of each.
        workspaces: what libraries took at first use, and keep.
        assumed: what was assumed on the way.
    """

    before: tuple[Event, ...]
    events: tuple[Event, ...]
    gradients: tuple[tuple[Buffer, Count], ...]
    workspaces: tuple[Buffer, ...]
    assumed: tuple[str, ...]


def policy_of(plan: Plan, model: Model, job: Any, behaviour: Behaviour) -> Policy:
    """How the machine holds parameters, and what it assumes."""
    frozen = {tensor.name for tensor in model.parameters if not tensor.trainable}
    dtype = plan.scheme.parameter or model.dtype or "float32"
    return Policy(
        dtype, keeps=plan.scheme.keeps, trains=(lambda name: name not in frozen) if frozen else (lambda name: True),
        attention=job.training.attention, checkpointing=job.training.activation_checkpointing, behaviour=behaviour,
        gradients_kept=keeps_gradients(plan),
    )  # fmt: skip


def play_step(
    job: Any,
    plan: Plan,
    model: Model,
    family: Family,
    behaviour: Behaviour,
    *,
    unrolled: bool = False,
    in_buckets: bool = False,
) -> Played:
    """Forward and backward of a steady iteration; ``in_buckets`` lets gradients go as soon as a bucket has them.

    Raises:
        NotModelledError: a part of the model whose activations are not modelled.
    """
    if family.play is None or model.architecture is None:
        raise NotModelledError(
            "model.model_type", model.family, "has activations that are not modelled yet", "use engine trace"
        )
    machine = Machine(policy_of(plan, model, job, behaviour))
    machine.tied, machine.unrolled = dict(model.tied), unrolled
    if in_buckets:
        machine.policy.on_gradient = _into_its_bucket
    reading = read_inputs(job.training, family, model, machine.policy.dtype)
    steps = plan.accumulation
    _iterate(machine, plan, family, model, reading, last=not _several(machine, steps), divided=_several(machine, steps))
    if _several(machine, steps):
        _again(machine, plan, family, model, reading, steps - 1)
    return _converted(machine, reading)


def play_job(mapping: dict[str, Any], *, unrolled: bool = False) -> Played:
    """Forward and backward of a job written as a mapping; for benchmarks and tests."""
    from memcalc.job import read_job
    from memcalc.plan import make_plan
    from memcalc.readers.source import read_model

    job = read_job(mapping)
    model = read_model(job.model)
    return play_step(job, make_plan(job), model, load_family(model.family), Behaviour(), unrolled=unrolled)


def _into_its_bucket(machine: Machine, leaf: Leaf) -> None:
    """The gradient is copied into a bucket that was there before, and is a view of it from then on."""
    assert leaf.gradient is not None
    leaf.gradient.life.role = "temporary"
    leaf.gradient = None


def _several(machine: Machine, steps: Count) -> bool:
    return machine.decide(steps > 1)


def _again(machine: Machine, plan: Plan, family: Family, model: Model, reading: Reading, times: Count) -> None:
    """The micro-batches after the first, which find gradients."""
    for _ in range(2):
        if machine.decide(times > 0):
            _iterate(machine, plan, family, model, reading, last=True, divided=True)
            return


def _iterate(
    machine: Machine, plan: Plan, family: Family, model: Model, reading: Reading, *, last: bool, divided: bool
) -> None:
    """One micro-batch (runtime: the loop that is measured and traced)."""
    machine.mark("forward")
    machine.autocast = plan.scheme.copy
    assert family.play is not None
    loss, kept = family.play(machine, model.architecture, model.config, model.root, reading.batch)
    machine.mark("loss")
    if divided:
        loss = scaled(machine, loss, "div.Tensor")
    del kept
    machine.leave_autocast()
    machine.mark("backward")
    if plan.scheme.scaler or plan.scheme.step == "textbook":
        big = scaled(machine, loss) if plan.scheme.scaler else scaled(machine, to(machine, loss, "float32"))
        Engine(machine).run(big)
        del big
    else:
        Engine(machine).run(loss)
    del loss


def _converted(machine: Machine, reading: Reading) -> Played:
    """The machine's tape in the events every reader takes."""
    converter = _Converter()
    converter.look(machine.tape)
    events = tuple(converter.events(machine.tape))
    gradients = tuple(
        (converter.buffer(leaf.gradient.life), converter.times.get(leaf.gradient.life, 1))
        for leaf in machine.leaves.values()
        if leaf.gradient is not None
    )
    for leaf in machine.leaves.values():  # what is still held dies off the tape
        leaf.gradient = None
    return Played(
        tuple(Alloc(buffer) for buffer in reading.buffers),
        events,
        gradients,
        tuple(converter.workspaces),
        tuple(machine.assumed),
    )


class _Converter:
    """Lives to buffers, marks to marks, stretches to repetitions."""

    def __init__(self) -> None:
        self.buffers: dict[Life, Buffer] = {}
        self.times: dict[Life, Count] = {}
        self.born: dict[Life, int] = {}
        self.left: set[Life] = set()
        self.workspaces: list[Buffer] = []
        self.same: dict[Life, Life] = {}
        self.freed: set[Life] = set()
        """What some turn of a stretch lets go of."""
        self.handed: set[Life] = set()
        """What each turn gives to the next, which lets go of it: one is left in the end, not one of every turn."""
        self.place = 0
        self.phase: Phase = "init"
        self.phases: dict[int, Phase] = {}

    def look(self, tape: Sequence[Any]) -> None:
        """Where each life begins and ends, and how many stand behind it."""
        self._scan(tape, None)
        self.handed = {later for first, later in self.same.items() if first in self.freed}

    def _scan(self, tape: Sequence[Any], times: Count | None) -> None:
        for kind, life in tape:
            if life is None and isinstance(kind, str):
                if kind == "loss":  # a part of forward, as far as what outlives it goes
                    continue
                self.place += 1
                self.phases[self.place] = kind  # type: ignore[assignment]
            elif life is None:
                self.same |= dict(kind.carried)
                self._scan(kind.body, kind.times)
            elif kind > 0:
                self.born[life] = self.place
                if times is not None:
                    self.times[life] = times
            else:
                if self.born.get(life) != self.place:
                    self.left.add(life)
                if times is not None:
                    self.freed.add(life)

    def events(self, tape: Sequence[Any], inside: bool = False) -> Iterable[Event]:
        """The events of a tape, or of the body of a stretch."""
        late = self._late(tape) if inside else ()
        for kind, life in tape:
            if life is None and isinstance(kind, str):
                yield Mark(kind)  # type: ignore[arg-type]
            elif life is None:
                yield Repeat(kind.times, tuple(self.events(kind.body, inside=True)))
            elif kind > 0:
                buffer = self.buffer(life)
                if buffer.role == "workspace":
                    self.workspaces.append(buffer)
                else:
                    yield Alloc(buffer)
            else:
                buffer = self.buffer(life)
                if not inside and life in self.times and life not in self.handed:
                    yield frees(buffer, self.times[life])  # one was left by every turn
                else:
                    yield Free(buffer, 1) if life in late else Free(buffer)

    def _late(self, tape: Sequence[Any]) -> set[Life]:
        """What a turn was given and lets go of after it has made what it gives: not the youngest of the two then."""
        made: set[Life] = set()
        late: set[Life] = set()
        for kind, life in tape:
            if life is None:
                continue
            if kind > 0:
                made.add(life)
            elif life in self.same and self.same[life] in made:
                late.add(life)
        return late

    def buffer(self, life: Life) -> Buffer:
        """The buffer of a life: what a stretch is given and what it gives are one."""
        life = self.same.get(life, life)
        found = self.buffers.get(life)
        if found is None:
            site = life.name or " in ".join(part for part in (life.operator, life.module) if part)
            found = Buffer(
                site, life.size, self._role(life), module=life.module, operator=life.operator, dtype=life.dtype,  # type: ignore[arg-type]
                shape=life.shape,  # type: ignore[arg-type]
            )  # fmt: skip
            self.buffers[life] = found
        return found

    def _role(self, life: Life) -> str:
        if life.role is not None:
            return life.role
        forward = self.phases.get(self.born.get(life, 0)) == "forward"
        return "activation" if forward and life in self.left else "temporary"


@dataclass
class Around:
    """What stands around forward and backward.

    Attributes:
        resident: what is kept from the start, for good.
        states: what the optimizer keeps from its first step on.
        clip: what clipping takes for a moment; empty where nothing is clipped.
        update: what the optimizer's step takes for a moment.
    """

    resident: Sequence[Holding]
    states: Sequence[Holding]
    clip: Sequence[Event]
    update: Sequence[Event]


def steady_tape(around: Around, played: Played) -> list[Event]:
    """One steady step, everything in its place."""
    tape: list[Event] = [Mark("init")]
    tape += [allocs(held.buffer, held.times) for held in (*around.resident, *around.states)]
    tape += played.before
    tape += [Alloc(buffer) for buffer in played.workspaces]
    return tape + _iteration(around, played, 2)


def two_steps(around: Around, played: Played) -> list[Event]:
    """The first step, in which states are born, and a steady one: what the allocator has to go through to be where it is."""
    tape: list[Event] = [Mark("init", 1)]
    tape += [allocs(held.buffer, held.times) for held in around.resident]
    tape += played.before
    tape += [Alloc(buffer) for buffer in played.workspaces]
    tape += _iteration(around, played, 1, [allocs(held.buffer, held.times) for held in around.states])
    return tape + _iteration(around, played, 2)


def _iteration(around: Around, played: Played, number: int, born: Sequence[Event] = ()) -> list[Event]:
    """One iteration's events; ``born`` are those of its update alone."""
    tape = [Mark(event.phase, number) if isinstance(event, Mark) else event for event in played.events]
    if around.clip:
        tape += [Mark("clip", number), *around.clip]
    tape += [Mark("optimizer_step", number), *born, *around.update, Mark("zero_grad", number)]
    return [*tape, *(frees(buffer, times) for buffer, times in played.gradients)]
