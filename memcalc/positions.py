"""How long a sequence may be: as long as a model has positions, where it looks them up in a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from memcalc.arrays import Condition, Count, is_array
from memcalc.errors import InputError, MemcalcError
from memcalc.families.base import load_family
from memcalc.implementations import USUAL
from memcalc.job import Job
from memcalc.models import Model
from memcalc.play.decisions import Decisions
from memcalc.readers.source import read_model

PATHS = {
    "sequence_length": "training.sequence_length", "source_length": "training.source_length",
    "context_length": "inference.context_length",
}  # fmt: skip
"""By setting."""


def places_of(model: Model) -> Mapping[str, Count]:
    """Setting -> positions that the model has for it; nothing of one without a table, or with another project's layers.

    >>> from memcalc.readers.source import read_model
    >>> places_of(read_model("gpt2")), places_of(read_model("llama-3.1-8b")), places_of(read_model("bart-base"))
    ({'sequence_length': 1024}, {}, {'sequence_length': 1024, 'source_length': 1024})
    """
    if model.config is None or model.architecture is None or model.implementation != USUAL:
        return {}
    family = load_family(model.family)
    return {} if family.places is None else family.places(model.config, model.architecture)


def most_of(job: Job, model: Model, setting: str) -> Count | None:
    """The most that one of a job's sizes may be; None where nothing bounds it.

    A step of decoding puts one token more behind its context, into a static cache too.
    """
    places = places_of(model)
    if setting != "context_length":
        found = [places[setting]] if setting in places else []
        if setting == "sequence_length" and job.training.source_length is None and "source_length" in places:
            found.append(places["source_length"])
    else:
        found = [places["sequence_length"] - 1] if "sequence_length" in places else []
    if setting != "source_length" and job.inference.max_cache_length is not None:
        found.append(job.inference.max_cache_length - (setting == "context_length"))
    return min(found, default=None)


def check_positions(job: Job, model: Model) -> None:
    """Refuse a sequence that is longer than the model has positions for: looking one up fails.

    Raises:
        InputError: one.
        SplitError: some of many jobs have one.
    """
    places = places_of(model)
    if not places:
        return
    decodes = job.mode == "decode"
    for setting, value in _asked(job):
        known = places.get("sequence_length" if setting == "context_length" else setting)
        if known is None or value is None:
            continue
        most = known - 1 if decodes and setting == "context_length" else known
        over: Condition = value > most
        if Decisions().decide(over):
            raise too_long(model, setting, value, most)


def refuse_too_long(job: Job, app_dir: Path | None = None, base_dir: Path | None = None) -> None:
    """The same of a job whose model is only then built: on tensors without data no index is out of range, on others any error.

    Raises:
        InputError: one, of a family whose positions are known.
    """
    if isinstance(job.model, str) and job.model.strip().startswith("py:"):
        return
    try:
        model = read_model(job.model, app_dir=app_dir, base_dir=base_dir, allow_code=False)
    except MemcalcError:  # what the class alone knows, or says in its own words
        return
    check_positions(job, model)


def _asked(job: Job) -> list[tuple[str, Count | None]]:
    if job.mode == "decode":
        return [("context_length", job.inference.context_length), ("source_length", job.training.source_length)]
    return [("sequence_length", job.training.sequence_length), ("source_length", job.training.source_length)]


def too_long(model: Model, setting: str, value: Count, most: Count) -> InputError:
    """The error of a sequence of that length, of a model with so many positions."""
    value, most = (int(size.max()) if is_array(size) else size for size in (value, most))  # type: ignore[union-attr]
    whole = most + 1 if setting == "context_length" else most
    rule = f"is more than the {whole} positions that {model.name or model.family} has"
    if setting == "context_length":
        rule += ", of which the token that is read takes one"
    return InputError(PATHS[setting], value, rule, f"use {most} or less, or a config with more positions")
