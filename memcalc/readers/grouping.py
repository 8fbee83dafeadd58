"""From a flat list of named tensors to counted ones: ``model.layers.{0..31}.mlp.up_proj.weight`` becomes one Tensor.

A name's components that are whole numbers are its indices. Tensors whose names differ in nothing else, and whose shape,
dtype, kind, role and trainability agree, form one group; where the indices found are every combination of some numbers for
each axis, the group is one Tensor, otherwise the fewest that a split along the outer axes gives. Nothing is lost: the
names of what comes back are exactly the names that went in.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeAlias

from memcalc.errors import InputError
from memcalc.tensors import Span, Tensor

Index: TypeAlias = tuple[int, ...]
Box: TypeAlias = tuple[tuple[int, ...], ...]
"""For each axis the labels it runs over; the box stands for every combination."""
MAX_AXES = 8
"""Numbers in a name after the eighth are text: no model nests lists that deep, and a hostile name could by the thousand."""


def group_tensors(tensors: Iterable[Tensor], path: str = "model") -> tuple[Tensor, ...]:
    """Single tensors, identical ones counted; in the order in which each group's first member came.

    Raises:
        InputError: a name with ``*`` in it, which memcalc keeps for repeated axes.

    >>> for t in group_tensors([Tensor(f"h.{i}.weight", (4, 4)) for i in range(3)] + [Tensor("norm.weight", (4,))]):
    ...     print(t.name, t.count)
    h.*.weight 3
    norm.weight 1
    """
    groups: dict[Hashable, tuple[Tensor, tuple[str, ...], list[Index]]] = {}
    for tensor in tensors:
        pattern, index = split_name(tensor.name)
        key = (pattern, tensor.shape, tensor.dtype, tensor.kind, tensor.role, tensor.trainable)
        found = groups.get(key)
        if found is not None:
            found[2].append(index)
            continue
        if "*" in tensor.name:
            raise InputError(path, tensor.name, "is a tensor's name with * in it", "rename the module it belongs to")
        groups[key] = (tensor, pattern, [index])
    return tuple(
        _tensor(first, pattern, box) for first, pattern, indices in groups.values() for box in boxes(indices, len(pattern) - 1)
    )


def split_name(name: str) -> tuple[tuple[str, ...], Index]:
    """The text around a name's indices, and the indices. Written with leading zeros, a number is text.

    >>> split_name("layers.12.experts.3.w1.weight")
    (('layers.', '.experts.', '.w1.weight'), (12, 3))
    >>> split_name("layer1.weight")
    (('layer1.weight',), ())
    """
    pieces: list[str] = []
    index: list[int] = []
    words: list[str] = []
    for word in name.split("."):
        # isdecimal would take digits of other scripts, which would not be printed back as they were
        plain = word.isascii() and word.isdigit() and len(word) < 10 and (word == "0" or word[0] != "0")
        if plain and len(index) < MAX_AXES:
            words.append("")
            pieces.append(".".join(words))
            index.append(int(word))
            words = [""]
        else:
            words.append(word)
    return (*pieces, ".".join(words)), tuple(index)


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


def _tensor(first: Tensor, pattern: tuple[str, ...], box: Box) -> Tensor:
    """The tensor of a box; an axis with one label keeps the label and is no axis."""
    name, count, spans = pattern[0], 1, []
    for labels, text in zip(box, pattern[1:], strict=True):
        if len(labels) == 1:
            name += f"{labels[0]}{text}"
            continue
        name += f"*{text}"
        count *= len(labels)
        spans.append(Span(len(labels), None if labels == tuple(range(len(labels))) else labels))
    return Tensor(
        name, first.shape, first.dtype, count=count, kind=first.kind, role=first.role, trainable=first.trainable,
        spans=tuple(spans),
    )  # fmt: skip
