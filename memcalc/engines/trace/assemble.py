"""From what the tracker saw to a tape, and from the tape to a footprint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from memcalc.allocator.played import Replay
from memcalc.bounds import bounded
from memcalc.engines.trace.names import SCALER
from memcalc.engines.trace.tracker import Life, Tracker
from memcalc.footprint import Components, Footprint, Held, ModelSummary, Peak, Rank, States
from memcalc.records import dataclass
from memcalc.tape.events import COMPONENTS, ROLES, Alloc, Buffer, Event, Free, Mark, Phase, Role
from memcalc.textbook import card
from memcalc.units import MIB

KEPT: frozenset[Role] = frozenset(
    {"parameter", "parameter_copy", "master_parameter", "buffer", "gradient", "optimizer_state", "communication"}
)
"""Roles a footprint's ``states`` are made of, with what the optimizer's step needs for a moment."""
STEP: frozenset[Phase] = frozenset({"clip", "optimizer_step"})
FORWARD: frozenset[Phase] = frozenset({"forward", "loss"})


def tape_of(tracker: Tracker) -> list[Event]:
    """The tape: one Buffer object for each storage, so that equal ones are told apart."""
    buffers: dict[int, Buffer] = {}
    tape: list[Event] = []
    for kind, what in tracker.events:
        if kind == "=":
            tape.append(Mark(*what))
        elif kind == "+":
            buffers[id(what)] = buffer = buffer_of(what)
            tape.append(Alloc(buffer))
        else:
            tape.append(Free(buffers.pop(id(what))))
    return tape


def buffer_of(life: Life) -> Buffer:
    """One storage, told by what it was for."""
    short = life.operator.removeprefix("aten.").removesuffix(".default")
    return Buffer(
        site=life.name or " in ".join(part for part in (short, life.module) if part) or "?", requested=life.nbytes,
        role=role_of(life), place="host" if life.place == "host" else "device", module=life.module,
        operator=life.operator, dtype=life.dtype, shape=life.shape,
    )  # fmt: skip


def role_of(life: Life) -> Role:
    """What a storage is for: as it was claimed, else by when it lived.

    What a forward makes and leaves behind is an activation, and so is what a recomputed forward makes; all else is temporary.
    """
    if life.role is not None:
        return life.role
    if life.again:
        return "activation"
    # the same phase come back to is another: each mark is an object of its own, and a person's step goes forward twice
    again = life.died is not None and life.died[0] == life.born[0] and life.died is not life.born
    left = life.died is None or life.died[0] not in FORWARD or life.died[1] != life.born[1] or again
    return "activation" if life.born[0] in FORWARD and left else "temporary"


@dataclass
class Reading:
    """One pass over the tape's steady step.

    Attributes:
        tops: each role's own highest point, requested.
        host: the highest point of each role in host memory.
        at_peak: rounded bytes by role where their sum is highest.
        states: what the kept roles and the optimizer's step come to, and where.
    """

    tops: dict[Role, int]
    host: dict[Role, int]
    at_peak: dict[Role, int]
    states: States


def read(tape: Iterable[Event], steady: int) -> Reading:
    """What the iteration ``steady`` holds."""
    live: dict[Role, int] = {}
    rounded: dict[Role, int] = {}
    host: dict[Role, int] = {}
    tops: dict[Role, int] = {}
    host_tops: dict[Role, int] = {}
    top, at_peak, kept = -1, {}, _Kept()
    iteration, total = 0, 0
    for event in tape:
        if isinstance(event, Mark):
            iteration = event.iteration
            kept.phase = event.phase
            kept.look("", counted=iteration == steady)
            if iteration == steady:
                host_tops = {role: max(size, host_tops.get(role, 0)) for role, size in host.items()}
                tops = {role: max(size, tops.get(role, 0)) for role, size in live.items()} | {
                    role: size for role, size in tops.items() if role not in live
                }
            continue
        assert isinstance(event, Alloc | Free)
        buffer, sign = event.buffer, 1 if isinstance(event, Alloc) else -1
        size, role = int(buffer.requested), buffer.role
        if buffer.place == "host":
            host[role] = host.get(role, 0) + sign * size
            if iteration == steady:
                host_tops[role] = max(host_tops.get(role, 0), host[role])
            continue
        block = -(-size // 512) * 512
        live[role] = live.get(role, 0) + sign * size
        rounded[role] = rounded.get(role, 0) + sign * block
        total += sign * block
        kept.add(buffer, sign, block, counted=iteration == steady)
        if iteration == steady:
            tops[role] = max(tops.get(role, 0), live[role])
            if total > top:
                top, at_peak = total, {role: size for role, size in rounded.items() if size}
    return Reading(tops, host_tops, at_peak, kept.states())


class _Kept:
    """The highest instant of what is kept, beside what the step needs for a moment."""

    def __init__(self) -> None:
        self.phase: Phase = "init"
        self.live = {"requested": 0, "rounded": 0, "bound": 0}
        self.roles: dict[Role, int] = {}
        self.best: tuple[dict[str, int], dict[Role, int], Phase, str] = ({"rounded": -1}, {}, "init", "")
        self.inside: set[int] = set()

    def add(self, buffer: Buffer, sign: int, block: int, *, counted: bool) -> None:
        """One birth or death on the device."""
        if sign > 0 and (buffer.role in KEPT or self.phase in STEP or buffer.site.startswith(SCALER)):
            self.inside.add(id(buffer))
        elif id(buffer) not in self.inside:
            return
        if sign < 0:
            self.inside.discard(id(buffer))
        size = int(buffer.requested)
        spare = MIB if size > MIB else 0
        for key, value in (("requested", size), ("rounded", block), ("bound", block + spare)):
            self.live[key] += sign * value
        self.roles[buffer.role] = self.roles.get(buffer.role, 0) + sign * block
        # clipping's own moments are not the optimizer's, but what it leaves is alive in them (GradScaler's found_inf)
        self.look(buffer.site, counted=counted and self.phase != "clip")

    def look(self, site: str, *, counted: bool) -> None:
        """Whether this is the highest instant."""
        if counted and self.live["rounded"] > self.best[0]["rounded"]:
            self.best = dict(self.live), dict(self.roles), self.phase, site

    def states(self) -> States:
        """As a footprint has it."""
        live, roles, phase, site = self.best
        at_peak = {COMPONENTS[role]: roles[role] for role in ROLES if roles.get(role)}
        return States(
            requested=live.get("requested", 0), rounded=max(live["rounded"], 0), bound=live.get("bound", 0), phase=phase,
            instant=site, at_peak=at_peak,
        )  # fmt: skip


@dataclass
class Told:
    """What a footprint needs beside the tape."""

    model: ModelSummary
    job: dict[str, Any]
    parts: Mapping[str, int]
    stage: int
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


def footprint_of(tape: list[Event], played: Replay, told: Told, steady: int) -> Footprint:
    """The footprint of the steady step, with its bounds."""
    reading = read(tape, steady)
    at_peak = {COMPONENTS[role]: reading.at_peak[role] for role in ROLES if reading.at_peak.get(role)}
    top = played.peak("allocated", iteration=steady)
    components = {COMPONENTS[role]: reading.tops.get(role, 0) for role in ROLES}
    components["context"] = None  # type: ignore[assignment]
    requested = played.peak("requested", iteration=steady)
    rounded = played.peak("rounded", iteration=steady)
    assert rounded.bytes == sum(at_peak.values()), (rounded, at_peak)
    count = told.model.num_parameters
    footprint = Footprint(
        model=told.model, job=told.job, engine="trace", components=Components(**components),
        optimizer_states=dict(told.parts),
        peak=Peak(
            requested=requested.bytes, rounded=rounded.bytes, allocated=top.bytes,
            reserved=played.peak("reserved", iteration=steady).bytes, low=rounded.bytes, phase=top.phase, instant=top.site,
            iteration=steady,
        ),
        states=reading.states, at_peak=at_peak,
        phases={
            phase: {f"peak_{name}": value for name, value in peaks.items() if name in ("requested", "allocated", "reserved")}
            for (iteration, phase), peaks in played.phases().items()
            if iteration == steady
        },
        host={
            "optimizer_states": reading.host.get("optimizer_state", 0),
            **{COMPONENTS[role]: size for role, size in reading.host.items() if role != "optimizer_state" and size},
        },
        ranks=(Rank(0, 1, top.bytes, reading.states.rounded),), unattributed=None,
        textbook=card(
            told.job["training"]["optimizer"], count, told.model.num_trainable_parameters, told.stage, 1
        ),
        assumptions=told.assumptions, warnings=told.warnings,
        buffers=tuple(
            Held(COMPONENTS[one.buffer.role], one.buffer.site, int(one.buffer.requested), 1, "device", "at the peak")
            for one in played.at(rounded.event).live
        ),
        bytes_per_parameter={
            name: None if size is None or not count else round(size / count, 6) for name, size in components.items()
        },
    )  # fmt: skip
    return bounded(footprint)
