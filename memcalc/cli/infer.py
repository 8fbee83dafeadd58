"""``memcalc infer``: a model that is run and not trained: evaluation, a prefill, a step of decoding."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from memcalc.cli import options as o
from memcalc.cli.app import single
from memcalc.cli.estimate import Format, FormatOption

if TYPE_CHECKING:
    from memcalc.footprint import Footprint

app = single()


class Mode(StrEnum):
    """What is run."""

    evaluate = "evaluate"
    prefill = "prefill"
    decode = "decode"


@app.command()
def infer(
    model: o.ModelArgument = None,
    mode: Annotated[Mode, typer.Option("--mode", help="evaluate, prefill or decode.", metavar="WHAT")] = Mode.decode,
    context_length: o.ContextLength = None,
    cache: o.CacheKind = None,
    cache_arg: o.CacheArgs = None,
    max_cache_length: o.CacheLength = None,
    sets: o.Sets = None,
    precision: o.Precision = None,
    micro_batch_size: o.MicroBatch = None,
    sequence_length: o.Sequence = None,
    source_length: o.Source = None,
    image_size: o.Image = None,
    attention: o.AttentionKernel = None,
    implementation: o.ImplementationName = None,
    gpu: o.Gpu = None,
    memory: o.Memory = None,
    headroom: o.Headroom = None,
    scope: o.Scope = None,
    form: FormatOption = Format.table,
    exact: o.ExactBytes = False,
    explain: Annotated[bool, typer.Option("--explain", help="Every buffer, adding up.", rich_help_panel=o.OUTPUT)] = False,
    engine: o.Engine = None,
    allocator: o.Allocator = None,
    app_dir: o.AppDir = None,
) -> None:
    """Where the bytes of a forward without gradients go, with its cache of keys and values, and whether they fit."""
    mapping = o.job_mapping(
        model, sets=sets, mode=mode.value, context_length=context_length, cache=cache, cache_args=cache_arg,
        max_cache_length=max_cache_length, precision=precision, micro_batch_size=micro_batch_size,
        sequence_length=sequence_length, source_length=source_length, image_size=image_size, attention=attention, gpu=gpu,
        memory=memory, headroom=headroom, scope=scope, engine=engine, implementation=implementation,
    )  # fmt: skip
    if allocator is not None:
        mapping["behaviour"] = {"allocator": allocator}
    footprint: Footprint
    if engine == "trace":
        from memcalc.cli.traced import Wanted, traced

        footprint = traced(mapping, Wanted(), form.value, exact=exact, explain=explain, app_dir=app_dir)
    else:
        from memcalc.api import estimate_mapping
        from memcalc.formats import show

        footprint = estimate_mapping(mapping, app_dir=app_dir, explained=explain)
        show.one(footprint, form.value, exact=exact, explain=explain)
    if footprint.fits is not None and footprint.fits.verdict in ("does_not_fit", "tight"):
        raise typer.Exit(1)
