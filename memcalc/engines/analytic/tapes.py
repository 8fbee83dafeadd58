"""The tape of whole steps: forward and backward as they were played, and what stands around them in its place."""

from __future__ import annotations

from collections.abc import Sequence

from memcalc.arrays import Count
from memcalc.parallelism.base import Holding
from memcalc.records import dataclass, replace
from memcalc.tape.events import Alloc, Buffer, Event, Mark, allocs, frees, outliving


@dataclass
class Played:
    """Forward and backward of one iteration.

    Attributes:
        before: what the iteration finds: its inputs.
        events: from the first mark to the end of backward.
        gradients: what is left for the update, and how many of each.
        workspaces: what libraries took at first use, and keep.
        assumed: what was assumed on the way.
        first: the events of the first iteration, where others than ``events``: states born inside backward.
    """

    before: tuple[Event, ...]
    events: tuple[Event, ...]
    gradients: tuple[tuple[Buffer, Count], ...]
    workspaces: tuple[Buffer, ...]
    assumed: tuple[str, ...]
    first: tuple[Event, ...] | None = None


@dataclass
class Around:
    """What stands around forward and backward.

    Attributes:
        resident: what is kept from the start, for good.
        states: what the optimizer keeps from its first step on.
        clip: what clipping takes for a moment; empty where nothing is clipped.
        update: what the optimizer's step takes for a moment.
        early: what an engine does in its step before the optimizer's own, where states are born.
        born_inside: whether states are born inside the first backward.
    """

    resident: Sequence[Holding]
    states: Sequence[Holding]
    clip: Sequence[Event]
    update: Sequence[Event]
    early: Sequence[Event] = ()
    born_inside: bool = False


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
    born = [allocs(held.buffer, held.times) for held in around.states]
    if played.first is None:
        tape += _iteration(around, played, 1, born)
    else:  # states were born inside backward, or with the optimizer
        tape += () if around.born_inside else born
        tape += _iteration(around, replace(played, events=played.first), 1)
    return tape + _iteration(around, played, 2)


def _iteration(around: Around, played: Played, number: int, born: Sequence[Event] = ()) -> list[Event]:
    """One iteration's events; ``born`` are those of its update alone."""
    tape = [Mark(event.phase, number) if isinstance(event, Mark) else event for event in played.events]
    if around.clip:
        tape += [Mark("clip", number), *around.clip]
    tape += [Mark("optimizer_step", number), *around.early, *born, *around.update, Mark("zero_grad", number)]
    gone = (*played.gradients, *outliving(around.update, "gradient"))  # an optimizer may have made some itself
    return [*tape, *(frees(buffer, times) for buffer, times in gone)]
