"""``memcalc schema``: the JSON Schema of a job, a sweep, a footprint, a measurement or a timeline."""

import json
from typing import Annotated

import typer

from memcalc.cli.app import single

app = single()


@app.command()
def schema(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="job, sweep, footprint, measurement or timeline.", show_default=False)
    ],
) -> None:
    """Print a JSON Schema, for editors and scripts."""
    from memcalc.schemas import schema as schema_of

    print(json.dumps(schema_of(name), indent=2, ensure_ascii=False))
