"""What is kept, to the byte: parameters, copies, masters, gradients, optimizer states, buckets, and the step's own needs.

A layout and an optimizer become a tape of one steady step, and the tape is folded. Numbers are ints for one job and int64
arrays for many; this is the only implementation of either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from memcalc.arrays import Count, is_array, maximum, rounded, where
from memcalc.engines.analytic.update import fills, kernels_events, own_masters
from memcalc.errors import InputError
from memcalc.models import Model
from memcalc.optimizers.base import Param, State
from memcalc.parallelism.base import Holding, Layout, ScalarOnlyError, scalar
from memcalc.parallelism.engines import layouts
from memcalc.plan import Plan
from memcalc.records import dataclass, replace
from memcalc.tape.events import Buffer, Event, Mark, Repeat, Role, allocs, frees, outliving, within
from memcalc.tape.fold import Fold, fold, requested
from memcalc.units import MIB

MODELLED: tuple[Role, ...] = (
    "parameter", "parameter_copy", "master_parameter", "buffer", "cache", "gradient", "optimizer_state", "communication",
)  # fmt: skip
"""Roles this engine knows whole; the others are null until the step is modelled."""


@dataclass
class Account:
    """One layout, counted: its tape of one steady step, folded in each measure when that is asked for.

    Attributes:
        layout: whose.
        tape: one steady step.
        states: (part, buffers) of every state tensor.
    """

    layout: Layout
    tape: Sequence[Event]
    states: Sequence[tuple[str, Holding]]

    @cached_property
    def by_requested(self) -> Fold:
        """The tape folded in requested bytes."""
        return fold(self.tape, requested)

    @cached_property
    def by_rounded(self) -> Fold:
        """The same in blocks of 512 B."""
        return fold(self.tape, rounded)

    @cached_property
    def by_bound(self) -> Fold:
        """The same with the largest remainder an unsplit block may keep, an upper bound of what is allocated."""
        return fold(self.tape, allocated_bound)

    @cached_property
    def parts(self) -> dict[str, Count]:
        """Device bytes of optimizer state, by part."""
        parts: dict[str, Count] = {}
        for part, held in self.states:
            if held.buffer.place == "device" and held.buffer.role == "optimizer_state":
                parts[part] = parts.get(part, 0) + held.buffer.requested * held.times
        return parts

    @cached_property
    def host(self) -> Count:
        """Requested bytes in CPU memory."""
        return fold(self.tape, requested, "host").stretch.top

    @cached_property
    def managed(self) -> Count:
        """Requested bytes in managed memory."""
        return fold(self.tape, requested, "managed").stretch.top


def accounts(plan: Plan, model: Model, ranks: int) -> list[Account]:
    """Every distinct layout's account, the fullest first.

    ``ranks`` says whether there are several (any number above 1 will do).

    Raises:
        ScalarOnlyError: there are several layouts, and which is the fullest differs from job to job.
    """
    laid = layouts(plan.setting(model), plan.backend, ranks)
    if any(_more_for_less(plan, layout) for layout in laid):
        raise ScalarOnlyError
    counted = [account(plan, layout, model) for layout in laid]
    if len(counted) > 1:
        counted.sort(key=lambda one: -scalar(one.by_rounded.stretch.top))
    return counted


def _more_for_less(plan: Plan, layout: Layout) -> bool:
    """Whether in any job a smaller piece of a tensor has more state: quantised optimizers leave odd or small ones whole."""
    for more, less in zip(layout.params, layout.lesser, strict=False):
        if more.numel is less.numel:
            continue
        excess = _state_blocks(plan, less) > _state_blocks(plan, more)
        if excess.any() if is_array(excess) else excess:  # type: ignore[union-attr]
            return True
    return False


def _state_blocks(plan: Plan, param: Param) -> Count:
    """Device bytes of one parameter's states, in blocks."""
    states = plan.optimizer.states(param, plan.options)
    return sum((rounded(state.nbytes) * state.count for state in states if state.place == "device"), 0)


def account(plan: Plan, layout: Layout, model: Model) -> Account:
    """One layout's tape.

    Raises:
        InputError: the engine hands the optimizer a flat partition, and it takes matrices alone.
    """
    refused = [param for param in layout.params if plan.optimizer.accepts(param) is False]
    if refused:
        name, rank = plan.optimizer.name, len(refused[0].shape)
        raise InputError(
            "training.optimizer", name, f"takes only {plan.optimizer.needs}, and {plan.backend} hands it {rank}-D tensors",
            "use zero_stage 0, zero_backend fsdp2 or another optimizer",
        )  # fmt: skip
    update = kernels_events(plan, layout, model)
    states = list(state_holdings(plan, layout.params))
    alone = plan.steps_alone and model.shapes_known
    kept = [holding for _, holding in states]
    return Account(layout, list(steady_step(plan, layout, kept, update, alone=alone)), states)


