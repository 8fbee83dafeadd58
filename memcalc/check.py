"""Judging job files: each job becomes a finding with its verdict, its reason, and the line that asked for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memcalc.api import estimate_mapping
from memcalc.baseline import Growth
from memcalc.errors import EXIT_NO, EXIT_UNJUDGED, EXIT_YES, NO_VALUE, InputError, MemcalcError
from memcalc.footprint import Footprint
from memcalc.job import grouped
from memcalc.readers.yaml import load_yaml_with_lines
from memcalc.records import dataclass

PASSED, FAILED, UNJUDGED = "passed", "failed", "unjudged"
OUTCOMES = {"fits": PASSED, "tight": FAILED, "does_not_fit": FAILED, "unknown": UNJUDGED}


@dataclass(frozen=True, slots=True)
class Finding:
    """One job, judged.

    Attributes:
        file: where it was read from.
        line: the line that the finding is about, from 1.
        name: what the job is called.
        verdict: ``fits``, ``tight``, ``does_not_fit``, ``unknown``, or ``error`` for one that could not be read; of a job held
            against a baseline also ``grew``, ``within``, ``new``, ``not_comparable``, and ``gone`` for one that only it has;
            ``no_hardware`` where a baseline is written of a job that names none.
        outcome: ``passed``, ``failed`` or ``unjudged``.
        reason: why, in one line.
        footprint: the figures; None for an error.
        growth: how it compares with its baseline, where there is one.
        warned: passed, and yet something should be looked at.
    """

    file: Path
    line: int
    name: str
    verdict: str
    outcome: str
    reason: str
    footprint: Footprint | None = None
    growth: Growth | None = None
    warned: bool = False


def exit_code(findings: Iterable[Finding]) -> int:
    """Any failure wins, then any that could not be judged.

    >>> exit_code([])
    0
    """
    outcomes = {finding.outcome for finding in findings}
    if FAILED in outcomes:
        return EXIT_NO
    return EXIT_UNJUDGED if UNJUDGED in outcomes else EXIT_YES


def check_files(
    files: Sequence[Path], overrides: Mapping[str, Any] | None = None, *, allow_code: bool = False, app_dir: str | None = None
) -> list[Finding]:
    """Every job of every file, judged; a file or job that cannot be read is a finding of its own, and the rest go on."""
    return [
        finding
        for file in files
        for finding in _check_file(file, dict(overrides or {}), allow_code=allow_code, app_dir=app_dir)
    ]


def _check_file(file: Path, overrides: dict[str, Any], *, allow_code: bool, app_dir: str | None) -> Iterator[Finding]:
    try:
        document, lines = load_yaml_with_lines(file)
        jobs = list(_jobs(document, str(file)))
    except MemcalcError as error:
        yield _error(file, getattr(error, "line", None) or 1, file.stem, error)
        return
    for prefix, job in jobs:
        label = str(job.get("name") or file.stem) if len(jobs) == 1 else str(job.get("name") or f"{file.stem}{prefix}")
        try:
            mapping = _overridden(job, overrides)
            footprint = estimate_mapping(mapping, app_dir=app_dir, base_dir=file.parent, allow_code=allow_code)
        except MemcalcError as error:
            yield _error(file, _line(lines, prefix, error.path), label, error)
            continue
        yield _judged(file, lines, prefix, label, footprint)


def _jobs(document: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path of the job in its document, the job): one mapping, a list of them, or a list under ``jobs``."""
    if isinstance(document, Mapping) and "jobs" in document:
        if unknown := sorted(set(map(str, document)) - {"jobs"}):
            raise InputError(f"{where}: {unknown[0]}", NO_VALUE, "is not a known key beside jobs", "put it into each job")
        document, prefix = document["jobs"], "jobs."
    else:
        prefix = ""
    if isinstance(document, Mapping):
        yield "", dict(document)
        return
    if not isinstance(document, list) or not document:
        raise InputError(where, NO_VALUE, "holds no job", "write one: model: gpt2")
    for index, job in enumerate(document):
        if not isinstance(job, Mapping):
            raise InputError(f"{where}: {prefix}{index}", job, "is not a job", "write it as a mapping: model: gpt2")
        yield f"{prefix}{index}", dict(job)


def _overridden(job: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The job, with what the command line says of the hardware in place of its own."""
    result = grouped(job)
    for key, value in overrides.items():
        if key == "scope":
            result["scope"] = value
        elif isinstance(hardware := result.setdefault("hardware", {}), dict):
            if key in ("gpu", "memory"):
                hardware.pop("memory" if key == "gpu" else "gpu", None)
            hardware[key] = value
    return result


def _judged(file: Path, lines: Mapping[str, int], prefix: str, label: str, footprint: Footprint) -> Finding:
    fits = footprint.fits
    if fits is None:
        reason = "names neither gpu nor memory, so there is nothing to fit; add one, or give --gpu or --memory"
        return Finding(file, _line(lines, prefix, "model"), label, "unknown", UNJUDGED, reason, footprint)
    line = _line(lines, prefix, "hardware.gpu" if fits.gpu else "hardware.memory")
    return Finding(file, line, label, fits.verdict, OUTCOMES[fits.verdict], fits.reason, footprint)


def _error(file: Path, line: int, label: str, error: MemcalcError) -> Finding:
    return Finding(file, line, label, "error", UNJUDGED, str(error))


def _line(lines: Mapping[str, int], prefix: str, path: str) -> int:
    """The line of a dotted path, or of its nearest written ancestor; flat keys stand at the top of their job."""
    parts = path.split(".") if path else []
    candidates = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    candidates += [parts[at] for at in range(len(parts) - 1, 0, -1)]
    for candidate in [*candidates, ""]:
        key = ".".join(part for part in (prefix, candidate) if part)
        if key in lines:
            return lines[key]
    return 1
