"""Scripts played over a model's tensors: the allocations and frees of one step, in order, repetition written once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from memcalc.arrays import Condition, Count, as_count, ceil_div, is_array, maximum, where
from memcalc.kernels.reduction import Chip
from memcalc.optimizers.base import Param
from memcalc.optimizers.script import CHUNK, Op, Section, reduced
from memcalc.tape.events import Alloc, Buffer, Event, Free, Repeat, Role, within

Node: TypeAlias = "tuple[Count, Param | tuple[Node, ...]]"
"""(how often in a row, one parameter or several): the order in which a step walks its tensors."""
Held = tuple[Event, Event]
"""What a name holds: how it was born, and how it dies."""
Left = dict[str, Held]
Which = tuple[str, str, int]
"""An op of a section over lists: sign, name, and the how manieth of these it is."""
Visit = Callable[[Param, Left, Any], tuple[list[Event], Left]]


def assign(left: Left, op: Op) -> list[Event]:
    """A name takes what another holds; what it held before dies."""
    before, held = left.pop(op.name, None), left.pop(op.source, None)
    if held:
        left[op.name] = held
    return [before[1]] if before else []


def foreach_norm(nodes: Sequence[Node]) -> list[Event]:
    """What ``_foreach_norm`` needs for a moment: a partial result for each tensor and chunk of the longest.

    source: pytorch 2.13 aten/src/ATen/native/cuda/ForeachReduceOp.cu:foreach_tensor_norm_cuda
    """
    count: Count = 0
    chunks: Count = 0
    for times, param in leaves(nodes):
        count = count + times
        chunks = maximum(chunks, where(times > 0, ceil_div(param.numel, CHUNK), 0))
    return within([(Buffer("output_per_tensor", count * chunks * 4, "temporary"), 1)]) if _some(count * chunks) else []


def in_a_row(params: Iterable[Param]) -> tuple[Node, ...]:
    """Parameters one after another, equal ones following each other."""
    return tuple((param.count, param) for param in params)


def leaves(nodes: Sequence[Node], times: Count = 1) -> Iterable[tuple[Count, Param]]:
    """(how many of it there are, parameter), in order."""
    for count, what in nodes:
        if isinstance(what, Param):
            yield times * count, what
        else:
            yield from leaves(what, times * count)


def chosen(nodes: Sequence[Node], keep: Callable[[Param], bool]) -> tuple[Node, ...]:
    """The same order without the parameters that are not kept."""
    found: list[Node] = []
    for count, what in nodes:
        if isinstance(what, Param):
            found += [(count, what)] if keep(what) else []
        elif inner := chosen(what, keep):
            found.append((count, inner))
    return tuple(found)


class Player:
    """One function's run: its sections over some tensors, and what its names hold between them."""

    def __init__(self, chip: Chip | None = None, *, fills: Role | None = None) -> None:
        self.chip, self.fills = chip, fills
        self.left: Left = {}
        self._buffers: dict[Any, Buffer] = {}
        self._runs = 0

    def run(self, sections: Iterable[Section], nodes: Sequence[Node]) -> list[Event]:
        """Sections one after another; names live on."""
        events: list[Event] = []
        for section in sections:
            number, self._runs = self._runs, self._runs + 1
            if section.in_turn:

                def visit(param: Param, left: Left, key: Any, section: Section = section) -> tuple[list[Event], Left]:
                    made, left = self.turn(section.body(param), param, left, key)
                    return [*self.filled(param, key), *made], left

                made, self.left = self.walk(nodes, self.left, visit, (number,))
            else:
                made = self.lists(section, nodes, number)
            events += made
        return events

    def end(self) -> list[Event]:
        """The function returns: all its names go."""
        gone = [free for _, free in reversed(self.left.values())]
        self.left = {}
        return gone

    def walk(self, nodes: Sequence[Node], left: Left, visit: Visit, key: Any) -> tuple[list[Event], Left]:
        """A loop over tensors in order: (events, what its names hold at the end)."""
        events: list[Event] = []
        for place, (times, what) in enumerate(nodes):
            if not is_array(times) and not times:
                continue

            def once(left: Left, twin: int, what: Any = what, place: int = place) -> tuple[list[Event], Left]:
                inner = (*key, place, twin)
                if isinstance(what, Param):
                    return visit(what, left, inner)
                return self.walk(what, left, visit, inner)

            made, left = _repeated(times, left, once)
            events += made
        return events, left

    def turn(self, ops: Iterable[Op], param: Param, left: Left, key: Any) -> tuple[list[Event], Left]:
        """One tensor's turn."""
        events: list[Event] = []
        left = dict(left)
        for index, op in enumerate(ops):
            if op.sign == "-":
                events += _let_go(left, op.name)
            elif op.sign == "=":
                events += assign(left, op)
            elif op.sign == "%":
                events += self.scratch(op.name, param)
            elif _some(op.nbytes) and _some(op.times):
                made, _, died = self.held(param, op, (*key, index))
                before = left.pop(op.name, None)
                left[op.name] = (made, died)
                events += [made, before[1]] if before else [made]
            else:
                events += _let_go(left, op.name)
        return events, left

    def filled(self, param: Param, key: Any) -> list[Event]:
        """The gradient of zeros that a step makes for a parameter without one, and leaves there."""
        if self.fills is None or not param.idle:
            return []
        zeros = Buffer(f"{param.name} grad of zeros", param.nbytes, self.fills)
        return [Alloc(self._buffers.setdefault((*key, "filled"), zeros))]

    def scratch(self, which: str, param: Param) -> list[Event]:
        """What a reduction's kernel needs for a moment; nothing is said where the GPU is not known."""
        if self.chip is None:
            return []
        sizes = zip(("partial results", "semaphores"), reduced(which, param, self.chip), strict=True)
        return within([(Buffer(what, size, "temporary"), 1) for what, size in sizes if _some(size)])

    def held(self, param: Param, op: Op, key: Any) -> tuple[Event, Buffer, Event]:
        """The buffers of one op: their birth, one of them, their death."""
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = Buffer(f"{param.name} {op.name.partition('.')[0]}", op.nbytes, "temporary")
        return _times(op.times, Alloc(buffer)), buffer, _times(op.times, Free(buffer))

    def lists(self, section: Section, nodes: Sequence[Node], number: int) -> list[Event]:
        """Code over lists: the first tensor that has an op says where in the code it stands."""
        told = [(times, param, _numbered(section.body(param))) for times, param in leaves(nodes)]
        events: list[Event] = []
        for index, which in enumerate(_merged([list(ops) for _, _, ops in told])):
            sign, name, _ = which
            if sign in "-%":
                events += _let_go(self.left, name) if sign == "-" else foreach_norm(nodes)
                continue
            if sign == "=":
                events += assign(self.left, next(ops[which] for _, _, ops in told if which in ops))
                continue
            if sign == "+":
                births, deaths = self._list(section, nodes, which, (number, index))
            else:
                births, deaths = self._alone(told, which, (number, index))
            before = self.left.pop(name, None)
            events += births
            if before:
                events.append(before[1])
            if births:
                self.left[name] = (Repeat(1, tuple(births)), Repeat(1, tuple(deaths)))
        return events

    def _list(self, section: Section, nodes: Sequence[Node], which: Which, key: Any) -> tuple[list[Event], list[Event]]:
        """One buffer for every tensor: (births in order, deaths from the last to the first)."""
        births: list[Event] = []
        deaths: list[Event] = []
        for place, (times, what) in enumerate(nodes):
            if isinstance(what, Param):
                op = _numbered(section.body(what)).get(which)
                if op is None or not _some(op.nbytes) or not _some(op.times):
                    continue
                born, _, died = self.held(what, op, (*key, place))
                filled = self.scratch(op.source, what) if op.source else []
                births.append(Repeat(times, (born, *filled)) if filled else _times(times, born))
                deaths.insert(0, _times(times, died))
            else:
                inner, gone = self._list(section, what, which, (*key, place))
                if inner:
                    births.append(Repeat(times, tuple(inner)))
                    deaths.insert(0, Repeat(times, tuple(gone)))
        return births, deaths

    def _alone(self, told: list[tuple[Count, Param, Any]], which: Which, key: Any) -> tuple[list[Event], list[Event]]:
        """One buffer as long as all tensors' together (``*``), or as one's (``!``)."""
        total: Count = 0
        for times, _, ops in told:
            if which in ops:
                total = total + ops[which].nbytes * times if which[0] == "*" else ops[which].nbytes
        buffer = self._buffers.setdefault(key, Buffer(which[1], total, "temporary"))
        return ([Alloc(buffer)], [Free(buffer)]) if _some(total) else ([], [])


