"""The points of a sweep, numbered in a fixed order and found by arithmetic: nothing is listed.

A layout is one or two blocks: the grid (with ``list`` as its slowest axis), then what ``include`` appends. A point's number
is its position over both, counted from 0; what ``exclude`` drops keeps its number, so that no other number changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from memcalc.errors import NO_VALUE, InputError
from memcalc.job import Job
from memcalc.sweep.axes import NONE, NUMBERS, PARAMS, Array, Axis, Kind, OneKey, compile_axis, kind_of, spelling
from memcalc.sweep.keys import Patch, dotted, flat, nested
from memcalc.sweep.spec import MAX_AXIS, MAX_POINTS, Range, SweepFile
from memcalc.units import parse_count

Coordinates = Sequence[Array]
"""For each axis of a block, the index of each point's value."""
Condition = list[tuple[int, Array]]
"""Axes, each with whether its values match; a point matches where all of them do."""


@dataclass(frozen=True, slots=True)
class Block:
    """Axes that multiply, the last the fastest; the first holds what all points share.

    Attributes:
        first: the number of its first point.
        axes: compiled, with no key in two of them.
        excluded: conditions, any of which drops a point.
    """

    first: int
    axes: tuple[Axis, ...]
    excluded: Sequence[Condition] = field(default=())

    @property
    def size(self) -> int:
        """How many points, dropped ones included."""
        return prod(axis.size for axis in self.axes)

    def coordinates(self, numbers: Array) -> list[Array]:
        """Where on each axis the points of these numbers lie."""
        rest = numbers - self.first
        found: list[Array] = []
        for axis in reversed(self.axes):
            found.append(rest % axis.size)
            rest = rest // axis.size
        return found[::-1]

    def kept(self, numbers: Array) -> Array:
        """Those of these numbers that are not excluded."""
        if not self.excluded:
            return numbers
        at = self.coordinates(numbers)
        dropped = np.zeros(len(numbers), dtype=bool)
        for condition in self.excluded:
            dropped |= np.logical_and.reduce([table[at[axis]] for axis, table in condition])
        return numbers[~dropped]

    def patch(self, coordinates: Sequence[int]) -> Patch:
        """Everything one point sets."""
        return {key: value for axis, at in zip(self.axes, coordinates, strict=True) for key, value in axis.patches[at].items()}

    def numbers(self, key: str, coordinates: Coordinates) -> Array | int:
        """A number of each point, or the one that all share."""
        for axis, at in zip(self.axes, coordinates, strict=True):
            table = axis.numbers.get(key)
            if table is not None:
                return int(table[0]) if len(table) == 1 else table[at]
        return NUMBERS[key]

    def codes(self, kind: Kind, coordinates: Coordinates) -> Array | int:
        """One number for all that a point says of a kind: equal where it says the same."""
        code: Array | int = 0
        for axis, at in zip(self.axes, coordinates, strict=True):
            if len(parts := axis.parts.get(kind, ())) > 1:
                code = code * len(parts) + axis.codes[kind][at]
        return code

    def part(self, kind: Kind, code: int) -> Patch:
        """What a code of :meth:`codes` stands for."""
        patch: Patch = {}
        for axis in reversed(self.axes):
            parts = axis.parts.get(kind)
            if parts is not None:
                code, at = divmod(code, len(parts)) if len(parts) > 1 else (code, 0)
                patch = {**parts[at], **patch}
        return patch


def lay_out(spec: SweepFile) -> tuple[Block, ...]:
    """The blocks of a sweep.

    Raises:
        InputError: an unknown key, a key varied twice, an exclusion that matches nothing, or more points than are allowed.
    """
    base = flat(spec.base, "base")
    blocks: list[Block] = []
    if spec.grid or spec.points or not spec.include:
        axes: list[tuple[str, Sequence[Patch]]] = []
        if spec.points:
            axes.append(("list", [flat(patch, f"list.{index}") for index, patch in enumerate(spec.points)]))
        axes += [(f"grid.{key}", _values(key, values)) for key, values in spec.grid.items()]
        blocks.append(_block(0, base, axes, spec.exclude or ()))
    elif spec.exclude:
        raise InputError("exclude", NO_VALUE, "has no grid to drop points from", "leave it out")
    if spec.include:
        patches = [flat(patch, f"include.{index}") for index, patch in enumerate(spec.include)]
        blocks.append(_block(sum(block.size for block in blocks), base, [("include", patches)], ()))
    if (total := sum(block.size for block in blocks)) > MAX_POINTS:
        raise InputError("grid", f"{total:,}", f"points are more than {MAX_POINTS:,}", "shorten an axis")
    return tuple(blocks)


