"""A campaign, run: each case in processes of its own, a record each, and a journal by which a killed run goes on."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from memcalc.campaign import Case
from memcalc.engines.measure.here import Ask, now
from memcalc.engines.measure.process import bare_environment, measure_apart
from memcalc.errors import InputError, MemcalcError, MissingPackageError
from memcalc.measurement import Failure, Measurement, Settings
from memcalc.measurement_files import write_measurement
from memcalc.records import dataclass

JOURNAL = "journal.jsonl"
SUFFIX = ".json.gz"
NOWHERE = ("--device", "measure")
"""Paths of errors that every case would meet: no torch, no GPU."""


@dataclass(frozen=True, slots=True)
class Done:
    """One line of the journal: a case that has its record.

    Attributes:
        case: its name.
        key: a digest of what was asked.
        status: the record's.
        seconds: how long it took.
        message: what went wrong, if anything did.
        again: whether an earlier run had it already.
    """

    case: str
    key: str
    status: str
    seconds: float
    message: str = ""
    again: bool = False


def run_campaign(
    cases: Sequence[Case],
    out: Path,
    *,
    jobs: int = 1,
    limit: float | None = None,
    retry: bool = False,
    app_dir: str | None = None,
    base_dir: Path | None = None,
    command: tuple[str, ...] = (),
    told: Callable[[Done, int, int], None] = lambda done, at, of: None,
) -> list[Done]:
    """Run the cases in order, those that the journal has already left out, and write a record each.

    Args:
        cases: what to measure.
        out: the folder of records and journal.
        jobs: how many at once; a case that asks to be alone is.
        limit: seconds after which no further case is begun.
        retry: whether cases that failed before are run again.
        app_dir: the folder put on the import path for ``py:`` models.
        base_dir: the folder relative paths start from.
        command: how it was asked, for the records.
        told: called with each case done, its number and how many there are.

    Raises:
        InputError: a folder or a disk that refuses; what was recorded until then stays.
        MissingPackageError: no torch, or no such device: no case could be run.
    """
    journal = Journal(out)
    known = journal.read()
    begun, results = time.monotonic(), []
    waiting: list[Case] = []
    for case in cases:
        earlier = known.get(case.key)
        if earlier is None or not _file(out, case).exists() or (retry and earlier.status == "failed"):
            waiting.append(case)
        else:
            results.append(Done(case.name, case.key, earlier.status, earlier.seconds, earlier.message, again=True))
            told(results[-1], len(results), len(cases))

    def measure(case: Case) -> Done:
        return _one(case, out, journal, app_dir, base_dir, command)

    for done in _several(_in_time(waiting, begun, limit), measure, jobs):
        results.append(done)
        told(done, len(results), len(cases))
    return results


class Journal:
    """One line of JSON for each case that has its record, flushed to the disk before the next begins."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / JOURNAL
        self.lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("--out", str(folder), f"cannot be made ({error.strerror})", "name another folder") from None

    def read(self) -> dict[str, Done]:
        """The last line of each question; a line cut short by a kill is as if it were not there."""
        found: dict[str, Done] = {}
        if not self.file.exists():
            return found
        for line in self.file.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
                done = Done(row["case"], row["key"], row["status"], float(row["seconds"]), str(row.get("message", "")))
            except (ValueError, KeyError, TypeError):
                continue
            found[done.key] = done
        return found

    def write(self, done: Done) -> None:
        """Append one line, and wait for the disk."""
        row = {"case": done.case, "key": done.key, "status": done.status, "seconds": done.seconds, "message": done.message}
        with self.lock:
            try:
                with self.file.open("ab+") as file:
                    line = json.dumps(row).encode() + b"\n"
                    file.write(line if _ends_a_line(file) else b"\n" + line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                way_out = "make room, and run it again: it goes on where it stopped"
                raise InputError("--out", str(self.file), f"cannot be written ({error.strerror})", way_out) from None


def _ends_a_line(file: Any) -> bool:
    """Whether the file ends with a whole line; a kill may have cut the last one short."""
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _file(out: Path, case: Case) -> Path:
    return out / f"{case.name}{SUFFIX}"


def _in_time(cases: Iterable[Case], begun: float, limit: float | None) -> Iterator[Case]:
    for case in cases:
        if limit is not None and time.monotonic() - begun >= limit:
            return
        yield case


def _several(cases: Iterator[Case], measure: Callable[[Case], Done], jobs: int) -> Iterator[Done]:
    """Results as they come, ``jobs`` cases at once, one that asks to be alone by itself."""
    if jobs == 1:
        yield from map(measure, cases)
        return
    with ThreadPoolExecutor(jobs) as pool:
        running: set[Future[Done]] = set()
        for case in cases:
            while len(running) >= (1 if case.settings.alone and running else jobs):
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in ended)
            running.add(pool.submit(measure, case))
            if case.settings.alone:
                ended, running = wait(running)
                yield from (each.result() for each in ended)
        for each in running:
            yield each.result()


def _one(case: Case, out: Path, journal: Journal, app_dir: str | None, base_dir: Path | None, command: tuple[str, ...]) -> Done:
    """One case, measured and recorded; nothing it does reaches the others."""
    begun = time.monotonic()
    folder = None if base_dir is None else str(base_dir)
    ask = Ask(case.request, case.device, case.settings, case.name, app_dir, folder, command)
    try:
        record = measure_apart(ask, case.ranks)
    except MemcalcError as error:
        if isinstance(error, MissingPackageError) and error.path in NOWHERE:
            raise
        record = refused_record(ask, error)
    write_measurement(record, _file(out, case))
    message = record.failure.message if record.failure else ""
    done = Done(case.name, case.key, record.status, round(time.monotonic() - begun, 3), message)
    journal.write(done)
    return done


def refused_record(ask: Ask, error: MemcalcError) -> Measurement:
    """The record of a job that was refused before it could be run."""
    kind = "missing_package" if isinstance(error, MissingPackageError) else "refused"
    settings = Settings(device="cuda" if ask.device == "cuda" else "cpu", iterations=ask.settings.iterations)
    return Measurement(
        case=ask.case, status="failed", created=now(), environment=bare_environment(ask), request=ask.request,
        job=ask.request, settings=settings, failure=Failure(kind=kind, message=str(error)),
    )  # fmt: skip
