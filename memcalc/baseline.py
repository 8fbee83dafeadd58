"""A baseline: what jobs took when somebody last agreed to it. A check is held against it, and it is written from a check."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any

from memcalc.errors import NO_VALUE, InputError
from memcalc.footprint import SCHEMA_VERSION, Footprint
from memcalc.readers.files import parse_json, printable, read_bytes
from memcalc.records import dataclass
from memcalc.units import MAX_BYTES, MIB, format_gib, parse_bytes

MAX_BASELINE = 64 * MIB
"""The largest baseline read: a footprint is about 5 KB of JSON."""
FIGURES = ("peak.reserved", "peak.allocated", "peak.requested", "states.rounded")
"""What growth is judged on: the first of these that both sides have. ``reserved`` is what a card must have; each of the others
says less of it."""
UNLIKE = ("engine", "scope")
"""Where these differ, two figures of one name are not of one thing."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How much more is let pass: a share of what it was, or bytes. ``text`` is as it was given."""

    text: str
    share: Fraction | None
    nbytes: int

    def allows(self, before: int, now: int) -> bool:
        """Whether the growth stays within it, to the byte.

        >>> parse_limit("2%").allows(100, 102), parse_limit("2%").allows(100, 103), parse_limit("1KiB").allows(0, 1024)
        (True, False, True)
        """
        return now - before <= (self.nbytes if self.share is None else before * self.share)


@dataclass(frozen=True, slots=True)
class Entry:
    """One job of a baseline.

    Attributes:
        name: what the job was called; None for a footprint of no name.
        engine: how its figures were found.
        figures: those of FIGURES that it has.
        job: the job as it was understood.
        model: the model's name, parameters and tensors.
    """

    name: str | None
    engine: str
    figures: dict[str, int]
    job: dict[str, Any]
    model: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Growth:
    """A job beside its baseline.

    Attributes:
        verdict: ``within``, ``grew``, ``new`` (not in the baseline) or ``not_comparable``.
        reason: why, in one line.
        figure: which of FIGURES was compared.
        before: its bytes in the baseline.
        now: its bytes today.
        differs: paths of the job and the model that are not as they were, with both values.
    """

    verdict: str
    reason: str
    figure: str | None = None
    before: int | None = None
    now: int | None = None
    differs: tuple[str, ...] = ()


def parse_limit(text: str, path: str = "--max-growth") -> Limit:
    """A limit from ``2%``, ``512MiB`` or ``0``.

    Raises:
        InputError: neither, or below zero.

    >>> parse_limit("2.5%").share, parse_limit("512MiB").nbytes, parse_limit("0").nbytes
    (Fraction(1, 40), 536870912, 0)
    """
    raw = text.strip()
    if not raw.endswith("%"):
        return Limit(raw, None, 0 if raw == "0" else parse_bytes(raw, path))
    try:
        share = Decimal(raw[:-1].strip())
    except InvalidOperation:
        share = Decimal("NaN")
    if not share.is_finite() or not 0 <= share <= 10**6:
        raise InputError(path, text, "is no share of zero and more", "write it as 2% or 512MiB")
    return Limit(raw, Fraction(share) / 100, 0)


def read_baseline(path: Path) -> dict[str | None, Entry]:
    """The jobs of a baseline by name.

    Args:
        path: what ``check --write-baseline``, ``check --format json`` or ``estimate --format json`` wrote.

    Raises:
        InputError: not there, cut short, not JSON, of another schema version, a figure that is no count of bytes, or a name
            given twice.
    """
    where = f"baseline ({path})"
    document = parse_json(read_bytes(path, "baseline", MAX_BASELINE), where)
    if not isinstance(document, Mapping):
        raise InputError(where, NO_VALUE, "is not a baseline", "write one: memcalc check … --write-baseline FILE")
    _require_version(document, where)
    if "jobs" not in document:
        return {(entry := _entry(document, where, None)).name: entry}
    jobs = document["jobs"]
    if not isinstance(jobs, list) or not jobs:
        raise InputError(f"{where}: jobs", NO_VALUE, "holds no job", "write it anew: memcalc check … --write-baseline FILE")
    found: dict[str | None, Entry] = {}
    for index, job in enumerate(jobs):
        at = f"{where}: jobs.{index}"
        if not isinstance(job, Mapping) or not isinstance(job.get("name"), str):
            raise InputError(at, NO_VALUE, "has no name", "write it anew: memcalc check … --write-baseline FILE")
        if job["name"] in found:
            raise InputError(f"{at}.name", job["name"], "is given twice", "give each job a name of its own")
        if job.get("footprint") is not None:
            found[job["name"]] = _entry(job["footprint"], f"{at}.footprint", job["name"])
    return found


