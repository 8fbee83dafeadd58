"""``memcalc fit``: the largest batch, sequence or context that a device takes, for every way of training a model."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from memcalc.cli import options as o
from memcalc.cli.app import single
from memcalc.cli.estimate import Format, FormatOption
from memcalc.errors import EXIT_NO, EXIT_UNJUDGED, EXIT_YES

app = single()
WAYS = "The ways that are tried, each with each"


class Largest(StrEnum):
    """What is sought."""

    batch = "batch"
    sequence = "sequence"
    context = "context"


FLAGS = (
    ("--optimizers", "adamw,sgd"), ("--precisions", "amp-bf16,fp32"), ("--checkpointing", "none,full"),
    ("--zero-stages", "0,2"), ("--caches", "dynamic,static"),
)  # fmt: skip
"""The flags of the ways, and how one is given."""


def _ways(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=WAYS, metavar="A,B,…", show_default=False)


@app.command()
def fit(
    model: o.ModelArgument = None,
    optimizers: Annotated[str | None, _ways("--optimizers", "Names (adamw,adamw8bit,adafactor,sgd).")] = None,
    precisions: Annotated[str | None, _ways("--precisions", "Schemes (amp-bf16,bf16,bf16-pure).")] = None,
    checkpointing: Annotated[str | None, _ways("--checkpointing", "none, selective, full (none,full).")] = None,
    zero_stages: Annotated[str | None, _ways("--zero-stages", "0 to 3 (that of --zero-stage).")] = None,
    caches: Annotated[str | None, _ways("--caches", "dynamic, static, … where nothing trains.")] = None,
    largest: Annotated[Largest, typer.Option("--largest", help="batch, sequence or context.", metavar="WHAT")] = Largest.batch,
    mode: o.ModeName = None,
    context_length: o.ContextLength = None,
    cache_arg: o.CacheArgs = None,
    max_cache_length: o.CacheLength = None,
    sets: o.Sets = None,
    optimizer_arg: o.OptimizerArgs = None,
    micro_batch_size: o.MicroBatch = None,
    sequence_length: o.Sequence = None,
    source_length: o.Source = None,
    image_size: o.Image = None,
    gradient_accumulation_steps: o.Accumulation = None,
    attention: o.AttentionKernel = None,
    max_grad_norm: o.Clipping = None,
    lora: o.Lora = None,
    quantization: o.Quantization = None,
    implementation: o.ImplementationName = None,
    dp: o.Dp = None,
    zero_stage: o.Stage = None,
    zero_backend: o.Backend = None,
    zero_arg: o.ZeroArgs = None,
    dp_replicate: o.Replicate = None,
    dp_shard: o.Shard = None,
    gpu: o.Gpu = None,
    memory: o.Memory = None,
    headroom: o.Headroom = None,
    form: FormatOption = Format.table,
    exact: o.ExactBytes = False,
    allocator: o.Allocator = None,
    app_dir: o.AppDir = None,
) -> None:
    """What fits: the largest micro-batch, sequence or context, for each way of training or of keeping keys and values.

    Exits with 1 where nothing fits, and with 2 where nothing can be said.
    """
    mapping = o.job_mapping(
        model, sets=sets, mode=mode, context_length=context_length, cache_args=cache_arg, max_cache_length=max_cache_length,
        optimizer_args=optimizer_arg, micro_batch_size=micro_batch_size, sequence_length=sequence_length,
        source_length=source_length, image_size=image_size, gradient_accumulation_steps=gradient_accumulation_steps,
        attention=attention, max_grad_norm=max_grad_norm, dp=dp, zero_stage=zero_stage, zero_backend=zero_backend,
        zero_args=zero_arg, dp_replicate=dp_replicate, dp_shard=dp_shard, gpu=gpu, memory=memory, headroom=headroom,
        lora=o.lora_options(lora), quantization=quantization, implementation=implementation,
    )  # fmt: skip
    if allocator is not None:
        mapping["behaviour"] = {"allocator": allocator}
    from memcalc.fit import fit as find
    from memcalc.fit import grid_of
    from memcalc.formats.fits import show

    given = (optimizers, precisions, checkpointing, zero_stages, caches)
    grid = grid_of(*(None if text is None else o.words(text, *flag) for text, flag in zip(given, FLAGS, strict=True)))
    choices = find(mapping, grid, largest=largest.value, app_dir=app_dir)
    show(choices, largest.value, form.value, exact=exact)
    sizes = [one.largest for one in choices if one.largest is not None]
    raise typer.Exit(EXIT_YES if any(sizes) else EXIT_NO if sizes else EXIT_UNJUDGED)
