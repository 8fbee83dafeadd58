"""``memcalc check``: the gate of a CI job. A verdict a job, with the reason, and an exit code that means it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from memcalc.cli import options as o
from memcalc.cli.app import single
from memcalc.errors import InputError

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
    against: Annotated[
        Path | None, typer.Option("--against", help="A baseline that no job may outgrow.", metavar="FILE", show_default=False)
    ] = None,
    max_growth: Annotated[
        str | None,
        typer.Option("--max-growth", help="Growth that passes: 2%, 512MiB (default 0).", metavar="LIMIT", show_default=False),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--write-baseline", help="Write the figures as one.", metavar="FILE", show_default=False)
    ] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Let py: models in job files run code.")] = False,
    app_dir: o.AppDir = None,
) -> None:
    """Judge job files, for CI: does each fit, and has any grown?

    Exits 0 if all is well, 1 if any does not fit or grew, else 2 if any could not be judged.
    """
    from memcalc.baseline import parse_limit
    from memcalc.check import check_files, exit_code
    from memcalc.formats import verdicts

    if max_growth is not None and against is None:
        raise InputError("--max-growth", max_growth, "is given without a baseline", "add --against FILE")
    limit = parse_limit(max_growth or "0")
    overrides = o.hardware_mapping(gpu=gpu, memory=memory, headroom=headroom, scope=scope)
    findings = check_files(jobs, overrides, allow_code=allow_code, app_dir=app_dir)
    if against is not None or baseline is not None:
        from memcalc import growth

        # read before it is written: both may be one file
        findings = growth.against(findings, against, limit) if against is not None else growth.without_fit(findings)
    verdicts.show(findings, form.value)
    if baseline is not None:
        growth.write_baseline(findings, baseline)
    raise typer.Exit(exit_code(findings))
