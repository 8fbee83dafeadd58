"""From a flat list of named tensors to counted ones: ``model.layers.{0..31}.mlp.up_proj.weight`` becomes one Tensor.

A name's components that are whole numbers are its indices. Tensors whose names differ in nothing else, and that are alike
in shape, dtype, kind, role and trainability, form one group; where the indices found are every combination of some numbers
for each axis, the group is one Tensor, otherwise as many as a split along the outer axes gives. Nothing is lost: the names
of what comes back are exactly the names that went in.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeAlias, TypeVar

from memcalc.errors import InputError
from memcalc.records import replace
from memcalc.tensors import Span, Tensor

Index: TypeAlias = tuple[int, ...]
Box: TypeAlias = tuple[tuple[int, ...], ...]
"""For each axis the labels it runs over; the box stands for every combination."""
Likeness = TypeVar("Likeness", bound=Hashable)
MAX_AXES = 8
"""Numbers in a name after the eighth are text: no model nests lists that deep, and a hostile name could by the thousand."""
_NUMBER = re.compile(r"(?<![^.])(?:0|[1-9][0-9]{0,8})(?![^.])")
"""A whole component of plain digits; one with leading zeros would not be printed back as it was and is text."""


def group_tensors(tensors: Iterable[Tensor], path: str = "model") -> tuple[Tensor, ...]:
    """Single tensors, identical ones counted; in the order in which each group's first member came.

    Raises:
        InputError: a name with ``*`` in it, which memcalc keeps for repeated axes, or one that cannot be printed.

    >>> for t in group_tensors([Tensor(f"h.{i}.weight", (4, 4)) for i in range(3)] + [Tensor("norm.weight", (4,))]):
    ...     print(t.name, t.count)
    h.*.weight 3
    norm.weight 1
    """
    groups = gather(((tensor.name, replace(tensor, name="")) for tensor in tensors), path)
    return tuple(tensor for (pattern, alike), indices in groups.items() for tensor in spread(alike, pattern, indices))


def gather(named: Iterable[tuple[str, Likeness]], path: str) -> dict[tuple[str, Likeness], list[Index]]:
    """Names with what they are, gathered under (the name with ``*`` for each index, what it is): the indices found."""
    groups: dict[tuple[str, Likeness], list[Index]] = {}
    for name, alike in named:
        if "*" in name or not name.isprintable():
            what = "* in it" if "*" in name else "characters in it that cannot be printed"
            raise InputError(path, ascii(name)[1:-1], f"is a tensor's name with {what}", "rename the module it belongs to")
        pattern, index = split_name(name)
        groups.setdefault((pattern, alike), []).append(index)
    return groups


def split_name(name: str) -> tuple[str, Index]:
    """The name with ``*`` for each index, and the indices.

    >>> split_name("layers.12.experts.3.w1.weight")
    ('layers.*.experts.*.w1.weight', (12, 3))
    >>> split_name("layer1.weight")
    ('layer1.weight', ())
    """
    index = tuple(map(int, _NUMBER.findall(name)[:MAX_AXES]))
    return (_NUMBER.sub("*", name, count=MAX_AXES) if index else name), index


def spread(alike: Tensor, pattern: str, indices: Sequence[Index]) -> Iterator[Tensor]:
    """The fewest counted tensors of that likeness that stand for ``pattern`` at all those indices."""
    pieces = pattern.split("*")
    for box in boxes(indices, len(pieces) - 1):
        name, count, spans = pieces[0], 1, []
        for labels, text in zip(box, pieces[1:], strict=True):
            if len(labels) == 1:  # an axis with one label keeps the label and is no axis
                name += f"{labels[0]}{text}"
                continue
            name += f"*{text}"
            count *= len(labels)
            spans.append(Span(len(labels), None if labels == tuple(range(len(labels))) else labels))
        yield replace(alike, name=name, count=count, spans=tuple(spans))


def boxes(indices: Sequence[Index], axes: int) -> list[Box]:
    """A split of a set of indices into boxes, each index in exactly one.

    Outer labels that carry the same inner indices share a box; what differs is split along the outer axis.

    >>> boxes([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)], axes=2)
    [((0, 1), (0, 1)), ((2,), (0,))]
    """
    if axes == 0:
        return [()]
    if axes == 1:
        return [(tuple(sorted({index[0] for index in indices})),)]
    inner: dict[int, list[Index]] = {}
    for index in indices:
        inner.setdefault(index[0], []).append(index[1:])
    alike: dict[tuple[Index, ...], list[int]] = {}
    for label in sorted(inner):
        alike.setdefault(tuple(sorted(inner[label])), []).append(label)
    return [(tuple(labels), *box) for rest, labels in alike.items() for box in boxes(rest, axes - 1)]
