"""The findings of a check: for a terminal, for a machine, for GitHub's annotations and for JUnit readers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree

from memcalc.check import FAILED, PASSED, UNJUDGED, Finding, exit_code
from memcalc.formats.rows import as_csv, as_markdown

WORDS = {PASSED: "PASS", FAILED: "FAIL", UNJUDGED: "????"}
STYLES = {PASSED: "green", FAILED: "red", UNJUDGED: "yellow"}


def show(findings: Sequence[Finding], form: str) -> None:
    """Print findings in one of the forms."""
    if form in ("text", "table"):
        _text(findings)
    else:
        writers = {"json": as_json, "csv": _csv, "markdown": _markdown, "github": as_github, "junit": as_junit}
        print(writers[form](findings))


def _text(findings: Sequence[Finding]) -> None:
    from rich.text import Text

    from memcalc.formats.table import console

    out = console()
    for finding in findings:
        word, style = ("WARN", "yellow") if _warns(finding) else (WORDS[finding.outcome], STYLES[finding.outcome])
        head = Text(f"{word}  ", style=f"bold {style}")
        out.print(head.append(f"{finding.name}", style="bold").append(f"  {said(finding)}", style="not bold"), soft_wrap=True)


def said(finding: Finding) -> str:
    """The verdict and its reason in one line.

    >>> said(Finding(__file__, 1, "a", "does_not_fit", FAILED, "the states take too much"))
    'does not fit: the states take too much'
    """
    return f"{finding.verdict.replace('_', ' ')}: {finding.reason}"


def _warns(finding: Finding) -> bool:
    return finding.warned and finding.outcome == PASSED


def rows(findings: Sequence[Finding]) -> list[dict[str, object]]:
    """One flat row a finding; with columns of its growth where any was held against a baseline."""
    listed: list[dict[str, object]] = [
        {"file": str(f.file), "line": f.line, "name": f.name, "verdict": f.verdict, "outcome": f.outcome, "reason": f.reason}
        for f in findings
    ]
    if any(f.growth is not None or f.warned for f in findings):
        for row, f in zip(listed, findings, strict=True):
            grown = f.growth
            row |= {"warned": f.warned, "growth": grown.verdict if grown else None, "figure": grown.figure if grown else None}
            row |= {"before": grown.before if grown else None, "now": grown.now if grown else None}
    return listed


def as_json(findings: Sequence[Finding]) -> str:
    """One object: the exit code and, for each job, its verdict and footprint."""
    jobs = [
        {
            **row,
            **({"differs": list(finding.growth.differs)} if finding.growth else {}),
            "footprint": finding.footprint.to_dict() if finding.footprint else None,
        }
        for row, finding in zip(rows(findings), findings, strict=True)
    ]
    return json.dumps({"schema_version": 1, "exit_code": exit_code(findings), "jobs": jobs}, indent=2, ensure_ascii=False)


def _csv(findings: Sequence[Finding]) -> str:
    return as_csv(rows(findings)).rstrip("\n")


def _markdown(findings: Sequence[Finding]) -> str:
    return as_markdown(["job", "verdict", "reason"], [[f.name, f.verdict.replace("_", " "), f.reason] for f in findings])


def as_github(findings: Sequence[Finding]) -> str:
    """Workflow commands that GitHub shows on the right file and line.

    source: GitHub Docs, "Workflow commands for GitHub Actions": ``::error file={name},line={line},title={title}::{message}``
    """
    levels = {PASSED: "notice", FAILED: "error", UNJUDGED: "warning"}
    return "\n".join(
        f"::{'warning' if _warns(f) else levels[f.outcome]} file={_property(str(f.file))},line={f.line},"
        f"title={_property(f'memcalc: {f.name}')}::{_data(said(f))}"
        for f in findings
    )


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def as_junit(findings: Sequence[Finding]) -> str:
    """JUnit XML: a failure where a job does not fit, an error where it could not be judged."""
    count = {outcome: sum(f.outcome == outcome for f in findings) for outcome in WORDS}
    totals = {"tests": str(len(findings)), "failures": str(count[FAILED]), "errors": str(count[UNJUDGED])}
    root = ElementTree.Element("testsuites", totals)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "memcalc check", **totals})
    for finding in findings:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {"name": finding.name, "classname": str(finding.file), "file": str(finding.file), "line": str(finding.line)},
        )
        if finding.outcome != PASSED:
            kind = "failure" if finding.outcome == FAILED else "error"
            ElementTree.SubElement(case, kind, {"message": finding.reason, "type": finding.verdict}).text = said(finding)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
