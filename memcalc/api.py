"""The library's side of each command: the command line calls these and prints what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcalc.engines.analytic.estimate import estimate_job
from memcalc.footprint import Footprint
from memcalc.job import Job, read_job
from memcalc.models import Model
from memcalc.verdict import judged

if TYPE_CHECKING:
    import torch

    from memcalc.measurement import Measurement


def estimate(model: str | Mapping[str, Any] | Model | torch.nn.Module, **keys: Any) -> Footprint:
    """Where the bytes of one training step go.

    Args:
        model: a shipped name, a path, ``hf:org/name``, ``py:module:factory``, a config with its ``model_type``,
            ``{"params": 7_000_000_000}``, or a live ``nn.Module``.
        **keys: the keys of a job, grouped or flat, as ``optimizer="adamw8bit", dp=8, zero_stage=2, gpu="h100-80gb"``.

    Returns:
        The footprint of one rank, the fullest; bytes are integers.

    Raises:
        MemcalcError: a value that breaks a rule, a missing package, or something not modelled.

    >>> footprint = estimate({"params": 1_000_000})
    >>> footprint.components.parameters, footprint.optimizer_states["momentum"]
    (2000000, 4000000)
    """
    if isinstance(model, str | Mapping):
        return estimate_mapping({**keys, "model": model if isinstance(model, str) else dict(model)})
    known = model if isinstance(model, Model) else _module(model)
    return estimate_read(read_job({**keys, "model": known.name}), known)


def estimate_mapping(mapping: Mapping[str, Any], *, app_dir: str | None = None, base_dir: Path | None = None,
                     allow_code: bool = True) -> Footprint:  # fmt: skip
    """The footprint of a job written as a mapping; see :func:`estimate`."""
    job = read_job(mapping)
    return estimate_read(job, model_of(job, app_dir=app_dir, base_dir=base_dir, allow_code=allow_code))


def estimate_read(job: Job, model: Model) -> Footprint:
    """The footprint of a job whose model has been read, judged against its hardware."""
    return judged(estimate_job(job, model), job)


def model_of(job: Job, *, app_dir: str | None = None, base_dir: Path | None = None, allow_code: bool = True) -> Model:
    """The model a job names."""
    from memcalc.readers.source import read_model

    return read_model(job.model, app_dir=Path(app_dir) if app_dir else None, base_dir=base_dir, allow_code=allow_code)


def compare(
    model: str | Mapping[str, Any], optimizers: Iterable[str], precisions: Iterable[str] = (), **keys: Any
) -> list[Footprint]:
    """The same job under several optimizers and precisions, in the order given; the first is what others are held against.

    >>> first, second = compare({"params": 1_000_000}, ["adam", "sgd"], precisions=["fp32"])
    >>> first.components.optimizer_states, second.components.optimizer_states
    (8000000, 0)
    """
    return compare_mapping({**keys, "model": model}, optimizers, precisions)


def compare_mapping(
    mapping: Mapping[str, Any], optimizers: Iterable[str], precisions: Iterable[str] = (), *, app_dir: str | None = None
) -> list[Footprint]:
    """The same for a job written as a mapping; see :func:`compare`."""
    first = read_job(mapping)
    read = model_of(first, app_dir=app_dir)
    names = list(optimizers)
    return [
        estimate_read(first.model_copy(update={"training": first.training.model_copy(update=chosen)}), read)
        for scheme in list(precisions) or [first.training.precision]
        for name in names
        if (chosen := {"optimizer": name, "precision": scheme})
    ]


def measure(
    model: str | Mapping[str, Any], *, device: str = "cpu", settings: Mapping[str, Any] | None = None, **keys: Any
) -> Measurement:
    """A job's real steps, taken in a process of their own and read to the byte.

    Args:
        model: a shipped name, a path, ``hf:org/name``, ``py:module:factory`` or a config with its ``model_type``.
        device: ``cpu`` or ``cuda``.
        settings: what a measurement is told beside its job: ``iterations``, ``inputs``, ``loss``, ``schedule``, …
        **keys: the keys of a job, as for :func:`estimate`.

    Returns:
        The record. A step that fails is a record too, whose ``failure`` says why.

    Raises:
        MemcalcError: a job that cannot be, or no torch or no device to run it on.
    """
    from memcalc.engines.measure.process import measure_mapping, read_settings

    return measure_mapping({**keys, "model": model}, device=device, settings=read_settings(settings or {}))


def estimator(model: str | Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Footprint]:
    """A function from a job's other keys to its footprint, the model read once."""
    read = model_of(read_job({"model": model}))
    return lambda keys: estimate_read(read_job({**keys, "model": model}), read)


def _module(module: Any) -> Model:
    from memcalc.runtime.module import model_from_module

    return model_from_module(module)
