"""Rows as CSV, JSON Lines or Parquet: whole columns are made text at once, and what a stretch has in common only once.

A writer makes each stretch's part on its own, and the parts joined are the file: byte for byte the same however they came.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Any, Protocol

from memcalc.errors import InputError, MissingPackageError, did_you_mean
from memcalc.sweep.columns import COLUMNS, NAMES, Column
from memcalc.sweep.table import ABSENT, Table


class Writer(Protocol):
    """One form of a file."""

    @property
    def suffix(self) -> str:
        """Of a part's name."""
        ...

    def part(self, table: Table) -> bytes:
        """The rows of one table."""
        ...

    def join(self, parts: Iterable[Path], file: Path) -> None:
        """The whole file, from its parts in order."""
        ...


@dataclass(frozen=True, slots=True)
class Lines:
    """A line a row.

    Attributes:
        suffix: of the file.
        header: the file's first line; empty for none.
        null: how null is written.
        text: how a word is written.
        before: what stands before each column's value.
        close: what ends a line.
    """

    suffix: str
    header: str
    null: str
    text: Callable[[str], str]
    before: tuple[str, ...]
    close: str

    def part(self, table: Table) -> bytes:
        """A line for each row."""
        return "".join(self.lines(table)).encode()

    def lines(self, table: Table) -> Iterator[str]:
        """Each row's line: a pattern with what is the same in all rows written in, filled with what is not."""
        if not table.rows:
            return iter(())
        pattern, varying = "", []
        for before, column in zip(self.before, COLUMNS, strict=True):
            cells = self._cells(table, column)
            pattern += before.replace("%", "%%")
            if isinstance(cells, str):
                pattern += cells.replace("%", "%%")
            else:
                pattern += "%s"
                varying.append(cells)
        pattern += self.close
        return map(pattern.__mod__, zip(*varying, strict=True)) if varying else repeat(pattern % (), table.rows)

    def _cells(self, table: Table, column: Column) -> str | list[Any]:
        """A column's values, or the one text of all of them."""
        if column.type == "text":
            held = table.words[column.name]
            if (held.codes == held.codes[0]).all():
                return self.null if held.codes[0] < 0 else self.text(held.words[held.codes[0]])
            words = [*(self.text(word) for word in held.words), self.null]
            return [words[code] for code in held.codes.tolist()]
        numbers = table.numbers[column.name]
        if (numbers == numbers[0]).all():
            return self.null if numbers[0] == ABSENT else str(numbers[0])
        if (numbers == ABSENT).any():
            return [self.null if number == ABSENT else number for number in numbers.tolist()]
        return numbers.tolist()  # type: ignore[no-any-return]

    def join(self, parts: Iterable[Path], file: Path) -> None:
        """The header and the parts, one after another."""
        with file.open("wb") as whole:
            whole.write(self.header.encode())
            for part in parts:
                with part.open("rb") as lines:
                    copyfileobj(lines, whole, 2**20)
            flush(whole)


def _quoted(word: str) -> str:
    """A cell of CSV, quoted where it must be (RFC 4180)."""
    return '"' + word.replace('"', '""') + '"' if any(mark in word for mark in ',"\n\r') else word


CSV = Lines(
    suffix=".csv", header=",".join(NAMES) + "\n", null="", text=_quoted,
    before=tuple("," * (at > 0) for at in range(len(NAMES))), close="\n",
)  # fmt: skip
JSONL = Lines(
    suffix=".jsonl", header="", null="null", text=lambda word: json.dumps(word, ensure_ascii=False),
    before=tuple(("{" if at == 0 else ", ") + f'"{name}": ' for at, name in enumerate(NAMES)), close="}\n",
)  # fmt: skip


class Parquet:
    """Parquet with a row group a part, compressed with Snappy."""

    suffix = ".parquet"

    def __init__(self) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise MissingPackageError.extra("--output", "pyarrow", "parquet") from None
        self.pa, self.pq = pa, pq
        self.schema = pa.schema(
            [pa.field(column.name, pa.int64() if column.type == "int" else pa.string(), metadata={"about": column.about})
             for column in COLUMNS]
        )  # fmt: skip

    def part(self, table: Table) -> bytes:
        """A file with these rows."""
        sink = self.pa.BufferOutputStream()
        with self.pq.ParquetWriter(sink, self.schema) as writer:
            if table.rows:
                writer.write_table(self._table(table), row_group_size=table.rows)
        return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]

    def _table(self, table: Table) -> Any:
        pa = self.pa
        columns = []
        for column in COLUMNS:
            if column.type == "int":
                numbers = table.numbers[column.name]
                columns.append(pa.array(numbers, mask=numbers == ABSENT, type=pa.int64()))
            else:
                held = table.words[column.name]
                codes = pa.array(held.codes, mask=held.codes < 0, type=pa.int64())
                words = pa.array(held.words, type=pa.string())
                columns.append(pa.DictionaryArray.from_arrays(codes, words).cast(pa.string()))
        return pa.table(columns, schema=self.schema)

    def join(self, parts: Iterable[Path], file: Path) -> None:
        """One file with the row groups of all parts."""
        with file.open("wb") as whole:
            with self.pq.ParquetWriter(whole, self.schema) as writer:
                for part in parts:
                    read = self.pq.ParquetFile(part)
                    for group in range(read.num_row_groups):
                        rows = read.read_row_group(group)
                        writer.write_table(rows, row_group_size=max(rows.num_rows, 1))
            flush(whole)


def flush(file: IO[bytes]) -> None:
    """Everything written so far is on the disk when this returns."""
    import os

    file.flush()
    os.fsync(file.fileno())


FORMS: dict[str, Callable[[], Writer]] = {"csv": lambda: CSV, "jsonl": lambda: JSONL, "parquet": Parquet}


def writer_for(output: Path) -> str:
    """The form that a file's name asks for.

    Raises:
        InputError: no form has that suffix.
    """
    form = output.suffix.lower().removeprefix(".")
    if form not in FORMS:
        raise InputError("--output", str(output), "has a suffix no form goes by", did_you_mean(form, FORMS))
    return form
