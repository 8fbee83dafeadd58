"""Axes: values looked at once each, so that a hundred thousand points need no look of their own.

A value's keys are of several kinds. Whole numbers that arithmetic may take as arrays (``params``, accumulation steps) become
tables of int64; everything else becomes a code, one for each distinct value, and points of equal codes share one answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from pydantic import ValidationError

from memcalc.errors import InputError
from memcalc.job import Job
from memcalc.sweep.keys import Patch, nested
from memcalc.units import MAX_BYTES

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Kind = Literal["model", "setting", "fit", "label"]
KINDS: tuple[Kind, ...] = ("model", "setting", "fit", "label")
"""What a coded key decides: the tensors; optimizer, precision and engine; the verdict; a name and no byte."""

PARAMS = "params"
NONE = -1
"""A number that is null, or not given."""
NUMBERS: dict[str, int] = {
    "training.gradient_accumulation_steps": 1,
    "training.micro_batch_size": NONE,
    "training.sequence_length": NONE,
    "training.source_length": NONE,
    "training.image_size": NONE,
    "parallelism.dp": NONE,
    "parallelism.dp_shard": NONE,
    "parallelism.dp_replicate": NONE,
    "parallelism.tp": 1,
    "parallelism.pp": 1,
    "parallelism.cp": 1,
    "parallelism.ep": 1,
    PARAMS: NONE,
}
"""Keys whose values are arrays, with what holds where they are not given."""


class _Bare:
    """Stands for a model that is nothing but a count, which is then found among the numbers."""

    def __repr__(self) -> str:
        return "<a bare count>"


BARE: Patch = {"model": _Bare()}

RANKS = tuple(key for key in NUMBERS if key.startswith("parallelism."))
"""The numbers of ranks."""


def kind_of(key: str) -> Kind:
    """What a dotted key that is not a number decides."""
    if key == "model" or key.startswith("model."):
        return "model"
    if key == "name":
        return "label"
    return "fit" if key.startswith("hardware.") else "setting"


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis, compiled.

    Attributes:
        name: how a person finds it in the file.
        patches: what each value sets.
        keys: every key that any of them sets.
        numbers: key -> int64 table of the values.
        codes: kind -> int64 table of codes.
        parts: kind -> for each code, the keys of that kind.
        bad: whether each value breaks a rule of the job; None where none does.
    """

    name: str
    patches: Sequence[Patch]
    keys: frozenset[str]
    numbers: Mapping[str, Array]
    codes: Mapping[Kind, Array]
    parts: Mapping[Kind, Sequence[Patch]]
    bad: Array | None

    @property
    def size(self) -> int:
        """How many values."""
        return len(self.patches)


class OneKey(Sequence[Patch]):
    """The patches of a grid axis: one key, a value each, made when asked for."""

    def __init__(self, key: str, values: Sequence[Any], written: str = "") -> None:
        self.key, self.values, self.bare = key, values, written in ("params", "model.params")

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Patch]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Patch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Patch]: ...
    def __getitem__(self, index: int | slice) -> Patch | Sequence[Patch]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        value = self.values[index]
        return {self.key: {PARAMS: value} if self.bare else value}


def compile_axis(name: str, patches: Sequence[Patch], *, bare_params: bool) -> Axis:
    """The axis whose values are these patches.

    Args:
        name: how a person finds it in the file.
        patches: one for each value.
        bare_params: whether a model that is only a count may stand among the numbers: no axis sets keys of its config.
    """
    quick = _whole_numbers(name, patches, bare_params=bare_params) if isinstance(patches, OneKey) else None
    return quick if quick is not None else _Compiler(name, patches, bare_params=bare_params).axis()


