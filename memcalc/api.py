"""The library's side of each command: the command line calls these and prints what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcalc.allocator.settings import asked_settings
from memcalc.engines.analytic.estimate import estimate_whole
from memcalc.errors import InputError, MissingPackageError
from memcalc.footprint import Footprint
from memcalc.job import Job, read_job
from memcalc.models import Model
from memcalc.verdict import judged

if TYPE_CHECKING:
    import torch

    from memcalc.engines.trace.estimate import Traced
    from memcalc.engines.trace.session import Session
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
    if keys.get("engine") == "trace" and not isinstance(model, Model):
        return trace(model, **keys)
    known = model if isinstance(model, Model) else _module(model)
    return estimate_read(read_job({**keys, "model": known.name}), known)


def estimate_mapping(mapping: Mapping[str, Any], *, app_dir: str | None = None, base_dir: Path | None = None,
                     allow_code: bool = True, replayed: bool = True, explained: bool = False) -> Footprint:  # fmt: skip
    """The footprint of a job written as a mapping; see :func:`estimate`.

    With ``explained`` the footprint's buffers are those of the whole step. Without ``replayed`` the step is not played through
    the allocator, and ``allocated`` and ``reserved`` stay null.
    """
    job = read_job(mapping)
    if job.engine == "trace":
        return trace_read(job, app_dir=app_dir, base_dir=base_dir, allow_code=allow_code).footprint
    read = model_of(job, app_dir=app_dir, base_dir=base_dir, allow_code=allow_code)
    return estimate_read(job, read, replayed=replayed, explained=explained)


def estimate_read(job: Job, model: Model, *, replayed: bool = True, explained: bool = False) -> Footprint:
    """The footprint of a job whose model has been read, judged against its hardware."""
    answered = estimate_whole(job, model, replayed=replayed, explained=explained)
    return judged(answered.footprint, job, answered.tape, asked_settings(job))


def model_of(job: Job, *, app_dir: str | None = None, base_dir: Path | None = None, allow_code: bool = True) -> Model:
    """The model a job names.

    Raises:
        InputError: nothing of that name, or a folder of code that is none, though no code be read from it.
    """
    from memcalc.readers.source import read_model

    if app_dir is not None and not Path(app_dir or "?").is_dir():
        raise InputError("app_dir", app_dir, "is not a folder", "name the one that holds the code")
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


def trace(
    model: str | Mapping[str, Any] | torch.nn.Module, inputs: Any = None, *, loss: Any = None, step: Any = None,
    allocator: str = "", **keys: Any,
) -> Footprint:  # fmt: skip
    """Where the bytes of one training step go, by running the step itself on tensors without data; needs torch and no GPU.

    Args:
        model: a live ``nn.Module``, whose own tensors are not touched, or what :func:`estimate` takes.
        inputs: its batch: tensors (of which only shape and dtype are read), a mapping of them by argument name, or texts as
            ``x=float32[8,3,224,224]``; from the module's first layer by default.
        loss: a function of the output, or a word as ``--loss`` takes it; the output's own ``loss``, or its mean, by default.
        step: a step of one's own, ``step(model, batch, optimizer)``, in place of forward, loss, backward and update.
        allocator: the settings of PyTorch's allocator, as PYTORCH_CUDA_ALLOC_CONF has them.
        **keys: the keys of a job, as for :func:`estimate`. A live module keeps its own dtypes unless ``precision`` says.

    Raises:
        MemcalcError: a value that breaks a rule, a missing package, a module that fails or decides by its tensors' values.
    """
    return trace_whole(model, inputs, loss=loss, step=step, allocator=allocator, **keys).footprint


def trace_whole(
    model: str | Mapping[str, Any] | torch.nn.Module, inputs: Any = None, *, loss: Any = None, step: Any = None,
    allocator: str = "", **keys: Any,
) -> Traced:  # fmt: skip
    """The same with the tape, the allocator's replay of it and the operators that ran; see :func:`trace`."""
    estimate_module = _tracer()
    feed = estimate_module.Feed(loss=loss, step=step, allocator=allocator)
    if isinstance(model, str | Mapping):
        job = read_job({**keys, "engine": "trace", "model": model if isinstance(model, str) else dict(model)})
        feed.inputs = tuple(inputs or ())
        return _judged(estimate_module.trace_job(job, feed), job)
    job = read_job({"precision": "as-is", **keys, "engine": "trace", "model": type(model).__name__})
    return _judged(estimate_module.trace_module(model, job, feed, inputs), job)


def trace_read(
    job: Job, *, app_dir: str | None = None, base_dir: Path | None = None, allow_code: bool = True, **told: Any
) -> Traced:
    """The trace of a job that has been read; ``told`` are fields of ``memcalc.engines.trace.estimate.Feed``."""
    if not allow_code and isinstance(job.model, str) and job.model.strip().startswith("py:"):
        raise InputError("model", job.model, "runs code, which a file may not ask for by itself", "trust it with --allow-code")
    estimate_module = _tracer()
    feed = estimate_module.Feed(app_dir=Path(app_dir) if app_dir else None, base_dir=base_dir, **told)
    return _judged(estimate_module.trace_job(job, feed), job)


def tracing(*, allocator: str = "", name: str = "own loop", **keys: Any) -> AbstractContextManager[Session]:
    """A training loop of one's own, run on a GPU that is not there: ``with memcalc.tracing() as session:``.

    Inside, ``cuda`` is a device like any other and no tensor has data. Build the model, move it, ``session.watch(model)`` to
    have its parts named, and take two optimizer steps; ``session.traced.footprint`` is there once the block has ended.

    Args:
        allocator: the settings of PyTorch's allocator.
        name: what to call it.
        **keys: ``gpu`` and other keys of a job that describe the machine.
    """
    _tracer()
    from memcalc.engines.trace.session import session

    return session(read_job({"precision": "as-is", **keys, "engine": "trace", "model": name}), allocator)


def _tracer() -> Any:
    try:
        return import_module("memcalc.engines.trace.estimate")
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise MissingPackageError.extra("engine", "torch", "torch") from None


def _judged(traced: Traced, job: Job) -> Traced:
    traced.footprint = judged(traced.footprint, job, traced.tape, traced.replay.settings)
    return traced


def estimator(model: str | Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Footprint]:
    """A function from a job's other keys to its footprint, the model read once."""
    read = model_of(read_job({"model": model}))
    return lambda keys: estimate_read(read_job({**keys, "model": model}), read)


def _module(module: Any) -> Model:
    from memcalc.runtime.module import model_from_module

    return model_from_module(module)
