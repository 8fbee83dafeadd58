"""The bytes of one instant, added up by module, operator or role; nothing is counted twice and nothing is left out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import field
from typing import Any, Literal, get_args

from memcalc.errors import InputError, did_you_mean
from memcalc.records import dataclass
from memcalc.tape.events import Buffer
from memcalc.timeline.timeline import Life, Timeline

By = Literal["module", "operator", "role"]
BYS: tuple[By, ...] = get_args(By)
NONE = {"module": "(no module)", "operator": "(no operator)", "role": "(no role)"}
"""What stands for an empty name."""
_NUMBERS = re.compile(r"(?<=\.)\d+(?=\.|\Z)|\A\d+(?=\.|\Z)")


@dataclass(frozen=True, slots=True)
class Group:
    """Buffers that go together at an instant: their name, bytes, how many there are, and how many modules the name covers."""

    name: str
    bytes: int
    buffers: int
    covers: int = 1


@dataclass(slots=True)
class Node:
    """A module: its own bytes, those of everything under its dotted path, and its children, the largest first."""

    name: str
    path: str
    bytes: int = 0
    own: int = 0
    buffers: int = 0
    children: list[Node] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, children and all."""
        return {
            "name": self.name, "path": self.path, "bytes": self.bytes, "own": self.own, "buffers": self.buffers,
            "children": [child.to_dict() for child in self.children],
        }  # fmt: skip


def by(timeline: Timeline, how: str, instant: int | None = None, *, fold: bool = False) -> list[Group]:
    """Groups alive at an instant (the peak by default), the largest first; their bytes sum to the instant's total.

    Args:
        timeline: whose instant.
        how: ``module`` (a buffer counts for the module that made it, not for those around it), ``operator`` or ``role``.
        instant: which.
        fold: whether modules that differ only in numbers are one, as ``h.*.mlp``; ``covers`` says how many.

    Raises:
        InputError: ``how`` is none of the three.
    """
    if how not in BYS:
        raise InputError("--by", how, "is not a way to group", did_you_mean(how, BYS))
    sums: dict[str, tuple[int, int, set[str]]] = {}
    for index in timeline.alive(timeline.peak.instant if instant is None else instant):
        one = timeline.lives.buffers[index]
        name = _key(one, how)
        shown = _NUMBERS.sub("*", name) if fold and how == "module" else name
        size, count, names = sums.get(shown, (0, 0, set()))
        names.add(name)
        sums[shown] = (size + int(timeline.sizes[index]), count + 1, names)
    groups = [Group(name, size, count, len(names)) for name, (size, count, names) in sums.items()]
    return sorted(groups, key=lambda group: (-group.bytes, group.name))


def modules(timeline: Timeline, instant: int | None = None) -> Node:
    """The bytes of an instant as a tree along the dotted paths of modules; a node's bytes are its own and its children's.

    A buffer of no module is the root's own.
    """
    root = Node("", "")
    known = {"": root}
    for index in timeline.alive(timeline.peak.instant if instant is None else instant):
        path = timeline.lives.buffers[index].module
        size = int(timeline.sizes[index])
        node = _node(known, path)
        node.own += size
        while True:
            node.bytes += size
            node.buffers += 1
            if node is root:
                break
            node = known[node.path.rpartition(".")[0]]
    for node in known.values():
        node.children.sort(key=lambda child: (-child.bytes, child.path))
    return root


def shares(sizes: Iterable[int], digits: int = 1) -> list[float]:
    """Per cent of the sum, rounded so that they add up to 100: the largest remainders are rounded up.

    >>> shares([1, 1, 1]), shares([]), shares([0])
    ([33.4, 33.3, 33.3], [], [0.0])
    """
    counts = list(sizes)
    whole, total = 100 * 10**digits, sum(counts)
    if not total:
        return [0.0] * len(counts)
    parts = [divmod(size * whole, total) for size in counts]
    missing = whole - sum(part for part, _ in parts)
    raised = set(sorted(range(len(parts)), key=lambda at: (-parts[at][1], at))[:missing])
    return [round((part + (at in raised)) / 10**digits, digits) for at, (part, _) in enumerate(parts)]


def by_rows(timeline: Timeline, how: str, instant: int | None = None) -> list[dict[str, Any]]:
    """The groups of an instant as plain data: name, bytes, share in per cent (adding up to 100), buffers."""
    groups = by(timeline, how, instant)
    percents = shares(group.bytes for group in groups)
    return [
        {"name": group.name, "bytes": group.bytes, "share": percent, "buffers": group.buffers}
        for group, percent in zip(groups, percents, strict=True)
    ]


def top_rows(timeline: Timeline, most: int, instant: int | None = None) -> list[dict[str, Any]]:
    """The largest buffers alive at an instant as plain data."""
    return [life_row(life) for life in timeline.largest(most, instant)]


def life_row(life: Life) -> dict[str, Any]:
    """One buffer's life as plain data; ``dies`` is null where the tape ends first."""
    one = life.buffer
    ends = {
        key: None if at is None else {"instant": at.instant, "phase": at.phase, "iteration": at.iteration}
        for key, at in (("born", life.born), ("dies", life.dies))
    }
    return {
        "site": one.site, "bytes": life.bytes, "requested": one.requested, "role": one.role,
        "shape": None if one.shape is None else list(one.shape), "dtype": one.dtype, "module": one.module,
        "operator": one.operator, "stream": one.stream, **ends,
    }  # fmt: skip


def _key(one: Buffer, how: str) -> str:
    named = {"module": one.module, "operator": one.operator, "role": one.role}[how]
    return named or NONE[how]


def _node(known: dict[str, Node], path: str) -> Node:
    """The node of a path, made with those above it where there is none yet."""
    if path not in known:
        above, _, name = path.rpartition(".")
        known[path] = Node(name, path)
        _node(known, above).children.append(known[path])
    return known[path]