def _whole_numbers(name: str, patches: OneKey, *, bare_params: bool) -> Axis | None:
    """The axis of a key whose values are all good whole numbers; None if they are not, or the key is not such a one.

    The numbers a key accepts are all those between two bounds, so that looking at the least and the greatest is enough.
    """
    key = PARAMS if patches.bare and bare_params else patches.key
    if key not in NUMBERS:
        return None
    values = patches.values
    if not isinstance(values, range) and not all(type(value) is int for value in values):
        return None
    least, greatest = min(values), max(values)
    if key == PARAMS:
        if least <= 0 or greatest > MAX_BYTES:
            return None
    elif _finding(key, least) is not None or _finding(key, greatest) is not None:
        return None
    table = np.asarray(values, dtype=np.int64)
    bare = key == PARAMS
    codes: dict[Kind, Array] = {"model": np.zeros(len(table), dtype=np.int64)} if bare else {}
    parts: dict[Kind, Sequence[Patch]] = {"model": [BARE]} if bare else {}
    return Axis(name, patches, frozenset([patches.key]), {key: table}, codes, parts, None)


class _Compiler:
    """Any axis, value by value."""

    def __init__(self, name: str, patches: Sequence[Patch], *, bare_params: bool) -> None:
        self.name, self.patches, self.bare_params = name, patches, bare_params
        self.keys = frozenset(key for patch in patches for key in patch)
        self.findings: dict[str, InputError | None] = {}

    def axis(self) -> Axis:
        """The tables."""
        size = len(self.patches)
        numbers = {key: np.full(size, NUMBERS[key], dtype=np.int64) for key in self._number_keys()}
        kinds = {kind_of(key) for key in self.keys if key not in NUMBERS}
        codes: dict[Kind, Array] = {kind: np.zeros(size, dtype=np.int64) for kind in KINDS if kind in kinds}
        seen: dict[Kind, dict[str, int]] = {kind: {} for kind in codes}
        parts: dict[Kind, list[Patch]] = {kind: [] for kind in codes}
        bad = np.zeros(size, dtype=bool)
        for index, patch in enumerate(self.patches):
            split: dict[Kind, Patch] = {kind: {} for kind in codes}
            for key, value in patch.items():
                bad[index] |= self._is_bad(key, value)
                if key in NUMBERS:
                    numbers[key][index] = NONE if value is None or bad[index] else value
                elif key == "model" and (count := self._bare_count(value)) is not None:
                    numbers[PARAMS][index], split["model"] = count, BARE
                else:
                    split[kind_of(key)][key] = value
            for kind, part in split.items():
                spelled = spelling(part)
                if spelled not in seen[kind]:
                    seen[kind][spelled] = len(parts[kind])
                    parts[kind].append(part)
                codes[kind][index] = seen[kind][spelled]
        return Axis(self.name, self.patches, self.keys, numbers, codes, parts, bad if bad.any() else None)

    def _number_keys(self) -> Iterable[str]:
        return [key for key in NUMBERS if key in self.keys or (key == PARAMS and "model" in self.keys)]

    def _is_bad(self, key: str, value: Any) -> bool:
        """Whether the job refuses this value, whatever else it holds; each distinct value is asked about once."""
        spelled = spelling({key: value})
        if spelled not in self.findings:
            self.findings[spelled] = _finding(key, value)
        return self.findings[spelled] is not None

    def _bare_count(self, value: Any) -> int | None:
        """The count of a model that is nothing else; None for any other model, and for a count that is none.

        A count with a unit (``7B``) is a model of its own, for it is named as it is written.
        """
        if not self.bare_params or not isinstance(value, Mapping) or set(value) != {PARAMS}:
            return None
        count = value[PARAMS]
        return count if type(count) is int and 0 < count <= MAX_BYTES else None


def spelling(value: Any) -> str:
    """Text that is equal for equal values and tells ``1`` from ``true`` and from ``1.0``."""
    return json.dumps(value, sort_keys=True, default=repr)


def _finding(key: str, value: Any) -> InputError | None:
    """What the job says against one key's value; None if nothing."""
    if key.startswith("model."):
        return None
    try:
        Job.model_validate(nested({"model": "any", key: value}))
    except ValidationError as error:
        return InputError(key, value, error.errors(include_url=False)[0]["msg"])
    except InputError as error:
        return error
    return None
