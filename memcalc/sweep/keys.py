"""The keys of a job as a sweep writes them: flat, dotted or grouped, all brought to one dotted form and back.

``optimizer``, ``training.optimizer`` and ``training: {optimizer: …}`` are one key, ``training.optimizer``. Beneath
``model``, ``optimizer_args`` and ``zero_args`` single entries may be named: ``model.hidden_size``, ``optimizer_args.fused``.
``params`` is short for ``model: {params: …}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from memcalc.errors import NO_VALUE, InputError, did_you_mean
from memcalc.job import FLAT, KEYS, SECTIONS, Behaviour, Job, Section

Patch = dict[str, Any]
"""Dotted keys with their values: part of a job."""

GROUPS: dict[str, type[Section]] = {**SECTIONS, "behaviour": Behaviour}
OPEN = ("model", "training.optimizer_args", "parallelism.zero_args")
"""Keys whose value is a mapping of which single entries may be set."""


def dotted(key: object, path: str) -> str:
    """The dotted form of one key.

    Raises:
        InputError: no job has it.

    >>> dotted("optimizer", ""), dotted("optimizer_args.fused", ""), dotted("model.hidden_size", ""), dotted("params", "")
    ('training.optimizer', 'training.optimizer_args.fused', 'model.hidden_size', 'model')
    """
    if not isinstance(key, str):
        raise InputError(path, repr(key), "is not a key", "keys are words")
    if key in ("params", "model.params"):
        return "model"
    parts = key.split(".")
    if parts[0] in FLAT:
        parts.insert(0, FLAT[parts[0]])
    where = f"{path}.{key}"
    depth = 1
    if parts[0] in GROUPS:
        known = GROUPS[parts[0]].model_fields
        if len(parts) == 1:
            raise InputError(where, NO_VALUE, "is a group of keys", f"name one of them, as {parts[0]}.{next(iter(known))}")
        if parts[1] not in known:
            raise _unknown(where, parts[1], known)
        depth = 2
    elif parts[0] not in Job.model_fields:
        raise _unknown(where, parts[0], ["params", *KEYS])
    whole = ".".join(parts[:depth])
    if len(parts) > depth + (whole in OPEN) or "" in parts:
        raise InputError(where, NO_VALUE, "goes deeper than a job does", f"set {whole} as a whole")
    return ".".join(parts)


def _unknown(path: str, word: str, known: Iterable[str]) -> InputError:
    return InputError(path, NO_VALUE, "is not a known key", did_you_mean(word, known))


def flat(mapping: Mapping[Any, Any], path: str) -> Patch:
    """A mapping of a job's keys, brought to their dotted form.

    Raises:
        InputError: an unknown key, or one given twice in two spellings.

    >>> flat({"optimizer": "adam", "parallelism": {"dp": 8}, "params": "7B"}, "base")
    {'training.optimizer': 'adam', 'parallelism.dp': 8, 'model': {'params': '7B'}}
    """
    result: Patch = {}
    for key, value in mapping.items():
        for name, what in _entries(key, value, path):
            if name in result:
                raise InputError(f"{path}.{key}", what, f"is given twice ({name})", "give it once")
            result[name] = what
    return result


def _entries(key: Any, value: Any, path: str) -> list[tuple[str, Any]]:
    if key in GROUPS and isinstance(value, Mapping):
        return [(dotted(f"{key}.{inner}", path), what) for inner, what in value.items()]
    name = dotted(key, path)
    if name == "engine" and value != "analytic":
        raise InputError(f"{path}.{key}", value, "is not an engine for many jobs", "leave it out, and trace what a sweep finds")
    return [(name, wrapped(key, value))]


def wrapped(key: str, value: Any) -> Any:
    """The value as the dotted key takes it: a count of parameters becomes a model of that many."""
    return {"params": value} if key in ("params", "model.params") else value


def nested(patch: Mapping[str, Any]) -> dict[str, Any]:
    """The job a patch spells, as :func:`memcalc.job.read_job` takes it; entries of open keys are laid over the whole.

    >>> nested({"model": "gpt2", "model.n_layer": 24, "training.optimizer": "adam", "training.optimizer_args.fused": True})
    {'model': {'base': 'gpt2', 'n_layer': 24}, 'training': {'optimizer': 'adam', 'optimizer_args': {'fused': True}}}
    """
    job: dict[str, Any] = {}
    # wholes before their entries, in whatever order they were written
    for key in sorted(patch, key=lambda name: name.count(".")):
        head, _, rest = key.partition(".")
        if head == "model":
            job["model"] = patch[key] if not rest else _overlaid(job.get("model"), rest, patch[key])
            continue
        if not rest:
            job[key] = patch[key]
            continue
        section = job.setdefault(head, {})
        name, _, entry = rest.partition(".")
        if not entry:
            section[name] = patch[key]
        elif isinstance(whole := section.get(name, {}), Mapping):
            section[name] = {**whole, entry: patch[key]}
    return job


def _overlaid(model: Any, key: str, value: Any) -> Any:
    """The model with one key of its config set: a base, and what is said of it."""
    if model is None:
        return {key: value}
    if isinstance(model, Mapping) and "base" in model:
        return {**model, key: value}
    return {"base": model, key: value}
