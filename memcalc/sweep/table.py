"""Rows held by column: numbers as int64 tables, words as codes, so that whole columns are computed and written at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memcalc.sweep.axes import Array
from memcalc.sweep.columns import COLUMNS

ABSENT = -(2**63)
"""The int64 that stands for null: no figure is as low (headroom stays above -2**63)."""


@dataclass(slots=True)
class Words:
    """Text by code; -1 is null."""

    codes: Array
    words: list[str]

    @classmethod
    def empty(cls, rows: int) -> Words:
        """Null everywhere."""
        return cls(np.full(rows, -1, dtype=np.int64), [])

    def put(self, rows: Array, word: str | None) -> None:
        """One word in several rows."""
        if word is not None and len(rows):
            self.codes[rows] = len(self.words)
            self.words.append(word)

    def put_each(self, rows: Array, which: Array, words: Sequence[str | None]) -> None:
        """In each row the word that ``which`` picks."""
        start = len(self.words)
        silent = np.array([word is None for word in words], dtype=bool)[which]
        self.words += [word or "" for word in words]
        self.codes[rows] = np.where(silent, -1, which + start)

    def texts(self, null: str | None = None) -> list[str | None]:
        """Every row's."""
        words = [*self.words, null]
        return [words[code] for code in self.codes.tolist()]


@dataclass(slots=True)
class Table:
    """Some rows of a sweep."""

    rows: int
    numbers: dict[str, Array]
    words: dict[str, Words]

    @classmethod
    def empty(cls, rows: int) -> Table:
        """Rows of nulls."""
        return cls(
            rows,
            {column.name: np.full(rows, ABSENT, dtype=np.int64) for column in COLUMNS if column.type == "int"},
            {column.name: Words.empty(rows) for column in COLUMNS if column.type == "text"},
        )

    def put(self, column: str, rows: Array | slice, values: Any) -> None:
        """Numbers, or one for all, in some rows; None changes nothing."""
        if values is not None:
            self.numbers[column][rows] = values

    @property
    def errors(self) -> int:
        """Rows that could not be judged."""
        return int((self.words["error"].codes >= 0).sum())

    def dicts(self) -> Iterator[dict[str, int | str | None]]:
        """Each row as a mapping; None for null."""
        columns: list[list[int | str | None]] = []
        for column in COLUMNS:
            if column.type == "text":
                columns.append(list(self.words[column.name].texts()))
            else:
                columns.append([None if value == ABSENT else value for value in self.numbers[column.name].tolist()])
        names = [column.name for column in COLUMNS]
        for values in zip(*columns, strict=True):
            yield dict(zip(names, values, strict=True))

    @classmethod
    def joined(cls, tables: Sequence[Table]) -> Table:
        """Tables one after another."""
        if len(tables) == 1:
            return tables[0]
        words: dict[str, Words] = {}
        for name in (column.name for column in COLUMNS if column.type == "text"):
            codes: list[Array] = []
            all_words: list[str] = []
            for table in tables:
                held = table.words[name]
                codes.append(np.where(held.codes < 0, -1, held.codes + len(all_words)))
                all_words += held.words
            words[name] = Words(np.concatenate(codes), all_words)
        numbers = {
            column.name: np.concatenate([table.numbers[column.name] for table in tables])
            for column in COLUMNS
            if column.type == "int"
        }
        return cls(sum(table.rows for table in tables), numbers, words)
