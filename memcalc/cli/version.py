"""``memcalc version``: which memcalc, which Python, and which optional packages it can see."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from memcalc.cli.app import single

app = single()
OPTIONAL = ("torch", "huggingface_hub", "pyarrow", "distributed", "transformers")


@app.command("version")
def show(form: Annotated[str, typer.Option("--format", help="text or json.", metavar="FORM")] = "text") -> None:
    """The versions of memcalc, Python and optional packages."""
    found = {"memcalc": version("memcalc"), "python": platform.python_version()}
    packages = {name: installed(name) for name in OPTIONAL}
    if form == "json":
        print(json.dumps({"schema_version": 1, **found, "packages": packages}, indent=2))
        return
    print(f"memcalc {found['memcalc']} (Python {found['python']})")
    for name, value in packages.items():
        print(f"  {name:<16} {value or 'not installed'}")


def installed(name: str) -> str | None:
    """The version of an installed package; None where it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
