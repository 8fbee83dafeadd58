"""``memcalc check``: the gate of a CI job. A verdict a job, with the reason, and an exit code that means it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from memcalc.cli import options as o
from memcalc.cli.app import single

app = single()


class CheckFormat(StrEnum):
    """How verdicts are printed."""

    text = "text"
    table = "table"
    json = "json"
    csv = "csv"
    markdown = "markdown"
    github = "github"
    junit = "junit"


@app.command()
def check(
    jobs: Annotated[
        list[Path], typer.Argument(metavar="JOB.yaml …", help="Job files; one may hold several jobs.", show_default=False)
    ],
    gpu: o.Gpu = None,
    memory: o.Memory = None,
    headroom: o.Headroom = None,
    scope: o.Scope = None,
    form: Annotated[
        CheckFormat, typer.Option("--format", help="text, table, json, csv, markdown, github, junit.", metavar="FORM")
    ] = CheckFormat.text,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Let py: models in job files run code.")] = False,
    app_dir: o.AppDir = None,
) -> None:
    """Judge job files, for CI: does each fit?

    Exits 0 if all do, 1 if any does not, else 2 if any could not be judged.
    """
    from memcalc.check import check_files, exit_code
    from memcalc.formats import verdicts

    overrides = o.hardware_mapping(gpu=gpu, memory=memory, headroom=headroom, scope=scope)
    findings = check_files(jobs, overrides, allow_code=allow_code, app_dir=app_dir)
    verdicts.show(findings, form.value)
    raise typer.Exit(exit_code(findings))
