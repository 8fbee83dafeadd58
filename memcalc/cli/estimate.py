"""``memcalc estimate``: one job, where its bytes go, and whether it fits."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memcalc.cli import options as o
from memcalc.cli.app import single
from memcalc.errors import InputError

if TYPE_CHECKING:
    from memcalc.footprint import Footprint

app = single()


class Format(StrEnum):
    """How the answer is printed."""

    table = "table"
    json = "json"
    csv = "csv"
    markdown = "markdown"


def _traced(name: str, text: str, metavar: str, **limits: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=o.TRACE, metavar=metavar, show_default=False, **limits)


FormatOption = Annotated[
    Format,
    typer.Option("--format", help="table, json, csv, markdown.", rich_help_panel=o.OUTPUT, metavar="FORM", show_default=False),
]


@app.command()
def estimate(
    model: o.ModelArgument = None,
    params: o.Params = None,
    sets: o.Sets = None,
    optimizer: o.OptimizerName = None,
    optimizer_arg: o.OptimizerArgs = None,
    precision: o.Precision = None,
    micro_batch_size: o.MicroBatch = None,
    sequence_length: o.Sequence = None,
    source_length: o.Source = None,
    image_size: o.Image = None,
    gradient_accumulation_steps: o.Accumulation = None,
    activation_checkpointing: o.Checkpointing = None,
    attention: o.AttentionKernel = None,
    max_grad_norm: o.Clipping = None,
    keep_gradients: o.KeepGradients = False,
    lora: o.Lora = None,
    quantization: o.Quantization = None,
    implementation: o.ImplementationName = None,
    dp: o.Dp = None,
    zero_stage: o.Stage = None,
    zero_backend: o.Backend = None,
    zero_arg: o.ZeroArgs = None,
    dp_replicate: o.Replicate = None,
    dp_shard: o.Shard = None,
    tp: o.Tp = None,
    pp: o.Pp = None,
    cp: o.Cp = None,
    ep: o.Ep = None,
    gpu: o.Gpu = None,
    memory: o.Memory = None,
    headroom: o.Headroom = None,
    scope: o.Scope = None,
    form: FormatOption = Format.table,
    exact: o.ExactBytes = False,
    explain: Annotated[bool, typer.Option("--explain", help="Every buffer, adding up.", rich_help_panel=o.OUTPUT)] = False,
    engine: o.Engine = None,
    inputs: o.Inputs = None,
    loss: o.LossName = None,
    step: o.StepName = None,
    routing_imbalance: o.Routing = None,
    allocator: o.Allocator = None,
    timeline: Annotated[Path | None, _traced("--timeline", "The step as .html, .json, .png or .svg.", "FILE")] = None,
    snapshot: Annotated[Path | None, _traced("--snapshot", "The same for PyTorch's memory visualiser.", "FILE")] = None,
    top: Annotated[int | None, _traced("--top", "The N largest tensors at the peak.", "N", min=1)] = None,
    by: Annotated[str | None, _traced("--by", "The peak by module, operator or role.", "WHAT")] = None,
    app_dir: o.AppDir = None,
) -> None:
    """Where the bytes of one training step go, and whether they fit."""
    mapping = o.job_mapping(
        model, params=params, sets=sets, optimizer=optimizer, optimizer_args=optimizer_arg, precision=precision,
        micro_batch_size=micro_batch_size, sequence_length=sequence_length, source_length=source_length, image_size=image_size,
        gradient_accumulation_steps=gradient_accumulation_steps, activation_checkpointing=activation_checkpointing,
        attention=attention, max_grad_norm=max_grad_norm, set_to_none=False if keep_gradients else None,
        routing_imbalance=routing_imbalance, dp=dp, zero_stage=zero_stage, zero_backend=zero_backend,
        zero_args=zero_arg, dp_replicate=dp_replicate, dp_shard=dp_shard, tp=tp, pp=pp, cp=cp, ep=ep, engine=engine,
        gpu=gpu, memory=memory, headroom=headroom, scope=scope, lora=o.lora_options(lora), quantization=quantization,
        implementation=implementation,
    )  # fmt: skip
    if allocator is not None:
        mapping["behaviour"] = {"allocator": allocator}
    asked = {
        "--input": inputs, "--loss": loss, "--step": step, "--timeline": timeline,
        "--snapshot": snapshot, "--top": top, "--by": by,
    }  # fmt: skip
    footprint: Footprint
    if engine == "trace":
        from memcalc.cli.traced import Wanted, traced

        footprint = traced(
            mapping, Wanted(timeline, snapshot, top, by), form.value, exact=exact, explain=explain, app_dir=app_dir,
            inputs=tuple(inputs or ()), loss=loss, step=step,
        )  # fmt: skip
    else:
        for flag, value in asked.items():
            if value:
                raise InputError(flag, str(value), "needs the step to be traced", "add --engine trace")
        from memcalc.api import estimate_mapping
        from memcalc.formats import show

        footprint = estimate_mapping(mapping, app_dir=app_dir, explained=explain)
        show.one(footprint, form.value, exact=exact, explain=explain)
    if footprint.fits is not None and footprint.fits.verdict in ("does_not_fit", "tight"):
        raise typer.Exit(1)
