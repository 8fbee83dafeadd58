"""Findings of a check held against a baseline: each keeps its own verdict and gains what growth makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from memcalc.baseline import Entry, Growth, Limit, baseline_text, compared, read_baseline
from memcalc.check import FAILED, PASSED, UNJUDGED, Finding
from memcalc.errors import InputError
from memcalc.measurement_files import write_atomically
from memcalc.readers.files import printable
from memcalc.records import replace

OUTCOMES = {"within": PASSED, "new": PASSED, "grew": FAILED, "not_comparable": UNJUDGED}
NEW = "is not in the baseline, so nothing is known of its growth; add it with --write-baseline"


def against(findings: Sequence[Finding], file: Path, limit: Limit) -> list[Finding]:
    """Every finding with its growth, and one for each job that only the baseline has.

    A job that the baseline does not know passes with a warning: failing it would stop whoever adds a job, and silence would
    let a renamed one escape. For the same reason a job that is gone is said. A job that names no hardware is judged by growth
    alone.

    Raises:
        InputError: the baseline cannot be read.
    """
    baseline = read_baseline(file)
    jobs = [finding for finding in findings if finding.footprint is not None]
    if len(jobs) == len(findings) == len(baseline) == 1 and None in baseline:
        baseline = {jobs[0].name: baseline[None]}  # one footprint and one job: no name is needed
    elif None in baseline:
        rule = f"is of one job without a name, and {len(findings)} are checked"
        raise InputError(f"baseline ({file})", "a footprint", rule, "write one of all: --write-baseline")
    count = Counter(finding.name for finding in findings)
    judged = [_with_growth(finding, baseline, limit, count[finding.name]) for finding in findings]
    return [*judged, *_gone(findings, baseline, file)]


def without_fit(findings: Iterable[Finding]) -> list[Finding]:
    """Findings where naming no hardware is no fault: a baseline is written of such jobs too."""
    return [
        replace(one, verdict="no_hardware", outcome=PASSED, reason="nothing to fit into was named; its figures are written")
        if one.footprint is not None and one.footprint.fits is None
        else one
        for one in findings
    ]


def write_baseline(findings: Iterable[Finding], file: Path) -> None:
    """The figures of every job, as a baseline; whole or not at all.

    Raises:
        InputError: a job could not be read, two have one name, or the file cannot be written. What was there stays.
    """
    pairs = []
    for finding in findings:
        if finding.footprint is not None:
            pairs.append((finding.name, finding.footprint))
        elif finding.verdict != "gone":
            rule = f"is not written: {finding.name} has no figures ({finding.reason})"
            raise InputError("--write-baseline", str(file), rule, "mend that job first")
    # through a link, so that the link stays one
    write_atomically(file.resolve(), baseline_text(pairs).encode(), "--write-baseline")


def _with_growth(finding: Finding, baseline: Mapping[str | None, Entry], limit: Limit, alike: int) -> Finding:
    footprint = finding.footprint
    if footprint is None:
        return finding
    before = baseline.get(finding.name)
    if alike > 1:
        growth = Growth("not_comparable", f"{alike} jobs are called {finding.name}; give each a name of its own")
    elif before is None:
        growth = Growth("new", NEW)
    else:
        growth = compared(footprint, before, limit)
    outcome = OUTCOMES[growth.verdict]
    warned = growth.verdict == "new" or bool(growth.differs)
    if footprint.fits is None:
        return replace(finding, verdict=growth.verdict, outcome=outcome, reason=growth.reason, growth=growth, warned=warned)
    outcomes = {outcome, finding.outcome}
    worst = next(one for one in (FAILED, UNJUDGED, PASSED) if one in outcomes)
    verdict = finding.verdict if finding.outcome == worst else growth.verdict
    reason = f"{finding.reason}; {growth.reason}"
    return replace(finding, verdict=verdict, outcome=worst, reason=reason, growth=growth, warned=warned)


def _gone(findings: Sequence[Finding], baseline: Mapping[str | None, Entry], file: Path) -> Iterable[Finding]:
    names = {finding.name for finding in findings}
    reason = "is in the baseline and was not checked; if it is gone for good, write the baseline anew with --write-baseline"
    for name in baseline:
        if name is not None and name not in names:
            yield Finding(file, 1, printable(name), "gone", PASSED, reason, warned=True)
