"""A measurement in a process of its own, so that it starts from nothing, can be ended, and can take nothing else with it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from memcalc import __version__, errors
from memcalc.campaign import RunSettings
from memcalc.engines.measure.__main__ import REFUSED
from memcalc.engines.measure.here import Ask, now
from memcalc.errors import InputError, MemcalcError
from memcalc.job import read_job
from memcalc.measurement import Device, Environment, Failure, Measurement, Settings
from memcalc.measurement_files import read_measurement
from memcalc.validation import explain

TAIL = 2000
"""Characters of a process's last words that are kept."""
PATIENCE = 3600.0
"""Seconds a measurement may take where nobody says: one that a person waits for, not a case among hundreds."""
ROOT_CAUSE = re.compile(r"rank\s*: (\d+) .*?exitcode\s*: -(\d+)", re.DOTALL)
"""The first rank that a signal ended, as torchrun says (pytorch 2.13 torch/distributed/elastic/multiprocessing/errors)."""
GRACE = 5.0
"""Seconds between asking a process to end and ending it."""


def measure_mapping(
    mapping: Mapping[str, Any],
    *,
    device: str = "cpu",
    settings: RunSettings | None = None,
    case: str | None = None,
    app_dir: str | None = None,
    base_dir: Path | None = None,
    allow_code: bool = True,
    command: tuple[str, ...] = (),
) -> Measurement:
    """The record of a job's real steps, run in processes of their own: as many as it has ranks.

    Args:
        mapping: the job.
        device: ``cpu`` or ``cuda``.
        settings: what a measurement is told beside it.
        case: what to call the record; the job's name or its model's by default.
        app_dir: the folder put on the import path for ``py:`` models.
        base_dir: the folder relative paths start from.
        allow_code: whether a ``py:`` model may be run.
        command: how it was asked, for the record.

    Raises:
        MemcalcError: a job that cannot be, or no torch or no device to run it on. A step that fails is a record.
    """
    job = read_job(mapping)
    model = job.model
    if isinstance(model, str) and model.startswith("py:") and not allow_code:
        raise InputError("model", model, "runs code, which a file may not ask for by itself", "trust it with --allow-code")
    name = case or job.name or (model if isinstance(model, str) else str(model.get("name", model.get("model_type", "model"))))
    request = job.model_dump(mode="json", exclude_defaults=True)
    folder = None if base_dir is None else str(base_dir)
    ask = Ask(request, device, settings or read_settings({}), name, app_dir, folder, command)
    ranks = job.parallelism
    return measure_apart(ask, ranks.dp or (ranks.dp_shard or 1) * (ranks.dp_replicate or 1))


def measure_apart(ask: Ask, ranks: int = 1) -> Measurement:
    """The record of what is asked, from ``ranks`` processes of their own.

    Raises:
        MemcalcError: what the process refused before there could be a record.
    """
    with tempfile.TemporaryDirectory(prefix="memcalc-") as folder:
        ask_file, record_file, log = (Path(folder) / name for name in ("ask.json", "record.json", "log"))
        told = {field: getattr(ask, field) for field in ask.__dataclass_fields__}
        ask_file.write_text(json.dumps({**told, "settings": ask.settings.model_dump(mode="json")}))
        code = _run(_command(ask_file, record_file, ranks), log, ask.settings.timeout)
        refused = record_file.with_name(record_file.name + REFUSED)
        if refused.exists():
            raise _error(json.loads(refused.read_text()))
        if record_file.exists():
            return read_measurement(record_file)
        return _unrecorded(ask, code, log)


def _command(ask_file: Path, record_file: Path, ranks: int) -> list[str]:
    worker = ["-m", "memcalc.engines.measure", str(ask_file), str(record_file)]
    if ranks == 1:
        return [sys.executable, *worker]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [sys.executable, *launcher, *worker]


def _run(command: list[str], log: Path, timeout: float) -> int | None:
    """The exit code; None where the time ran out, and the whole group of processes was ended."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            _end(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return None
        finally:
            # ranks and whatever else it started must not outlive it, also when we are interrupted ourselves
            _end(process, signal.SIGKILL)
            process.wait()


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """End the session that the process leads, and nobody else's."""
    try:
        os.killpg(process.pid, how)
    except (ProcessLookupError, PermissionError):
        return


def _error(said: Mapping[str, Any]) -> MemcalcError:
    kind: type[MemcalcError] = getattr(errors, str(said["kind"]), MemcalcError)
    path, value, rule, way_out = said["parts"]
    return kind(path, errors.NO_VALUE if value == "NO_VALUE" else value, rule, way_out)


def _unrecorded(ask: Ask, code: int | None, log: Path) -> Measurement:
    """The record of a process that left none: it ran out of time, was killed, or fell over."""
    words = log.read_text(errors="replace").strip() if log.exists() else ""
    settings = Settings(device="cuda" if ask.device == "cuda" else "cpu", iterations=ask.settings.iterations)
    return Measurement(
        case=ask.case, status="failed", created=now(), environment=bare_environment(ask), request=ask.request,
        job=ask.request, settings=settings, failure=_failure(ask, code, words),
    )  # fmt: skip


def _failure(ask: Ask, code: int | None, words: str) -> Failure:
    """What became of a process without a record, by its exit code and by what it, or the launcher of its ranks, said last."""
    if code is None:
        return Failure(kind="time_out", message=f"took more than {ask.settings.timeout:g} s and was ended")
    if code < 0:
        return Failure(kind="killed", message=_by_signal(-code))
    root = words[words.rfind("Root Cause") :] if "Root Cause" in words else ""
    if (found := ROOT_CAUSE.search(root)) is not None:
        rank, signal_number = int(found[1]), int(found[2])
        return Failure(kind="killed", rank=rank, message=f"rank {rank} was {_by_signal(signal_number)}")
    last = next((line.strip() for line in reversed(words[-TAIL:].splitlines()) if line.strip(" =-")), "no words")
    return Failure(kind="raised", message=f"left no record and exit code {code}: {last}")


def _by_signal(number: int) -> str:
    name = signal.Signals(number).name
    return f"ended by {name}{', as the kernel does when memory runs out' if name == 'SIGKILL' else ''}"


def bare_environment(ask: Ask) -> Environment:
    """What is known of the environment without asking torch."""
    import platform

    kind = "cuda" if ask.device == "cuda" else "cpu"
    return Environment(
        device=Device(name="unknown", kind=kind), python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}", memcalc=__version__, command=list(ask.command),
    )  # fmt: skip


def read_settings(told: Mapping[str, Any]) -> RunSettings:
    """Settings of one measurement from plain values, with an hour to take it.

    Raises:
        InputError: one that breaks a rule.
    """
    try:
        return RunSettings.model_validate({"timeout": PATIENCE, **told})
    except ValidationError as error:
        raise explain(error, "", RunSettings.model_fields) from None
