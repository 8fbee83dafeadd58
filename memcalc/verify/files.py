"""Records on disk, judged one by one: one that cannot be read is a verdict of its own, and the others go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from memcalc.api import model_of
from memcalc.errors import NO_VALUE, InputError, MemcalcError
from memcalc.job import Job
from memcalc.measurement_files import SUFFIXES, read_measurement, records_in
from memcalc.models import Model
from memcalc.readers.files import parse_json, read_bytes
from memcalc.readers.yaml import load_yaml
from memcalc.units import MIB
from memcalc.verify.judge import UNJUDGED, Verdict, judge
from memcalc.verify.tolerance import EXACT, Tolerance

Kind = Literal["model", "jobs", "records"]


class Models:
    """The model a job names, each read once: a campaign's cases share a few."""

    def __init__(self, *, allow_code: bool = False, app_dir: str | None = None) -> None:
        self.allow_code = allow_code
        self.app_dir = app_dir
        self._known: dict[str, Model] = {}

    def permit(self, model: object) -> None:
        """Refuse to run code that only a file asks for.

        Raises:
            InputError: the model is ``py:``, and code was not allowed.
        """
        if isinstance(model, str) and model.strip().startswith("py:") and not self.allow_code:
            raise InputError("model", model, "runs code, which a file may not ask for by itself", "trust it with --allow-code")

    def __call__(self, job: Job) -> Model:
        """Read it, or give the one that was read before."""
        key = repr(job.model)
        if key not in self._known:
            self._known[key] = model_of(job, app_dir=self.app_dir, allow_code=self.allow_code)
        return self._known[key]


def verify_records(
    path: Path,
    tolerance: Tolerance = EXACT,
    *,
    allow_code: bool = False,
    app_dir: str | None = None,
) -> list[Verdict]:
    """Today's predictions held against the records of a file or of a folder and the folders in it, in the order of their names.

    Raises:
        InputError: nothing there.
    """
    return list(iter_records(path, tolerance, Models(allow_code=allow_code, app_dir=app_dir)))


def iter_records(path: Path, tolerance: Tolerance, models: Models) -> Iterator[Verdict]:
    """The same one at a time, as they are judged."""
    for file in records_in(path):
        source = str(file)
        try:
            record = read_measurement(file)
        except MemcalcError as error:
            yield Verdict(file.name, source, UNJUDGED, str(error))
            continue
        yield judge(record, source, tolerance, models)


def kind_of(target: str) -> Kind:
    """What a target on the command line names: records, jobs, or else a model.

    A folder is one of records unless it holds a model's ``config.json`` and nothing memcalc wrote; a JSON file is a record
    unless it is a model's config; a YAML file holds jobs if it is a list, or has a key ``model`` or ``jobs``.
    """
    path = Path(target)
    if path.is_dir():
        return "model" if (path / "config.json").is_file() and not _is_record(path / "config.json") else "records"
    if not path.is_file():
        return "model"
    if path.name.endswith(".json"):
        return "model" if _is_config(path) else "records"
    if path.name.endswith(SUFFIXES):
        return "records"
    if path.suffix.lower() in (".yaml", ".yml"):
        document = load_yaml(path)
        holds_jobs = isinstance(document, list) or (isinstance(document, Mapping) and bool({"model", "jobs"} & set(document)))
        return "jobs" if holds_jobs else "model"
    return "model"


def _is_record(path: Path) -> bool:
    found = _parsed(path)
    return isinstance(found, Mapping) and "environment" in found and "case" in found


def _is_config(path: Path) -> bool:
    """Whether it is the config of a model, or the index of a checkpoint; a file that cannot be read may be a record."""
    found = _parsed(path)
    return isinstance(found, Mapping) and not _is_record(path) and bool({"model_type", "weight_map"} & set(found))


def _parsed(path: Path) -> Any:
    try:
        return parse_json(read_bytes(path, "file", 256 * MIB), str(path))
    except MemcalcError:
        return None


def jobs_in(path: Path) -> list[dict[str, Any]]:
    """The jobs of a YAML file: one mapping, a list of them, or a list under ``jobs``.

    Raises:
        InputError: not YAML, or nothing in it is a job.
    """
    document = load_yaml(path)
    if isinstance(document, Mapping) and "jobs" in document:
        document = document["jobs"]
    found = document if isinstance(document, list) else [document]
    if not found or not all(isinstance(job, Mapping) for job in found):
        raise InputError(str(path), NO_VALUE, "holds something that is not a job", "write each as a mapping: model: gpt2")
    return [dict(job) for job in found]
