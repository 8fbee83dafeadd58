"""``memcalc list``: what there is to choose from."""

import json
from typing import Annotated

import typer

from memcalc.cli.app import single
from memcalc.cli.estimate import Format

app = single()
WHAT = "optimizers, models, gpus, precisions or implementations."


@app.command("list")
def show(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=WHAT, show_default=False)],
    containing: Annotated[str, typer.Argument(metavar="[TEXT]", help="Only rows that contain this.", show_default=False)] = "",
    form: Annotated[Format, typer.Option("--format", help="table, json, csv or markdown.", metavar="FORM")] = Format.table,
) -> None:
    """What to choose from: models, optimizers, gpus, precisions, implementations."""
    from memcalc.listing import rows

    found = rows(kind, containing)
    if form is Format.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from memcalc.formats import listed

    listed.show(found, form.value)
