"""``memcalc textbook``: the textbook's claims, audited on a model."""

import json
from typing import Annotated

import typer

from memcalc.cli.app import single
from memcalc.cli.estimate import Format, FormatOption

app = single()


@app.command()
def textbook(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="The model to compute on.")] = "llama-3.1-8b",
    form: FormatOption = Format.table,
) -> None:
    """The textbook's claims, each beside the exact figure.

    With the accounting under which a claim holds, and the one under which it does not.
    """
    from memcalc.api import estimator
    from memcalc.textbook import REMARKS, audit, rows

    found = rows(audit(estimator(model)))
    if form is Format.json:
        print(
            json.dumps({"schema_version": 1, "model": model, "claims": found, "remarks": REMARKS}, indent=2, ensure_ascii=False)
        )
        return
    from memcalc.formats import claims

    claims.show(model, found, REMARKS, form.value)