def allocated_bound(size: Count) -> Count:
    """The most one buffer may count as allocated: a block over 1 MiB is handed out whole if its remainder is at most 1 MiB.

    source: pytorch c10/cuda/CUDACachingAllocator.cpp:should_split (kSmallSize = 1 MiB)
    """
    blocks = rounded(size)
    return blocks + where(blocks > MIB, MIB, 0)


def state_holdings(plan: Plan, params: Iterable[Param]) -> Iterable[tuple[str, Holding]]:
    """(part, buffers) of every state tensor the optimizer keeps for these parameters, shared tables last."""
    handed = plan.optimizer.minded(params)
    if plan.in_backward and plan.optimizer.born != "init":  # its instance is stepped by the gradient's arrival alone
        handed = [param for param in handed if not param.idle]
    for param in handed:
        for state in plan.optimizer.states(param, plan.options):
            yield state.part, _held(state, f"{param.name} {state.name}", param.count)
    if plan.optimizer.shared is None:
        return
    if plan.in_backward:  # every instance has its own
        for param in handed:
            for state in plan.optimizer.shared([replace(param, count=1)], plan.options):
                held = _held(state, f"{param.name} {state.name}", param.count)
                yield state.part, held
    else:
        for state in plan.optimizer.shared(handed, plan.options):
            yield state.part, _held(state, state.name, 1)


def _held(state: State, site: str, times: Count) -> Holding:
    role: Role = "master_parameter" if state.part == "master" else "optimizer_state"
    return Holding(Buffer(site, state.nbytes, role, state.place), state.count * times)


def steady_step(
    plan: Plan, layout: Layout, states: list[Holding], update: Sequence[Event], *, alone: bool = False
) -> Iterable[Event]:
    """One step of a run that is under way: what is kept is there from the start.

    ``alone`` says that every parameter takes its step inside backward, each in ``update`` beside its own gradient.
    """
    gradients = () if alone else gradients_held(plan, layout)
    step = () if own_masters(plan) else layout.step  # memcalc's own step says itself what it casts
    kept = keeps_gradients(plan)
    yield Mark("init")
    yield from _all(allocs, (*layout.resident, *states, *(gradients if kept else ())))
    yield Mark("forward")
    yield from _all(allocs, layout.forward)
    yield Mark("backward")
    yield from _all(frees, layout.forward)
    yield from within(_pairs(layout.backward))
    yield from _all(allocs, () if kept else gradients)
    # Later micro-batches run with the gradients of the first already there.
    again = tuple(within(_pairs(layout.forward)))
    if again:
        yield Repeat(plan.accumulation - 1, again)
    if alone:
        yield Repeat(1, tuple(update))
        update = ()
    yield Mark("optimizer_step")
    yield from _all(allocs, (*layout.cast, *step))
    yield from _all(frees, layout.cast)
    if layout.early and not kept:
        yield from _all(frees, gradients)
    yield Repeat(1, tuple(update))  # of one role, which is folded the fast way
    yield from _all(frees, step)
    yield Mark("zero_grad")
    if not layout.early and not kept:
        yield from _all(frees, gradients)
    for buffer, times in outliving(update, "gradient"):
        yield frees(buffer, times)


def keeps_gradients(plan: Plan) -> bool:
    """Whether gradients are there from the start of a steady step, as ``zero_grad`` has but filled them with zeros."""
    return plan.keeps_gradients and not plan.frees_gradients


def gradients_held(plan: Plan, layout: Layout) -> tuple[Holding, ...]:
    """The gradients that are alive at once: the largest alone where each is used and freed as it comes."""
    if not plan.frees_gradients:
        return (*layout.gradients, *filled(plan, layout)) if keeps_gradients(plan) else layout.gradients
    largest: Count = 0
    for held in layout.gradients:
        largest = maximum(largest, where(held.times > 0, held.buffer.requested, 0))
    return (Holding(Buffer("largest gradient", largest, "gradient")),)


def filled(plan: Plan, layout: Layout) -> list[Holding]:
    """Gradients of zeros that the optimizer's step makes of parameters without one, and leaves to ``zero_grad``.

    Those of memcalc's own masters go with the update.
    """
    if not fills(plan) or own_masters(plan):
        return []
    idle = (param for param in layout.params if param.idle)
    return [Holding(Buffer(f"{param.name} grad of zeros", param.nbytes, "gradient"), param.count) for param in idle]


def _pairs(holdings: Iterable[Holding]) -> list[tuple[Buffer, Count]]:
    return [(held.buffer, held.times) for held in holdings]


def _all(verb: object, holdings: Iterable[Holding]) -> Iterable[Event]:
    for held in holdings:
        yield verb(held.buffer, held.times)  # type: ignore[operator]
