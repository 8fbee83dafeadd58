"""What the codes of points stand for, resolved once each: models, jobs with their plans, ranks, devices."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from memcalc.errors import MemcalcError, NotModelledError
from memcalc.families.base import load_family
from memcalc.job import Hardware, Job, read_job
from memcalc.mesh import mesh, refuse_unmodelled
from memcalc.models import Model
from memcalc.plan import Plan, make_plan
from memcalc.readers.config import structure_key
from memcalc.sweep.axes import BARE, PARAMS
from memcalc.sweep.keys import Patch, nested
from memcalc.verdict import capacity_of

T = TypeVar("T")
REMEMBERED = 2**16
"""Answers kept of one kind; more are found again, so that memory stays flat."""


class Memo(Generic[T]):
    """Answers by key, forgotten all together once there are many."""

    def __init__(self) -> None:
        self._known: dict[Hashable, T] = {}

    def get(self, key: Hashable, find: Callable[[], T]) -> T:
        """The answer of that key, found if it is not known."""
        try:
            return self._known[key]
        except KeyError:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            return self._known.setdefault(key, find())


@dataclass(frozen=True, slots=True)
class Variant:
    """A model that points share.

    Attributes:
        model: as it was read; its tensors are left out where its config can make them again. None where there is an error,
            or where it is a bare count.
        size: its parameters.
        structure: equal for models that are one model with other numbers; None for one that stands alone.
        bare: whether it is a bare count, found among the points' numbers.
        reads: the sizes of what it reads that mean anything to it.
        error: why there is none.
    """

    model: Model | None = None
    size: int = 0
    structure: Hashable = None
    bare: bool = False
    reads: frozenset[str] = frozenset()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """A job but for its model, ranks and numbers; ``error`` where it cannot be."""

    job: Job | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """What points must fit: ``limit`` bytes; None where they need not."""

    gpu: str | None = None
    limit: int | None = None
    error: str | None = None


class Reader:
    """How models are read; a config that many models stand on is looked up once.

    Args:
        base_dir: where relative paths start.
        app_dir: where code is looked for.
        allow_code: whether it may run.
    """

    def __init__(self, base_dir: Path | None = None, app_dir: Path | None = None, *, allow_code: bool = False) -> None:
        self.ways: dict[str, Any] = {"base_dir": base_dir, "app_dir": app_dir, "allow_code": allow_code}
        self._bases: Memo[Any] = Memo()

    def model(self, source: Any) -> Model:
        """The model that ``model:`` of a job names."""
        from memcalc.readers.source import read_model

        return read_model(self._on_known_base(source), **self.ways)

    def find(self, named: Any) -> Any:
        """The config that a source names, or the model where it has none."""
        from memcalc.readers.source import find_config

        return find_config(named, **self.ways)

    def _on_known_base(self, source: Any) -> Any:
        """The source with the base that it names written out, where the two read alike."""
        named = source.get("base") if isinstance(source, Mapping) else None
        if not isinstance(named, str):
            return source
        base = self._bases.get(named, lambda: self._config(named))
        return source if base is None else {**source, "base": base}

    def _config(self, named: str) -> Any:
        """The config of a name; None where there is none, or where its keys are read otherwise when they stand inline."""
        try:
            found = self.find(named)
        except MemcalcError:
            return None
        if isinstance(found, Model) or found.strict == ("transformers_version" in found.config):
            return None
        return {**found.config, "name": found.name}


def variant(patch: Patch, reader: Reader) -> Variant:
    """The model of a patch of ``model`` keys."""
    if patch.get("model") is BARE["model"]:
        return Variant(structure=PARAMS, bare=True)
    try:
        model = reader.model(nested(patch).get("model"))
    except MemcalcError as error:
        return Variant(error=str(error))
    size = int(model.num_parameters)
    if model.config is None:
        return Variant(model, size, PARAMS if model.family == PARAMS else None)
    structure = (model.family, model.architecture, model.dtype, structure_key(model.config))
    # a sweep over sizes of a model holds tens of thousands of them: their configs, not each one's hundreds of tensors
    slim = replace(model, tensors=(), root=None)
    return Variant(slim, size, structure, reads=frozenset(load_family(model.family).inputs))


def setting(patch: Patch) -> Setting:
    """The job of a patch of settings; its model, ranks and numbers are stand-ins."""
    try:
        job = read_job(nested({"model": "any", **patch}))
        refuse_unswept(job)
        return Setting(job)
    except MemcalcError as error:
        return Setting(error=str(error))


def refuse_unswept(job: Job) -> None:
    """What changes a model's tensors, or the allocator, is not swept yet, and is refused rather than passed over.

    Raises:
        NotModelledError: adapters, another implementation's layers, a model that does not train, or the allocator's settings.
    """
    for path, value, usual in (
        ("training.lora", job.training.lora, None), ("training.quantization", job.training.quantization, None),
        ("training.freeze", job.training.freeze, []), ("implementation", job.implementation, "transformers"),
        ("implementation_args", job.implementation_args, {}), ("mode", job.mode, "train"),
        ("behaviour.allocator", job.behaviour.allocator, None),
    ):  # fmt: skip
        if value != usual:
            raise NotModelledError(path, value, "is not swept yet", "use estimate, check or fit")


def plan(job: Job, ranks: Mapping[str, int | None]) -> Plan | str:
    """The plan of a setting under some ranks, or why there is none."""
    parallelism = job.parallelism.model_copy(update=dict(ranks))
    try:
        return replace(make_plan(job.model_copy(update={"parallelism": parallelism})), shards=1, replicas=1)
    except MemcalcError as error:
        return str(error)


def refusal(job: Job, ranks: Mapping[str, int | None]) -> tuple[str, bool]:
    """(why some ranks cannot be, whether that is found before anything else about the job)."""
    parallelism = job.parallelism.model_copy(update=dict(ranks))
    first = True
    try:
        refuse_unmodelled(parallelism)
        first = False
        mesh(parallelism)
    except MemcalcError as error:
        return str(error), first
    raise AssertionError(f"ranks were refused together and are taken alone: {ranks}")


def limit(patch: Patch) -> Limit:
    """The device or memory of a patch of hardware keys."""
    values = {key.partition(".")[2]: value for key, value in patch.items()}
    job = Job(model="any", hardware=Hardware.model_validate(values))
    try:
        found = capacity_of(job)
    except MemcalcError as error:
        return Limit(error=str(error))
    if found is None:
        return Limit()
    name, _, usable = found
    return Limit(name, int(usable * (1 - job.hardware.headroom)))
