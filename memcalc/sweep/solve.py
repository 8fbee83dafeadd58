"""Points of one plan and one structure, answered together: as arrays where the engine can, one by one where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from memcalc.arrays import SplitError, is_array
from memcalc.engines.analytic.shared import Shared
from memcalc.errors import MemcalcError
from memcalc.families.base import load_family
from memcalc.job import Job
from memcalc.models import Model
from memcalc.parallelism.base import ScalarOnlyError
from memcalc.plan import Plan
from memcalc.reached import reached
from memcalc.readers.config import build_model
from memcalc.readers.source import bare_model
from memcalc.readers.stacking import stack_configs
from memcalc.sweep.axes import NONE, Array
from memcalc.sweep.distinct import distinct
from memcalc.sweep.figures import NEAR, Figures, exact_figures, figures, suspects

DENSE = 2
"""Models times meshes are laid out as a rectangle while that has at most so many cells for a point."""
PROBES = 2
"""Jobs asked one by one whether an error that arrays raise is theirs too, word for word."""


@dataclass(frozen=True, slots=True)
class Points:
    """Some points, and the numbers by which they differ; all arrays are int64 of one length.

    Attributes:
        rows: where their answers go.
        batch: samples of a micro-batch; NONE where the job does not say.
        tokens: of a sample; likewise.
        variant: which of the models each has.
        count: parameters of a model that is nothing else.
        shards: ranks the states are split over.
        replicas: groups of them.
        accumulation: micro-batches to a step.
    """

    rows: Array
    variant: Array
    count: Array
    shards: Array
    replicas: Array
    accumulation: Array
    batch: Array
    tokens: Array

    def take(self, where: Array) -> Points:
        """Some of them."""
        return Points(*(getattr(self, name)[where] for name in self.__slots__))

    def meshes(self) -> tuple[Array, Array]:
        """(the first of each distinct combination of ranks, accumulation and sizes; which of those each point has)."""
        return distinct(self.shards, self.replicas, self.accumulation, self.batch, self.tokens)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(slots=True)
class Solver:
    """One question: a plan, whether there are several ranks, models of one structure, and where answers are put.

    Attributes:
        job: what all points have in common.
        plan: resolved for all points; its own ranks and accumulation are stand-ins.
        several: whether there is more than one rank.
        models: those that points refer to, without their tensors where they have a config; None for one that is nothing but
            the points' count.
        answer: takes rows and their figures.
        refuse: takes rows and the error they share.
        shared: what was played for such jobs before.
        strict: whether code that cannot work on arrays, and does not say so, is an error; for tests.
    """

    strict: ClassVar[bool] = False

    job: Job
    plan: Plan
    several: bool
    models: Sequence[Model | None]
    answer: Callable[[Array, Figures], None]
    refuse: Callable[[Array, str], None]
    shared: Shared

    def solve(self, points: Points) -> None:
        """Answer every point."""
        models, model_of = distinct(points.variant, points.count)
        meshes, mesh_of = points.meshes()
        if len(models) == 1 and len(meshes) == 1:
            self.one(points)
            return
        try:
            done, near = self.together(points, models, model_of, meshes, mesh_of)
        except SplitError as split:
            self._in_two(points, split.condition, models, model_of, meshes, mesh_of)
        except MemcalcError as error:
            if self._shared(points, str(error)):
                self.refuse(points.rows, str(error))
            else:
                self._apart(points, models, model_of, mesh_of)
        except Exception as error:
            # a greedy partition (ScalarOnlyError); or code that asks for the value of a number, which tests of arrays look
            # for; or that fails for single jobs too, and says so there
            if self.strict and not isinstance(error, ScalarOnlyError | OverflowError):
                raise
            self._apart(points, models, model_of, mesh_of)
        else:
            if not near.any():
                self.answer(points.rows, done)
                return
            if not near.all():
                sure = {name: value[~near] if isinstance(value, np.ndarray) else value for name, value in done.items()}
                self.answer(points.rows[~near], sure)
            self._apart(points.take(near), models, model_of[near], mesh_of[near], singly=True)

    def together(self, points: Points, models: Array, model_of: Array, meshes: Array, mesh_of: Array) -> tuple[Figures, Array]:
        """(figures, whether int64 may not hold them) of every point, from one evaluation; what all have alike as one number."""
        shape, cell = self._cells(points, models, model_of, meshes, mesh_of)
        along: tuple[Array, tuple[int, ...]] = (models, (-1, 1))
        across: tuple[Array, tuple[int, ...]] = (meshes, (-1,))
        if len(shape) == 1:
            along = across = (np.arange(len(points)), (-1,))
        ranks = [_plain(getattr(points, name)[across[0]], across[1]) for name in ("shards", "replicas", "accumulation")]
        plan = self.shared.kept(_meshed, self.plan, *ranks)

        def spread(value: Any) -> Array:
            cells: Array = np.broadcast_to(value, shape)[cell]
            return cells

        def model(kind: type) -> Model:
            return self._model(points.variant[along[0]], points.count[along[0]], along[1], kind)

        several = 2 if self.several else 1
        job = self._job(points.batch[across[0]], points.tokens[across[0]], across[1])
        # of models that differ, none tells what the others are
        owner = self.models[int(points.variant[0])] if (points.variant == points.variant[0]).all() else None
        found = figures(job, plan, model(np.int64), several, None if owner is None else (self.shared, owner))
        # ints that no array has touched are exact already
        arrays = any(is_array(value) for value in found.values())
        near = self.shared.kept(suspects, plan, model(np.float64), several) if arrays else max(found.values()) >= NEAR
        return {name: spread(value) if is_array(value) else value for name, value in found.items()}, spread(near)

    def singly(self, points: Points) -> None:
        """Answer every point by itself, points that are one job together."""
        models, model_of = distinct(points.variant, points.count)
        _, mesh_of = points.meshes()
        self._apart(points, models, model_of, mesh_of, singly=True)

    def one(self, points: Points) -> None:
        """Points that are all one job."""
        try:
            self.answer(points.rows, self._exact(points))
        except MemcalcError as error:
            self.refuse(points.rows, str(error))
        except Exception as error:  # a point may not bring down the rest; what it says asks for a report
            self.refuse(points.rows, f"a fault of memcalc itself ({type(error).__name__}: {error}); please report it")

    def _exact(self, points: Points) -> Figures:
        plan = replace(
            self.plan,
            shards=int(points.shards[0]),
            replicas=int(points.replicas[0]),
            accumulation=int(points.accumulation[0]),
        )
        model = self._model(points.variant[:1], points.count[:1], (-1,), np.int64)
        return exact_figures(self._job(points.batch[:1], points.tokens[:1], (-1,)), plan, model, 2 if self.several else 1)

    def _job(self, batch: Array, tokens: Array, shape: tuple[int, ...]) -> Job:
        """The job with these points' sizes: one of each, or arrays."""
        sizes = {"micro_batch_size": batch, "sequence_length": tokens}
        told = {key: None if table[0] == NONE else _plain(table, shape) for key, table in sizes.items()}
        return self.job.model_copy(update={"training": self.job.training.model_copy(update=told)})

    def _cells(self, points: Points, models: Array, model_of: Array, meshes: Array, mesh_of: Array) -> tuple[Any, Any]:
        """(shape of the evaluation, each point's cell in it): models by meshes where few cells stay empty.

        Points of one model of which no two are alike are cells in their own order.
        """
        if len(meshes) == len(points):
            return (len(points),), slice(None)
        if len(models) * len(meshes) <= DENSE * len(points):
            return (len(models), len(meshes)), (model_of, mesh_of)
        return (len(points),), slice(None)

    def _in_two(self, points: Points, condition: Any, models: Array, model_of: Array, meshes: Array, mesh_of: Array) -> None:
        """Points of two structures, each kind by itself."""
        shape, cell = self._cells(points, models, model_of, meshes, mesh_of)
        told = np.broadcast_to(condition, shape)[cell]
        if told.all() or not told.any():  # the two kinds differ in cells that no point has
            self._apart(points, models, model_of, mesh_of)
            return
        self.solve(points.take(np.flatnonzero(told)))
        self.solve(points.take(np.flatnonzero(~told)))

    def _apart(self, points: Points, models: Array, model_of: Array, mesh_of: Array, *, singly: bool = False) -> None:
        """Answer model by model, and where there is one already, meshes in halves: often few of them are the trouble."""
        if singly:
            first, which = distinct(model_of, mesh_of)
        elif len(models) > 1:
            first, which = models, model_of
        else:
            first, which = np.arange(2), (mesh_of > mesh_of.max() // 2).astype(np.int64)
        order = np.argsort(which, kind="stable")
        for part in np.split(order, np.cumsum(np.bincount(which, minlength=len(first)))[:-1]):
            if len(part):
                self.solve(points.take(part))

    def _shared(self, points: Points, text: str) -> bool:
        """Whether an error that was raised for arrays, hence whatever the numbers, is word for word that of single jobs."""
        for at in np.linspace(0, len(points) - 1, PROBES, dtype=np.int64):
            try:
                self._exact(points.take(np.array([at])))
            except MemcalcError as error:
                if str(error) != text:
                    return False
            else:
                return False
        return True

    def _model(self, variants: Array, counts: Array, shape: tuple[int, ...], kind: type) -> Model:
        """The model of these points: one, or one whose sizes are arrays."""
        first = self.models[int(variants[0])]
        if first is None:
            return bare_model(_plain(counts, shape, kind), "")
        if first.config is None:
            return first
        assert first.architecture is not None
        config, name = first.config, first.name
        if not (variants == variants[0]).all():
            distinct_variants, which = np.unique(variants, return_inverse=True)
            configs = [model.config for at in distinct_variants.tolist() if (model := self.models[at]) is not None]
            config, name = _mapped(stack_configs(configs), lambda table: _plain(table[which], shape, kind)), ""
        sees = self.job.training.image_size is not None
        if config is first.config:
            return self.shared.kept(_built, first, sees)
        return _built(replace(first, config=config, name=name), sees)


def _built(model: Model, sees: bool) -> Model:
    """The model of another's config."""
    assert model.architecture is not None
    built = build_model(load_family(model.family), model.config, model.architecture, name=model.name, dtype=model.dtype)
    return reached(built, sees=sees)


def _meshed(plan: Plan, shards: Any, replicas: Any, accumulation: Any) -> Plan:
    """The plan on these ranks."""
    return replace(plan, shards=shards, replicas=replicas, accumulation=accumulation)


def _plain(table: Array, shape: tuple[int, ...], kind: type = np.int64) -> Any:
    """A table in a shape and a type, or the one number it holds throughout as an int."""
    if (table == table[0]).all():
        return int(table[0])
    return table.astype(kind).reshape(shape)


def _mapped(config: Any, change: Callable[[Array], Any]) -> Any:
    """A stacked config with every array of it changed."""
    values = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, np.ndarray):
            values[name] = change(value)
        else:
            values[name] = _mapped(value, change) if hasattr(type(value), "model_fields") else value
    return type(config).model_construct(_fields_set=set(config.model_fields_set), **values)