def _repeated(times: Count, left: Left, once: Callable[[Left, int], tuple[list[Event], Left]]) -> tuple[list[Event], Left]:
    """A body ``times`` over. What it leaves is bound anew in each turn: two sets of buffers take turns, so that none is two."""
    first, after = once(left, 0)
    if isinstance(times, int) and times == 1:
        return first, after
    if after.keys() == left.keys() and all(after[name] is left[name] for name in left):
        return [Repeat(times, tuple(first))] if first else [], left
    if is_array(times):
        again, _ = once(after, 0)
        some = times > 0
        return [Repeat(as_count(some), tuple(first)), Repeat(where(some, times - 1, 0), tuple(again))], _either(
            some, after, left
        )
    second, odd = once(after, 1)
    third, even = once(odd, 0)
    pairs, rest = divmod(int(times) - 1, 2)
    events = [*first, *([Repeat(pairs, (*second, *third))] if pairs else []), *(second if rest else [])]
    return events, odd if rest else even


def _either(condition: Condition, yes: Left, no: Left) -> Left:
    """What names hold where it depends on the job: each of the two, as often as it is there."""
    merged: Left = {}
    for name in {**no, **yes}:
        if yes.get(name) is no.get(name):
            merged[name] = yes[name]
            continue
        pairs = [(as_count(condition), yes.get(name)), (1 - as_count(condition), no.get(name))]
        births = tuple(Repeat(count, (held[0],)) for count, held in pairs if held)
        deaths = tuple(Repeat(count, (held[1],)) for count, held in pairs if held)
        merged[name] = (Repeat(1, births), Repeat(1, deaths))
    return merged


def _numbered(ops: Iterable[Op]) -> dict[Which, Op]:
    found: dict[Which, Op] = {}
    for op in ops:
        number = 0
        while (op.sign, op.name, number) in found:
            number += 1
        found[op.sign, op.name, number] = op
    return found


def _let_go(left: Left, name: str) -> list[Event]:
    names = [known for known in left if known.startswith(name[:-1])] if name.endswith("*") else [name]
    return [left.pop(one)[1] for one in names if one in left]


def _times(times: Count, event: Event) -> Event:
    return event if isinstance(times, int) and times == 1 else Repeat(times, (event,))


def _some(number: Count) -> bool:
    """Whether it is more than 0, in any job."""
    return is_array(number) or bool(number > 0)


def _merged(lists: Sequence[Sequence[Any]]) -> list[Any]:
    """One order that keeps each list's own; what only a later list has stands behind what it follows there."""
    merged: list[Any] = []
    for one in lists:
        place = 0
        for item in one:
            if item in merged:
                place = merged.index(item) + 1
            else:
                merged.insert(place, item)
                place += 1
    return merged
