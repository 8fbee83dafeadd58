"""``memcalc compare``: one model under several optimizers and precisions, side by side."""

from enum import StrEnum
from typing import Annotated

import typer

from memcalc.cli import options as o
from memcalc.cli.app import single
from memcalc.cli.estimate import Format, FormatOption

app = single()


class Order(StrEnum):
    """What the rows are sorted by."""

    given = "given"
    peak = "peak"
    states = "states"
    name = "name"


@app.command()
def compare(
    model: o.ModelArgument = None,
    optimizers: Annotated[str, typer.Option("--optimizers", help="Names with commas between.", metavar="A,B,…")] = "",
    precisions: Annotated[str, typer.Option("--precisions", help="Schemes with commas between.", metavar="A,B,…")] = "",
    sort: Annotated[Order, typer.Option("--sort", help="given, peak, states or name.", metavar="BY")] = Order.given,
    params: o.Params = None,
    sets: o.Sets = None,
    dp: o.Dp = None,
    zero_stage: o.Stage = None,
    zero_backend: o.Backend = None,
    zero_arg: o.ZeroArgs = None,
    gradient_accumulation_steps: o.Accumulation = None,
    gpu: o.Gpu = None,
    memory: o.Memory = None,
    headroom: o.Headroom = None,
    scope: o.Scope = None,
    form: FormatOption = Format.table,
    exact: o.ExactBytes = False,
    app_dir: o.AppDir = None,
) -> None:
    """Optimizers and precisions side by side, one row each.

    Each row shows its difference to the first.
    """
    mapping = o.job_mapping(
        model, params=params, sets=sets, dp=dp, zero_stage=zero_stage, zero_backend=zero_backend, zero_args=zero_arg,
        gradient_accumulation_steps=gradient_accumulation_steps, gpu=gpu, memory=memory, headroom=headroom, scope=scope,
    )  # fmt: skip
    from memcalc.api import compare_mapping
    from memcalc.formats import show

    footprints = compare_mapping(mapping, o.words(optimizers, "--optimizers"), o.words(precisions, ""), app_dir=app_dir)
    show.several(footprints, form.value, exact=exact, order=sort.value)
