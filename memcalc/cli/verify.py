"""``memcalc verify``: what was predicted beside what a real step took, component by component."""

from pathlib import Path
from typing import Annotated, Any

import typer

from memcalc.cli import options as o
from memcalc.cli import step
from memcalc.cli.app import single
from memcalc.cli.estimate import Format, FormatOption
from memcalc.errors import NO_VALUE, InputError

app = single()
COMPARISON = "Comparison"
FLAGS = {"optimizer_args": "--optimizer-arg", "zero_args": "--zero-arg", "inputs": "--input"}
"""Flags whose name is not their key's."""


@app.command()
def verify(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|JOB.yaml|RECORD.json|DIR", help="What to measure, or what was measured.", show_default=False
        ),
    ] = None,
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
    dp: o.Dp = None,
    zero_stage: o.Stage = None,
    zero_backend: o.Backend = None,
    zero_arg: o.ZeroArgs = None,
    dp_replicate: o.Replicate = None,
    dp_shard: o.Shard = None,
    device: step.Device = step.DeviceChoice.cpu,
    iterations: step.Iterations = None,
    inputs: step.Inputs = None,
    loss: step.Loss = None,
    lora: step.Lora = None,
    seed: step.Seed = None,
    timeout: step.Timeout = None,
    tolerance: Annotated[
        str, typer.Option(help="How far a component may be off: 0, 1%, 512B.", rich_help_panel=COMPARISON, metavar="SIZE")
    ] = "0",
    observed: Annotated[
        str | None,
        typer.Option(help="A figure someone else measured: 71.3GiB.", rich_help_panel=COMPARISON, metavar="SIZE",
                     show_default=False),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Of what: nvidia-smi, allocated, reserved.", rich_help_panel=COMPARISON, metavar="NAME")
    ] = "nvidia-smi",
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let py: models in files run code.", rich_help_panel=COMPARISON)
    ] = False,
    form: FormatOption = Format.table,
    app_dir: o.AppDir = None,
) -> None:  # fmt: skip
    """Hold the prediction against a real step.

    Component by component and tensor by tensor.

    A model or a job is measured here and now; records of earlier measurements are read. Exits with 1 where a component
    differs by more than the tolerance, with 2 where something could not be judged.
    """
    flags = {
        "optimizer": optimizer, "optimizer_args": optimizer_arg, "precision": precision, "micro_batch_size": micro_batch_size,
        "sequence_length": sequence_length, "source_length": source_length, "image_size": image_size,
        "gradient_accumulation_steps": gradient_accumulation_steps, "activation_checkpointing": activation_checkpointing,
        "attention": attention, "max_grad_norm": max_grad_norm, "dp": dp, "zero_stage": zero_stage,
        "zero_backend": zero_backend, "zero_args": zero_arg, "dp_replicate": dp_replicate, "dp_shard": dp_shard,
    }  # fmt: skip
    from memcalc.formats import differences
    from memcalc.verify.files import kind_of, verify_records
    from memcalc.verify.judge import exit_code
    from memcalc.verify.tolerance import parse_tolerance

    allowed = parse_tolerance(tolerance)
    kind = "model" if target is None else kind_of(target)
    settings = step.settings_of(lora, iterations=iterations, inputs=inputs, loss=loss, seed=seed, timeout=timeout)
    given = [FLAGS.get(key, f"--{key.replace('_', '-')}") for key, value in flags.items() if value is not None]
    if kind == "records":
        given += [FLAGS.get(key, f"--{key}") for key in settings]
    if kind != "model" and (given or params or sets):
        raise InputError(next(iter(given), "--params" if params else "--set"), NO_VALUE, f"says nothing of {target}",
                         "a file says all of its job itself")  # fmt: skip
    if observed is not None:
        if kind == "records":
            raise InputError("--observed", observed, "says nothing of records, which hold their own", "name a model or a job")
        _observed(_jobs(kind, target, params, sets, flags), observed, metric, allowed, form.value, app_dir, allow_code)
    if kind == "records":
        verdicts = verify_records(Path(str(target)), allowed, allow_code=allow_code, app_dir=app_dir)
        differences.show(verdicts, form.value, str(allowed), listing=Path(str(target)).is_dir())
    else:
        jobs = _jobs(kind, target, params, sets, flags)
        verdicts = _live(jobs, device.value, settings, allowed, app_dir, allow_code=allow_code or kind == "model")
        differences.show(verdicts, form.value, str(allowed), listing=False)
    raise typer.Exit(exit_code(verdicts))


def _jobs(
    kind: str, target: str | None, params: str | None, sets: list[str] | None, flags: dict[str, Any]
) -> list[dict[str, Any]]:
    """The jobs that are asked about, as mappings."""
    if kind == "jobs":
        from memcalc.verify.files import jobs_in

        return jobs_in(Path(str(target)))
    return [o.job_mapping(target, params=params, sets=sets, **flags)]


def _live(
    jobs: list[dict[str, Any]], device: str, told: dict[str, Any], tolerance: Any, app_dir: str | None, *, allow_code: bool
) -> list[Any]:
    """Measure each job here and now."""
    from memcalc.engines.measure.process import measure_mapping, read_settings
    from memcalc.verify.files import Models
    from memcalc.verify.live import verify_live

    settings = read_settings(told)

    def measure(job: dict[str, Any]) -> Any:
        return measure_mapping(job, device=device, settings=settings, app_dir=app_dir, allow_code=allow_code)

    return verify_live(jobs, measure, tolerance, Models(allow_code=allow_code, app_dir=app_dir))


def _observed(
    jobs: list[dict[str, Any]], figure: str, metric: str, tolerance: Any, form: str, app_dir: str | None, allow_code: bool
) -> None:
    """Hold one figure against the bounds of one job, and leave."""
    from memcalc.api import estimate_mapping
    from memcalc.formats import differences
    from memcalc.verify.observed import judge_observed, parse_observed

    read = parse_observed(figure, metric)
    if len(jobs) != 1:
        raise InputError("--observed", figure, f"is one figure, and there are {len(jobs)} jobs", "give a file with one job")
    footprint = estimate_mapping(jobs[0], app_dir=app_dir, allow_code=allow_code or jobs[0].get("model") is None)
    verdict = judge_observed(read, footprint, tolerance)
    differences.show_observed(verdict, form)
    raise typer.Exit(verdict.exit_code)