def baseline_text(footprints: Iterable[tuple[str, Footprint]]) -> str:
    """A baseline of these jobs, by name.

    Raises:
        InputError: two jobs of one name: which of them it is could not be told when it is read.
    """
    jobs: dict[str, Any] = {}
    for name, footprint in footprints:
        if name in jobs:
            raise InputError("--write-baseline", name, "is the name of two jobs", "give each a name of its own: name: …")
        jobs[name] = {"name": name, "footprint": footprint.to_dict()}
    document = {"schema_version": SCHEMA_VERSION, "jobs": list(jobs.values())}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def compared(footprint: Footprint, before: Entry, limit: Limit) -> Growth:
    """The growth of one job, on the best figure that both have."""
    now = footprint.to_dict()
    differs = tuple(_differences(before, now))
    said = f"; not as in the baseline: {', '.join(differs[:4])}" if differs else ""
    said += f" and {len(differs) - 4} more" if len(differs) > 4 else ""
    for key in UNLIKE:
        pair = (before.engine, footprint.engine) if key == "engine" else (before.job.get(key), footprint.job.get(key))
        if pair[0] != pair[1]:
            reason = f"the baseline was made with {key} {pair[0]}, this with {pair[1]}; write it anew with --write-baseline"
            return Growth("not_comparable", reason, differs=differs)
    mine = _figures(now, "footprint")
    figure = next((name for name in FIGURES if name in before.figures and name in mine), None)
    if figure is None:
        return Growth("not_comparable", "the baseline and this job have no figure in common", differs=differs)
    old, new = before.figures[figure], mine[figure]
    verdict = "within" if limit.allows(old, new) else "grew"
    change = f" ({100 * (new - old) / old:+.2f} %)" if old else ""
    allowed = "" if verdict == "within" else f", more than {limit.text} allows"
    reason = f"{figure} {format_gib(old)} → {format_gib(new)}, {_signed(new - old)}{change}{allowed}{said}"
    return Growth(verdict, reason, figure, old, new, differs)


def _signed(count: int) -> str:
    return f"{'+' if count >= 0 else '-'}{format_gib(abs(count))}"


def _require_version(document: Mapping[str, Any], where: str) -> None:
    version = document.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        rule = f"is not the schema version this memcalc reads, {SCHEMA_VERSION}"
        raise InputError(f"{where}: schema_version", version, rule, "write it anew: memcalc check … --write-baseline FILE")


def _entry(told: Any, where: str, name: str | None) -> Entry:
    if not isinstance(told, Mapping):
        raise InputError(where, NO_VALUE, "is not a footprint", "write it anew: memcalc check … --write-baseline FILE")
    _require_version(told, where)
    parts = {}
    for key in ("job", "model"):
        if not isinstance(told.get(key), Mapping):
            raise InputError(f"{where}: {key}", NO_VALUE, "is missing", "give what estimate or check wrote as --format json")
        parts[key] = dict(told[key])
    figures = _figures(told, where)
    if not figures:
        raise InputError(where, NO_VALUE, f"has none of {', '.join(FIGURES)}", "give what estimate or check wrote")
    own = parts["job"].get("name")
    if own is not None and not isinstance(own, str):
        raise InputError(f"{where}: job.name", own, "is not a name", "write it as text")
    return Entry(name if name is not None else own, str(told.get("engine")), figures, parts["job"], parts["model"])


def _figures(told: Mapping[str, Any], where: str) -> dict[str, int]:
    """Those of FIGURES that a footprint has; null is none."""
    found = {}
    for path in FIGURES:
        part, _, leaf = path.partition(".")
        group = told.get(part)
        if not isinstance(group, Mapping):
            raise InputError(f"{where}: {part}", NO_VALUE, "is missing", "give what estimate or check wrote as --format json")
        value = group.get(leaf)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_BYTES:
            raise InputError(f"{where}: {path}", value, "is no count of bytes", "a whole number from 0 to 2**63 - 1")
        found[path] = value
    return found


def _differences(before: Entry, now: Mapping[str, Any]) -> Iterable[str]:
    """Paths that differ, with both values; the name and what is merely shown beside the job are none."""
    for part, old in (("job", before.job), ("model", before.model)):
        left, right = dict(_leaves(old, part)), dict(_leaves(now[part], part))
        for path in sorted(left.keys() | right.keys()):
            was, is_ = left.get(path), right.get(path)
            # a key that one side does not know is an addition of another version, unless it says something
            if was != is_ and path not in ("job.name", "model.name") and not path.startswith("job.hardware."):
                yield f"{printable(path, 80)} {_short(was)} → {_short(is_)}"


def _leaves(value: Any, path: str) -> Iterable[tuple[str, str | None]]:
    """Every plain value of nested mappings by its dotted path, null left out; not recursive, so that no depth can hurt."""
    waiting = [(path, value)]
    while waiting:
        at, one = waiting.pop()
        if isinstance(one, Mapping):
            waiting += [(f"{at}.{key}", inner) for key, inner in one.items()]
        elif one is not None:
            try:
                yield at, json.dumps(one, ensure_ascii=False)
            except RecursionError:  # lists in lists, as deep as the reader could just go
                yield at, "…"


def _short(text: str | None) -> str:
    shown = "none" if text is None else printable(text.strip('"'), 41)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
