"""``memcalc measure``: a real step, read to the byte; one job here and now, or a campaign of many."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from memcalc.cli import options as o
from memcalc.cli import step
from memcalc.cli.app import single
from memcalc.errors import EXIT_NO, EXIT_UNJUDGED, NO_VALUE, InputError

app = single()
CAMPAIGN = "Campaigns"


class RecordFormat(StrEnum):
    """How the answer is printed."""

    table = "table"
    json = "json"


def _of(group: str, *names: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=group, metavar=metavar, show_default=False)


@app.command()
def measure(
    model: o.ModelArgument = None,
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
    schedule: step.Schedule = None,
    lora: step.Lora = None,
    seed: step.Seed = None,
    keep_gradients: step.KeepGradients = False,
    history: step.History = False,
    alone: step.Alone = False,
    timeout: step.Timeout = None,
    campaign: Annotated[
        list[Path] | None, _of(CAMPAIGN, "--campaign", text="Run the cases of a file, into --out DIR.", metavar="FILE")
    ] = None,
    jobs: Annotated[int, _of(CAMPAIGN, "--jobs", text="Cases at once (default 1).", metavar="N")] = 1,
    limit: Annotated[float | None, _of(CAMPAIGN, "--limit", text="Begin no case after that.", metavar="SECONDS")] = None,
    retry: Annotated[bool, _of(CAMPAIGN, "--retry", text="Run cases that failed again.")] = False,
    allow_code: Annotated[bool, _of(CAMPAIGN, "--allow-code", text="Let py: models in files run code.")] = False,
    out: Annotated[
        Path | None, _of(o.OUTPUT, "--out", text="Write the record there (.json, .json.gz); a folder for --campaign.")
    ] = None,
    form: Annotated[RecordFormat, _of(o.OUTPUT, "--format", text="table, json.", metavar="FORM")] = RecordFormat.table,
    exact: o.ExactBytes = False,
    app_dir: o.AppDir = None,
) -> None:
    """Take a real step and count its bytes.

    On a GPU by its allocator, on a CPU by the storages that are really alive.

    Exits with 1 when the step ran out of memory, with 2 when it could not be taken.
    """
    flags: dict[str, Any] = {
        "optimizer": optimizer, "optimizer_args": optimizer_arg, "precision": precision, "micro_batch_size": micro_batch_size,
        "sequence_length": sequence_length, "source_length": source_length, "image_size": image_size,
        "gradient_accumulation_steps": gradient_accumulation_steps, "activation_checkpointing": activation_checkpointing,
        "attention": attention, "max_grad_norm": max_grad_norm, "dp": dp, "zero_stage": zero_stage,
        "zero_backend": zero_backend, "zero_args": zero_arg, "dp_replicate": dp_replicate, "dp_shard": dp_shard,
    }  # fmt: skip
    settings = step.settings_of(
        lora, iterations=iterations, inputs=inputs, loss=loss, schedule=schedule, seed=seed, timeout=timeout,
        set_to_none=False if keep_gradients else None, history=history or None, alone=alone or None,
    )  # fmt: skip
    if campaign:
        if model is not None or settings or any(value is not None for value in flags.values()):
            raise InputError("--campaign", campaign[0], "says all of its jobs itself", "leave the other flags out")
        raise typer.Exit(_campaign(campaign, out, jobs, limit, retry=retry, allow_code=allow_code, app_dir=app_dir))
    raise typer.Exit(
        _one(o.job_mapping(model, sets=sets, **flags), settings, device.value, out, form.value, app_dir, exact=exact)
    )


def _one(
    mapping: dict[str, Any], told: dict[str, Any], device: str, out: Path | None, form: str, app_dir: str | None, *, exact: bool
) -> int:
    """Measure one job, print it, and write its record."""
    from memcalc.engines.measure.process import read_settings

    settings = read_settings(told)
    command = ("memcalc", *sys.argv[1:])
    record = _record(mapping, device, settings, app_dir, command)
    if record is None:
        return 0  # another rank speaks
    if out is not None:
        from memcalc.measurement_files import write_measurement

        write_measurement(record, out)
    if record.failure is not None:
        if form == "json":
            print(record.model_dump_json(indent=2))
        print(f"memcalc: {record.failure.message}", file=sys.stderr)
        return EXIT_NO if record.status == "out_of_memory" else EXIT_UNJUDGED
    from memcalc.engines.measure.footprint import footprint_of
    from memcalc.formats import show

    show.one(footprint_of(record), form, exact=exact)
    return 0


def _record(mapping: dict[str, Any], device: str, settings: Any, app_dir: str | None, command: tuple[str, ...]) -> Any:
    """In this process where ``torchrun`` started it, else in one of its own."""
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        from memcalc.collecting import as_usual
        from memcalc.engines.measure.here import Ask, measure_here

        model = mapping["model"]
        case = str(mapping.get("name") or (model if isinstance(model, str) else "model"))
        with as_usual():
            return measure_here(Ask(mapping, device, settings, case, app_dir, None, command))
    from memcalc.engines.measure import measure_mapping

    return measure_mapping(mapping, device=device, settings=settings, app_dir=app_dir, command=command)


def _campaign(
    files: list[Path], out: Path | None, jobs: int, limit: float | None, *, retry: bool, allow_code: bool, app_dir: str | None
) -> int:
    """Run every case of the files; 2 where any failed."""
    from memcalc.campaign import load_campaign
    from memcalc.engines.measure.runner import Done, run_campaign

    if out is None:
        raise InputError("--out", NO_VALUE, "is missing", "name the folder of the records")
    if jobs < 1:
        raise InputError("--jobs", jobs, "is below 1", "give 1 or more")
    cases = [case for file in files for case in load_campaign(file)]
    if not allow_code:
        code = next((case for case in cases if str(case.request.get("model", "")).startswith("py:")), None)
        if code is not None:
            rule = "runs code, which a file may not ask for by itself"
            raise InputError(f"{code.name}.model", code.request["model"], rule, "trust it with --allow-code")

    def told(done: Done, at: int, of: int) -> None:
        again = " (from an earlier run)" if done.again else f" {done.seconds:.1f} s"
        tail = f": {done.message}" if done.message else ""
        print(f"[{at}/{of}] {done.case} {done.status}{again}{tail}", file=sys.stderr, flush=True)

    results = run_campaign(
        cases, out, jobs=jobs, limit=limit, retry=retry, app_dir=app_dir, base_dir=files[0].parent,
        command=("memcalc", *sys.argv[1:]), told=told,
    )  # fmt: skip
    failed = [done for done in results if done.status == "failed"]
    left = f"; {len(cases) - len(results)} left for the next run" if len(results) < len(cases) else ""
    print(f"{len(results)} of {len(cases)} cases recorded in {out}, {len(failed)} of them failures{left}")
    return EXIT_UNJUDGED if failed else 0
