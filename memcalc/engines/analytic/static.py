"""What is kept, to the byte: parameters, copies, masters, gradients, optimizer states, buckets, and the step's own needs.

A layout and an optimizer become a tape of one steady step, and the tape is folded. Numbers are ints for one job and int64
arrays for many; this is the only implementation of either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from memcalc.arrays import Count, maximum, rounded, where
from memcalc.engines.analytic.needs import Needs, step_needs
from memcalc.engines.analytic.plan import Plan
from memcalc.models import Model
from memcalc.optimizers.base import Param, State
from memcalc.parallelism.base import Holding, Layout
from memcalc.parallelism.engines import layouts
from memcalc.records import dataclass
from memcalc.tape.events import Buffer, Event, Mark, Repeat, Role, allocs, frees, within
from memcalc.tape.fold import Fold, fold, requested
from memcalc.units import MIB

MODELLED: tuple[Role, ...] = (
    "parameter", "parameter_copy", "master_parameter", "buffer", "gradient", "optimizer_state", "communication",
)  # fmt: skip
"""Roles this engine knows whole; the others are null until the step is modelled."""


@dataclass(frozen=True, slots=True)
class Account:
    """One layout, counted.

    Attributes:
        layout: whose.
        by_requested: the tape folded in requested bytes.
        by_rounded: the same in blocks of 512 B.
        by_bound: the same with the largest remainder an unsplit block may keep, an upper bound of what is allocated.
        parts: device bytes of optimizer state, by part.
        host: requested bytes in CPU memory.
        managed: requested bytes in managed memory.
    """

    layout: Layout
    by_requested: Fold
    by_rounded: Fold
    by_bound: Fold
    parts: dict[str, Count]
    host: Count
    managed: Count


def accounts(plan: Plan, model: Model, ranks: int) -> list[Account]:
    """Every distinct layout's account, the fullest first.

    ``ranks`` says whether there are several (any number above 1 will do).
    """
    counted = [account(plan, layout, model) for layout in layouts(plan.setting(model), plan.backend, ranks)]
    if len(counted) > 1:
        counted.sort(key=lambda one: -int(one.by_rounded.stretch.top))
    return counted


def account(plan: Plan, layout: Layout, model: Model) -> Account:
    """One layout's tape, folded in every measure."""
    needs = step_needs(plan, layout, model)
    states = list(state_holdings(plan, layout.params))
    tape = list(steady_step(plan, layout, [holding for _, holding in states], needs))
    parts: dict[str, Count] = {}
    for part, held in states:
        if held.buffer.place == "device" and held.buffer.role == "optimizer_state":
            parts[part] = parts.get(part, 0) + held.buffer.requested * held.times
    return Account(
        layout=layout,
        by_requested=fold(tape, requested),
        by_rounded=fold(tape, rounded),
        by_bound=fold(tape, allocated_bound),
        parts=parts,
        host=fold(tape, requested, "host").stretch.top,
        managed=fold(tape, requested, "managed").stretch.top,
    )


def allocated_bound(size: Count) -> Count:
    """The most one buffer may count as allocated: a block over 1 MiB is handed out whole if its remainder is at most 1 MiB.

    source: pytorch c10/cuda/CUDACachingAllocator.cpp:should_split (kSmallSize = 1 MiB)
    """
    blocks = rounded(size)
    return blocks + where(blocks > MIB, MIB, 0)


def state_holdings(plan: Plan, params: Iterable[Param]) -> Iterable[tuple[str, Holding]]:
    """(part, buffers) of every state tensor the optimizer keeps for these parameters, shared tables last."""
    handed = list(params)
    for param in handed:
        for state in plan.optimizer.states(param, plan.options):
            yield state.part, _held(state, f"{param.name} {state.name}", param.count)
    if plan.optimizer.shared is not None:
        for state in plan.optimizer.shared(handed, plan.options):
            yield state.part, _held(state, state.name, 1)


def _held(state: State, site: str, times: Count) -> Holding:
    role: Role = "master_parameter" if state.part == "master" else "optimizer_state"
    return Holding(Buffer(site, state.nbytes, role, state.place), state.count * times)


def steady_step(plan: Plan, layout: Layout, states: list[Holding], needs: Mapping[str, Needs]) -> Iterable[Event]:
    """One step of a run that is under way: what is kept is there from the start."""
    gradients = layout.gradients
    if plan.optimizer.frees_gradients:
        gradients = _one_at_a_time(gradients)
    yield Mark("init")
    yield from _all(allocs, (*layout.resident, *states))
    yield Mark("forward")
    yield from _all(allocs, layout.forward)
    yield Mark("backward")
    yield from _all(frees, layout.forward)
    yield from within(_pairs(layout.backward))
    yield from _all(allocs, gradients)
    # Later micro-batches run with the gradients of the first already there.
    again = tuple(within(_pairs(layout.forward)))
    if again:
        yield Repeat(plan.accumulation - 1, again)
    yield Mark("optimizer_step")
    yield from _all(allocs, (*layout.cast, *layout.step))
    yield from _all(frees, layout.cast)
    if layout.early:
        yield from _all(frees, gradients)
    for live in needs.values():
        yield from within(live)
    yield from _all(frees, layout.step)
    yield Mark("zero_grad")
    if not layout.early:
        yield from _all(frees, gradients)


def _one_at_a_time(gradients: tuple[Holding, ...]) -> tuple[Holding, ...]:
    """The largest gradient alone: an optimizer that updates in the backward hook frees each as it comes."""
    largest: Count = 0
    for held in gradients:
        largest = maximum(largest, where(held.times > 0, held.buffer.requested, 0))
    return (Holding(Buffer("largest gradient", largest, "gradient")),)


def _pairs(holdings: Iterable[Holding]) -> list[tuple[Buffer, Count]]:
    return [(held.buffer, held.times) for held in holdings]


def _all(verb: object, holdings: Iterable[Holding]) -> Iterable[Event]:
    for held in holdings:
        yield verb(held.buffer, held.times)  # type: ignore[operator]
