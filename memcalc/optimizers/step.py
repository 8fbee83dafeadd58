"""From an entry to what its step makes and lets go, in order, and from that to the bytes it needs: ints or arrays alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from memcalc.arrays import Count
from memcalc.kernels.reduction import Chip
from memcalc.optimizers.base import Implementation, Optimizer, Options, Param, Temporary
from memcalc.optimizers.player import Node, Player, chosen, in_a_row, leaves
from memcalc.optimizers.script import Op, Section
from memcalc.tape.events import Event, Repeat, Role
from memcalc.tape.fold import fold

Size = Callable[[Count], Count]


def as_it_is(nbytes: Count) -> Count:
    """A buffer takes the bytes it asked for."""
    return nbytes


def measured(entry: Optimizer) -> bool:
    """Whether what its step needs is known."""
    return entry.script is not None or entry.temporaries is not None


def step_events(
    entry: Optimizer,
    nodes: Sequence[Node],
    options: Options,
    form: Implementation,
    *,
    known: bool = True,
    chip: Chip | None = None,
    zeros: Role = "gradient",
) -> list[Event]:
    """One call of the optimizer's step beyond what it keeps, as allocations and frees; nothing where nobody has measured it.

    Args:
        entry: the optimizer.
        nodes: what the step walks, in the model's order.
        options: the resolved options.
        form: the form of the step.
        known: whether each of them is one tensor; else it stands for many of unknown shapes, and only lists are told.
        chip: the GPU, which decides what its reductions need; left out where it is not told.
        zeros: what a gradient is that the step makes where none has come.
    """
    player = Player(chip, fills=zeros if entry.fills else None)
    events: list[Event] = []
    for group in _groups(entry, nodes, options, form):
        code = sections(entry, [param for _, param in leaves(group)], options, form)
        events += player.run([section for section in code if known or not section.in_turn], group)
    return events + player.end()


def step_bytes(entry: Optimizer, params: Sequence[Param], options: Options, size: Size = as_it_is) -> Count | None:
    """The most bytes one step allocates at once over these parameters.

    Args:
        entry: the optimizer.
        params: what the step walks, in its order; ``count`` equal ones follow each other.
        options: the resolved options.
        size: what one buffer takes: its bytes as they are, or rounded up to the allocator's blocks.

    Returns:
        Bytes, or None where nobody has measured them.
    """
    if not measured(entry):
        return None
    events = step_events(entry, in_a_row(params), options, entry.implementation(options))
    return fold([Repeat(1, tuple(events))], size).stretch.top  # of one role, which is folded the fast way


def sections(entry: Optimizer, params: Sequence[Param], options: Options, form: Implementation) -> list[Section]:
    """The step's code: the entry's script, else its moments one after another."""
    script = entry.script(options, form) if entry.script else None
    if script is not None:
        return list(script)
    if entry.temporaries is None:
        return []
    temporaries = entry.temporaries
    moments = dict.fromkeys(term.moment for param in params for term in temporaries(param, options, form))
    return [
        section
        for moment in moments
        for section in _moment(
            lambda param, moment=moment: [t for t in temporaries(param, options, form) if t.moment == moment]  # type: ignore[misc]
        )
    ]


def _moment(terms: Callable[[Param], Sequence[Temporary]]) -> list[Section]:
    """The lists, and beside them the loop: what a tensor leaves is made as its turn ends, and dies as the next one's does."""

    def lists(param: Param) -> Iterable[Op]:
        return _ops("list", terms(param), "sum")

    def turn(param: Param) -> Iterable[Op]:
        told = terms(param)
        yield from _ops("own", told, "max")
        yield Op("-", "own*")
        yield Op("-", "left*")
        yield from _ops("left", told, "previous")

    return [
        Section(False, lists), Section(True, turn), Section(True, lambda _: [Op("-", "left*")]),
        Section(False, lambda _: [Op("-", "list*")]),
    ]  # fmt: skip


def _ops(prefix: str, terms: Sequence[Temporary], over: str) -> list[Op]:
    return [
        Op("+", f"{prefix} {term.name}.{index}", term.nbytes, term.count)
        for index, term in enumerate(terms) if term.over == over
    ]  # fmt: skip


def _groups(entry: Optimizer, nodes: Sequence[Node], options: Options, form: Implementation) -> list[Sequence[Node]]:
    """Tensors as the step groups them: by the entry's own groups, and lists by dtype as well."""

    def key(param: Param) -> tuple[object, ...]:
        lists = () if form == "single" else (param.dtype, param.grad_dtype, entry.alike is not None and entry.alike(param))
        return (entry.group(param, options) if entry.group else 0, *lists)

    keys = dict.fromkeys(key(param) for _, param in leaves(nodes))
    ordered = sorted(keys, key=lambda one: one[0])  # type: ignore[arg-type,return-value]
    if len(ordered) < 2:
        return [nodes] if ordered else []
    return [chosen(nodes, lambda param, one=one: key(param) == one) for one in ordered]  # type: ignore[misc]
