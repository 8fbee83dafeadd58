"""One chunk of a sweep's points, computed where it is cheapest: here, in another process, or on another machine.

A task is plain data, so that it crosses any boundary; a worker lays the sweep out once and keeps what it resolves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcalc.sweep.evaluate import Evaluator
from memcalc.sweep.layout import lay_out
from memcalc.sweep.resolve import Reader
from memcalc.sweep.spec import read_sweep
from memcalc.sweep.table import Table
from memcalc.sweep.writers import FORMS, Writer


@dataclass(frozen=True, slots=True)
class Order:
    """What all chunks of a sweep have in common.

    Attributes:
        key: equal for equal orders, and for no others.
        sweep: the sweep as a mapping.
        base_dir: where relative paths of models start.
        app_dir: where the code of ``py:`` models is looked for.
        allow_code: whether it may run.
        form: how rows are written; None for tables as they are.
    """

    key: str
    sweep: Mapping[str, Any]
    base_dir: str | None
    app_dir: str | None
    allow_code: bool
    form: str | None

    def reader(self) -> Reader:
        """How models are read."""
        return Reader(
            Path(self.base_dir) if self.base_dir else None,
            Path(self.app_dir) if self.app_dir else None,
            allow_code=self.allow_code,
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk: its number, and the points it covers."""

    part: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Result:
    """A chunk, computed: ``data`` in the order's form, or ``table`` where it asks for none."""

    piece: Piece
    rows: int
    errors: int
    data: bytes = b""
    table: Table | None = None


class Worker:
    """An order, ready to be carried out."""

    def __init__(self, order: Order, evaluator: Evaluator | None = None) -> None:
        self.key = order.key
        self.evaluator = evaluator or Evaluator(lay_out(read_sweep(order.sweep)), order.reader())
        self.writer: Writer | None = None if order.form is None else FORMS[order.form]()

    def compute(self, piece: Piece) -> Result:
        """One chunk."""
        table = self.evaluator.table(piece.start, piece.stop)
        if self.writer is None:
            return Result(piece, table.rows, table.errors, table=table)
        return Result(piece, table.rows, table.errors, self.writer.part(table))


_worker: Worker | None = None


def compute(order: Order, piece: Piece) -> Result:
    """One chunk, by the worker that this process keeps."""
    global _worker
    if _worker is None or _worker.key != order.key:
        _worker = Worker(order)
    return _worker.compute(piece)
