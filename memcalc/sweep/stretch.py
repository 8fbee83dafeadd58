"""A stretch of one block's points: what each is, and its row as far as it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from memcalc.engines.analytic.shared import Shared
from memcalc.errors import MemcalcError
from memcalc.job import read_job
from memcalc.plan import Plan
from memcalc.sweep import resolve
from memcalc.sweep.axes import NONE, Array, Kind
from memcalc.sweep.distinct import distinct
from memcalc.sweep.figures import Figures
from memcalc.sweep.keys import nested
from memcalc.sweep.layout import Block
from memcalc.sweep.resolve import Limit, Memo, Reader, Setting, Variant
from memcalc.sweep.table import Table

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known:
    """What has been resolved, remembered from one stretch to the next."""

    reader: Reader
    variants: Memo[Variant] = field(default_factory=Memo)
    settings: Memo[Setting] = field(default_factory=Memo)
    plans: Memo[Plan | str] = field(default_factory=Memo)
    limits: Memo[Limit] = field(default_factory=Memo)
    refusals: Memo[str] = field(default_factory=Memo)
    shared: Shared = field(default_factory=Shared)


class Stretch:
    """Points of one block, and the table they fill.

    Attributes:
        block: whose points.
        at: for each axis, the index of each point's value.
        rows: the table.
        alive: whether each point has not been refused yet.
        by_states: whether each point asks about the states alone.
        known: what earlier stretches have resolved.
    """

    def __init__(self, block: Block, numbers: Array, known: Known) -> None:
        self.block, self.known = block, known
        self.at = block.coordinates(numbers)
        self.rows = Table.empty(len(numbers))
        self.rows.numbers["index"][:] = numbers
        self.alive = np.ones(len(numbers), dtype=bool)
        self.by_states = np.zeros(len(numbers), dtype=bool)
        self._coded: dict[Kind, tuple[Array, list[int]]] = {}
        self._gpus: tuple[Sequence[str | None], Array] | None = None

    def number(self, key: str) -> Array:
        """A number of every point."""
        found = self.block.numbers(key, self.at)
        return np.broadcast_to(np.int64(found), self.rows.rows) if isinstance(found, int) else found

    def codes(self, kind: Kind) -> tuple[Array, list[int]]:
        """(which of a kind's distinct codes each point has, those codes)."""
        if kind not in self._coded:
            codes = self.block.codes(kind, self.at)
            if isinstance(codes, int):
                self._coded[kind] = np.zeros(self.rows.rows, dtype=np.int64), [codes]
            else:
                values, which = np.unique(codes, return_inverse=True)
                self._coded[kind] = which, values.tolist()
        return self._coded[kind]

    def limit(self, code: int) -> Limit:
        """What the points of one code of hardware must fit."""
        return self.known.limits.get((self.block.first, code), lambda: resolve.limit(self.block.part("fit", code)))

    def gpus(self) -> tuple[Sequence[str | None], Array]:
        """(the devices that living points must fit, unknown ones as they are written; which of those each point has)."""
        if self._gpus is None:
            self._gpus = (None,), np.zeros(self.rows.rows, dtype=np.int64)
            if any("hardware.gpu" in axis.keys for axis in self.block.axes):
                which, codes = self.codes("fit")
                named: list[str | None] = [None] * len(codes)
                for index in np.unique(which[self.alive]).tolist():
                    named[index] = self.limit(codes[index]).gpu or self.block.part("fit", codes[index]).get("hardware.gpu")
                at = {gpu: index for index, gpu in enumerate(dict.fromkeys(named))}
                self._gpus = list(at), np.array([at[gpu] for gpu in named], dtype=np.int64)[which]
        return self._gpus

    def refuse(self, rows: Array, text: str) -> None:
        """These points end here, with one error."""
        self.rows.words["error"].put(rows, text)
        self.alive[rows] = False

    def answer(self, rows: Array, figures: Figures) -> None:
        """These points' figures; a column that is not among them stays null."""
        in_a_row = len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all()
        where = slice(int(rows[0]), int(rows[-1]) + 1) if in_a_row else rows
        for name, values in figures.items():
            self.rows.put(name, where, values)

    def name(self) -> None:
        """The jobs' own names."""
        which, codes = self.codes("label")
        names = [self.block.part("label", code).get("name") for code in codes]
        words = [name if isinstance(name, str) else None for name in names]
        self.rows.words["name"].put_each(np.arange(self.rows.rows), which, words)

    def refuse_bad_values(self) -> None:
        """Points with a value that the job refuses: what it says then depends on the values it refuses alone."""
        marks = [
            np.where(axis.bad[at], at, NONE) for axis, at in zip(self.block.axes, self.at, strict=True) if axis.bad is not None
        ]
        if not marks:
            return
        rows = np.flatnonzero(np.logical_or.reduce([mark != NONE for mark in marks]))
        if not len(rows):
            return
        marks = [mark[rows] for mark in marks]
        firsts, which = distinct(*marks)
        for index, first in enumerate(firsts.tolist()):
            key = (self.block.first, *(int(mark[first]) for mark in marks))
            where = [int(at[rows[first]]) for at in self.at]
            self.refuse(rows[which == index], self.known.refusals.get(key, partial(self._complaint, where)))

    def _complaint(self, where: Sequence[int]) -> str:
        """What a job says against one point."""
        try:
            read_job(nested(self.block.patch(where)))
        except MemcalcError as error:
            return str(error)
        raise AssertionError(f"a value was refused alone and is taken in a job: {where}")

    def variants(self) -> tuple[list[Variant], Array]:
        """(the living points' models, which of them each has); those without one are refused."""
        which, codes = self.codes("model")
        wanted = np.unique(which[self.alive])
        found = [Variant()] * len(codes)
        for index in wanted.tolist():
            found[index] = self.known.variants.get((self.block.first, codes[index]), partial(self._variant, codes[index]))
            if (text := found[index].error) is not None:
                self.refuse(np.flatnonzero(self.alive & (which == index)), text)
        return found, which

    def _variant(self, code: int) -> Variant:
        return resolve.variant(self.block.part("model", code), self.known.reader)
