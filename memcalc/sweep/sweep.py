"""A sweep, ready to run: iterate over its rows, or write them to a file that can be taken up again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from memcalc.catalog import shipped
from memcalc.errors import InputError
from memcalc.sweep.columns import NAMES
from memcalc.sweep.evaluate import Evaluator
from memcalc.sweep.executors import results
from memcalc.sweep.fingerprint import digest, sources
from memcalc.sweep.journal import Parts
from memcalc.sweep.keys import nested
from memcalc.sweep.layout import lay_out
from memcalc.sweep.resolve import Reader
from memcalc.sweep.spec import SweepFile, load_sweep, read_sweep
from memcalc.sweep.table import Table
from memcalc.sweep.work import Order, Piece, Result
from memcalc.sweep.writers import FORMS, writer_for

CHUNK = 2**16
"""Points to a chunk unless told: enough for whole columns to pay off, and lost if the power goes."""
Row = dict[str, int | str | None]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: the file, its rows, how many of them are errors, and how many points had been done before."""

    path: Path
    rows: int
    errors: int
    resumed: int


def run(
    spec: SweepFile | Mapping[str, Any] | Path | str,
    *,
    jobs: int = 1,
    executor: str | None = None,
    chunk: int | None = None,
    allow_code: bool = False,
    app_dir: str | Path | None = None,
    base_dir: str | Path | None = None,
) -> Sweep:
    """A grid of jobs, computed as its rows are asked for.

    Args:
        spec: the sweep: a file's path, the name of one that ships (``optimizers``), a mapping as the file holds it, or one
            already read.
        jobs: processes; 1 computes here.
        executor: ``in-process``, ``processes`` or ``dask:ADDRESS``; chosen by ``jobs`` unless told.
        chunk: points computed together, and lost together if the run ends early.
        allow_code: whether ``py:`` models may run code.
        app_dir: where their code is looked for; the current folder unless told.
        base_dir: where relative paths of models start; the file's folder, or the current one, unless told.

    Returns:
        The sweep: ``for row in run(…)``, or ``run(…).write("rows.csv")``.

    Raises:
        InputError: a sweep that cannot be laid out. A point that cannot be judged is a row with its error.

    >>> rows = run({"base": {"params": 1000, "precision": "fp32"}, "grid": {"optimizer": ["adam", "sgd"]}})
    >>> [(row["optimizer"], row["optimizer_states"]) for row in rows]
    [('torch:Adam', 8000), ('torch:SGD', 0)]
    """
    if isinstance(spec, str | Path):
        file = shipped("sweeps").get(str(spec), Path(spec)) if not Path(spec).exists() else Path(spec)
        base_dir = file.resolve().parent if base_dir is None else base_dir
        spec = load_sweep(file)
    elif isinstance(spec, Mapping):
        spec = read_sweep(spec)
    for flag, number in (("--jobs", jobs), ("--chunk", chunk)):
        if number is not None and number < 1:
            raise InputError(flag, number, "is not above zero", "give 1 or more")
    return Sweep(spec, jobs, executor or ("processes" if jobs > 1 else "in-process"), chunk, allow_code, app_dir, base_dir)


class Sweep:
    """A laid-out sweep; see :func:`run`.

    Attributes:
        spec: the sweep as written.
        points: how many points there are, those that ``exclude`` drops included.
    """

    def __init__(self, spec: SweepFile, jobs: int, executor: str, chunk: int | None, allow_code: bool,
                 app_dir: str | Path | None, base_dir: str | Path | None) -> None:  # fmt: skip
        self.spec, self.jobs, self.executor, self.chunk = spec, jobs, executor, chunk
        self.blocks = lay_out(spec)
        self.points = sum(block.size for block in self.blocks)
        self._ways = (None if base_dir is None else str(base_dir), None if app_dir is None else str(app_dir), allow_code)

    @cached_property
    def evaluator(self) -> Evaluator:
        """What computes the rows in this process."""
        base_dir, app_dir, allow_code = self._ways
        return Evaluator(
            self.blocks, Reader(Path(base_dir) if base_dir else None, Path(app_dir) if app_dir else None, allow_code=allow_code)
        )

    def __iter__(self) -> Iterator[Row]:
        for table in self.tables():
            yield from table.dicts()

    def tables(self, progress: Progress = lambda points: None) -> Iterator[Table]:
        """The rows, a chunk at a time."""
        for result in self._results(None, self._pieces(self.chunk or CHUNK)):
            progress(result.piece.stop - result.piece.start)
            assert result.table is not None
            yield result.table

    def job(self, index: int) -> dict[str, Any]:
        """The job of one point, as ``memcalc estimate`` would be given it.

        Raises:
            IndexError: there is no such point.
        """
        for block in self.blocks:
            if block.first <= index < block.first + block.size:
                where = block.coordinates(np.array([index], dtype=np.int64))
                return nested(block.patch([int(at[0]) for at in where]))
        raise IndexError(f"points are numbered from 0 to {self.points - 1}, not {index}")

    def write(
        self, path: str | Path, *, form: str | None = None, restart: bool = False, progress: Progress = lambda points: None
    ) -> Written:
        """All rows into a file; a run that was ended early is taken up where it was.

        Args:
            path: the file.
            form: ``csv``, ``jsonl`` or ``parquet``; by the file's name unless told.
            restart: whether to throw away what an earlier run has left.
            progress: called with the number of points done since the last call.

        Raises:
            InputError: the file cannot be written, or parts beside it are of another sweep.
            MissingPackageError: Parquet without pyarrow.
        """
        output = Path(path)
        form = form or writer_for(output)
        header = {
            "memcalc": _version(), "columns": digest(NAMES), "form": form, "sweep": digest(self._plain()),
            "sources": sources(self.blocks, self.evaluator.known.reader), "points": self.points,
        }  # fmt: skip
        parts = Parts(output, FORMS[form](), header, chunk=self.chunk, default=CHUNK, restart=restart)
        try:
            resumed = sum(done.stop - done.start for done in parts.done.values())
            progress(resumed)
            pieces = (piece for piece in self._pieces(parts.chunk) if piece.part not in parts.done)
            for result in self._results(form, pieces):
                piece = result.piece
                parts.add(piece.part, piece.start, piece.stop, result.rows, result.errors, result.data)
                progress(piece.stop - piece.start)
            rows, errors = (sum(getattr(done, key) for done in parts.done.values()) for key in ("rows", "errors"))
            parts.merge()
        finally:
            parts.close()
        return Written(output, rows, errors, resumed)

    def _pieces(self, chunk: int) -> Iterator[Piece]:
        return (Piece(part, start, min(start + chunk, self.points)) for part, start in enumerate(range(0, self.points, chunk)))

    def _results(self, form: str | None, pieces: Iterator[Piece]) -> Iterator[Result]:
        plain = self._plain()
        order = Order(digest([plain, self._ways, form]), plain, *self._ways, form)
        return results(order, pieces, executor=self.executor, jobs=self.jobs, evaluator=self.evaluator)

    def _plain(self) -> dict[str, Any]:
        return self.spec.model_dump(by_alias=True)


def _version() -> str:
    from importlib.metadata import version

    return version("memcalc")