def _values(key: str, values: list[Any] | Range) -> OneKey:
    name = dotted(key, "grid")
    held = values.values() if isinstance(values, Range) else values
    if len(held) > MAX_AXIS:
        raise InputError(f"grid.{key}", f"{len(held):,}", f"values are more than {MAX_AXIS:,}", "split the sweep")
    return OneKey(name, held, written=key)


def _block(first: int, base: Patch, axes: list[tuple[str, Sequence[Patch]]], excluded: Sequence[Mapping[str, Any]]) -> Block:
    owner: dict[str, str] = {}
    for name, patches in axes:
        for key in {patches.key} if isinstance(patches, OneKey) else {key for patch in patches for key in patch}:
            if key in owner:
                raise InputError(name, key, f"is varied by {owner[key]} already", "vary it once")
            owner[key] = name
    full = [(name, _completed(patches, base)) for name, patches in axes]
    shared = {key: value for key, value in base.items() if key not in owner}
    if prod(len(patches) for _, patches in full) > MAX_POINTS:
        raise InputError(
            "grid", f"{prod(len(p) for _, p in full):,}", f"points are more than {MAX_POINTS:,}", "shorten an axis"
        )
    bare = not any(key.startswith("model.") for key in (*shared, *owner))
    compiled = tuple(compile_axis(name, patches, bare_params=bare) for name, patches in (("base", [shared]), *full))
    conditions = [_condition(index, flat(patch, f"exclude.{index}"), compiled) for index, patch in enumerate(excluded)]
    return Block(first, compiled, conditions)


def _completed(patches: Sequence[Patch], base: Patch) -> Sequence[Patch]:
    """Patches of which each is silent on nothing that another sets and the base knows: there the base's word holds."""
    if isinstance(patches, OneKey):
        return patches
    words = {key: base[key] for key in base if any(key in patch for patch in patches)}
    return [{**words, **patch} for patch in patches]


def _condition(index: int, patch: Patch, axes: Sequence[Axis]) -> Condition:
    """Where a patch of ``exclude`` matches."""
    condition: Condition = []
    for key, value in patch.items():
        matches = [(at, table) for at, axis in enumerate(axes) if (table := _matches(axis, key, value)) is not None]
        if not matches:
            silent = spelling(_settled(key, None, absent=True)) == spelling(_settled(key, value))
            matches = [(0, np.array([silent]))]
        if not any(table.any() for _, table in matches):
            raise InputError(
                f"exclude.{index}.{key}", value, "is what no point has", "check it against the axes, or leave it out"
            )
        condition += matches
    if not condition:
        raise InputError(f"exclude.{index}", "{}", "would drop every point", "name the keys of the points to drop")
    return condition


def _matches(axis: Axis, key: str, value: Any) -> Array | None:
    """Whether each value of an axis sets ``key`` to ``value``; None where the axis does not set it."""
    if key not in axis.keys:
        return None
    wanted = _settled(key, value)
    if key in axis.numbers:
        number = NONE if wanted is None else wanted
        return axis.numbers[key] == number if type(number) is int else np.zeros(axis.size, dtype=bool)
    text = spelling(wanted)

    def same(patch: Patch) -> bool:
        if key not in patch:
            return False
        said = patch[key]
        return said == wanted if type(said) is int and type(wanted) is int else spelling(_settled(key, said)) == text

    if key == "model" and PARAMS in axis.numbers:
        return np.array([same(patch) for patch in axis.patches])
    kind = kind_of(key)
    return np.array([same(part) for part in axis.parts[kind]])[axis.codes[kind]]


def _settled(key: str, value: Any, *, absent: bool = False) -> Any:
    """A value as the job understands it (``24GiB`` as a number); itself where the job refuses it."""
    if isinstance(value, Mapping) and set(value) == {PARAMS}:
        try:
            return {PARAMS: parse_count(value[PARAMS])}
        except InputError:
            return value
    if key == "model" or key.startswith("model."):
        return value
    try:
        found: Any = Job.model_validate(nested({"model": "any"} if absent else {"model": "any", key: value}))
    except (ValidationError, InputError):
        return value
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else getattr(found, name)
    return found.model_dump() if isinstance(found, BaseModel) else found
