"""``memcalc sweep``: a grid of jobs as rows."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from memcalc.cli import options as o
from memcalc.cli.app import single

app = single()


class SweepFormat(StrEnum):
    """How rows are printed where no file is named."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"


@app.command()
def sweep(
    file: Annotated[
        Path,
        typer.Argument(metavar="SWEEP.yaml", help="Axes, lists and a base job; or a shipped sweep's name.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="FILE.csv, FILE.jsonl or FILE.parquet.", metavar="FILE", show_default=False)
    ] = None,
    form: Annotated[
        SweepFormat, typer.Option("--format", help="Without --output: table, csv, json, markdown.", metavar="FORM")
    ] = SweepFormat.table,
    exact: o.ExactBytes = False,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes.", metavar="N")] = 1,
    executor: Annotated[
        str | None,
        typer.Option("--executor", help="in-process, processes or dask:ADDRESS.", metavar="WHO", show_default=False),
    ] = None,
    chunk: Annotated[
        int | None, typer.Option("--chunk", help="Points computed and kept together.", metavar="ROWS", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Take up an earlier run's parts, or throw them away.")
    ] = True,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Let py: models in the file run code.")] = False,
    app_dir: o.AppDir = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no summary.")] = False,
) -> None:
    """A grid of jobs, a row each, resumable.

    A point that cannot be judged is a row that says why.

    With --output the run can be ended at any moment and taken up again. Exits with 2 when no point could be judged.
    """
    from memcalc.errors import EXIT_UNJUDGED
    from memcalc.sweep import run
    from memcalc.sweep.progress import bar
    from memcalc.sweep.show import show

    made = run(file, jobs=jobs, executor=executor, chunk=chunk, allow_code=allow_code, app_dir=app_dir)
    with bar(made.points, quiet=quiet) as progress:
        if output is None:
            rows, errors = show(made, form.value, exact=exact, progress=progress)
        else:
            written = made.write(output, restart=not resume, progress=progress)
            rows, errors = written.rows, written.errors
    if output is not None and not quiet:
        said = f", {errors:,} of them errors" if errors else ""
        typer.echo(f"{output}: {rows:,} rows{said}", err=True)
    if rows and errors == rows:
        raise typer.Exit(EXIT_UNJUDGED)
