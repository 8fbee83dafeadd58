"""Lists of layers whose kinds alternate, played: each stretch that repeats itself is played once for all its turns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from memcalc.arrays import Condition, Count, minimum
from memcalc.families._alternating import Order, in_turns
from memcalc.layers.attending import Context
from memcalc.play.checkpoint import checkpointed
from memcalc.play.machine import Machine
from memcalc.play.values import Value

Play = Callable[[Machine, Any, Value, Context], Value]


def run_kinds(
    machine: Machine,
    name: str,
    layers: Mapping[str, Any],
    order: Order,
    play: Play,
    hidden: Value,
    contexts: Mapping[str, Context],
) -> Value:
    """Each layer by the kind it is of, fed with what the one before it gave.

    Of a stretch of equal turns the first and the last are played as they are, those between them once.
    """
    box = [hidden]
    del hidden

    def turn(kinds: Sequence[str], label: Callable[[int], str]) -> None:
        for place, kind in enumerate(kinds):
            context = contexts[kind]
            box[0] = machine.call(f"{name}.{label(place)}", checkpointed, machine, play, machine, layers[kind], box[0], context)

    number = 0
    for stretch, (kinds, times) in enumerate(order):
        if machine.unrolled or machine.decide(times <= 3):
            number = _unrolled(machine, turn, kinds, times, number)
            continue
        turn(kinds, lambda place, stretch=stretch: f"{stretch}-first-{place}")  # type: ignore[misc]
        _middle(machine, turn, kinds, times - 2, stretch, box)
        turn(kinds, lambda place, stretch=stretch: f"{stretch}-last-{place}")  # type: ignore[misc]
    return box.pop()


def _unrolled(machine: Machine, turn: Callable[..., None], kinds: Sequence[str], times: Count, number: int) -> int:
    done = 0
    while machine.decide(done < times):
        turn(kinds, lambda place, start=number: str(start + place))
        number += len(kinds)
        done += 1
    return number


def _middle(
    machine: Machine, turn: Callable[..., None], kinds: Sequence[str], times: Count, stretch: int, box: list[Value]
) -> None:
    machine.repeated(times, lambda: turn(kinds, lambda place: f"{stretch}-*-{place}"), box)


def every(machine: Machine, total: Count, step: Count) -> Order:
    """Every ``step``-th layer attends to everything, the others slide."""
    slide = ("sliding_attention",)
    turn: tuple[str, ...] = ("full_attention",)
    while machine.decide(len(turn) < step):
        turn = slide + turn
    rest: tuple[tuple[tuple[str, ...], Count], ...] = ()
    while machine.decide(len(rest) < total % step):
        rest += ((slide, 1),)
    return ((turn, total // step), *rest)


def sliding_from(total: Count, first: Count) -> Order:
    """The layers before ``first`` attend to everything, those from it on slide."""
    full = minimum(first, total)
    return ((("full_attention",), full), (("sliding_attention",), total - full))


def all_full(total: Count) -> Order:
    """Every layer attends to everything."""
    return ((("full_attention",), total),)


def kinds_in(machine: Machine, order: Order) -> set[str]:
    """The kinds that occur."""
    return {kind for turn, times in order if machine.decide(times > 0) for kind in turn}


def in_steps(machine: Machine, total: Count, step: Count, never: Collection[int], present: Condition) -> Order:
    """Every ``step``-th layer is ``sparse`` but those in ``never``, the others ``dense``; all are where none may be sparse."""
    dense: tuple[str, ...] = ("dense",)
    if not machine.decide(present):
        return ((dense, total),)
    if never:
        kinds: list[str] = []
        while machine.decide(len(kinds) < total):
            index = len(kinds)
            kinds.append("sparse" if index not in never and machine.decide((index + 1) % step == 0) else "dense")
        return in_turns(kinds)
    turn: tuple[str, ...] = ("sparse",)
    while machine.decide(len(turn) < step):
        turn = dense + turn
    rest: tuple[tuple[tuple[str, ...], Count], ...] = ()
    while machine.decide(len(rest) < total % step):
        rest += ((dense, 1),)
    return ((turn, total // step), *rest)


def dense_first(total: Count, first: Count) -> Order:
    """The layers before ``first`` are ``dense``, those from it on ``sparse``."""
    dense = minimum(first, total)
    return ((("dense",), dense), (("sparse",), total - dense))
