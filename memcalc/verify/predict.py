"""What today's memcalc predicts of a job, rank by rank and tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from memcalc.adapters import with_adapters
from memcalc.engines.analytic.estimate import ONE_AT_A_TIME, buffers_of, component_bytes, estimate_whole, host_bytes
from memcalc.engines.analytic.static import accounts
from memcalc.footprint import Footprint, Held
from memcalc.job import Job
from memcalc.measurement import Measurement
from memcalc.models import Model
from memcalc.plan import make_plan
from memcalc.records import dataclass, replace
from memcalc.tensors import Tensor

LISTED = ("parameters", "master_parameters", "buffers", "gradients", "optimizer_states")
"""Components a live training loop holds as tensors one can walk to; they are compared tensor by tensor."""


@dataclass(frozen=True, slots=True)
class Expected:
    """``times`` tensors alike.

    Attributes:
        component: one of LISTED.
        name: as a walk of real objects spells it; with ``*`` for each repeated axis where it is not known which of them.
        owner: the parameter it belongs to, likewise; empty for a table shared by several.
        nbytes: requested bytes of one of them.
        place: ``device``, ``host`` or ``managed``.
        times: how many; above 1 where it is not known which, or where one parameter has several alike.
    """

    component: str
    name: str
    owner: str
    nbytes: int
    place: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class RankPrediction:
    """What ``multiplicity`` ranks alike hold, the first of them ``index``."""

    index: int
    multiplicity: int
    components: dict[str, int | None]
    host: dict[str, int]
    tensors: tuple[Expected, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A footprint, and every distinct rank it is the fullest of."""

    footprint: Footprint
    ranks: tuple[RankPrediction, ...]

    def of_rank(self, index: int, taken: dict[int, int]) -> RankPrediction:
        """The prediction for one rank; ``taken`` counts how many ranks each has been used for.

        Of ranks alike only the first is known by its number; the others are given to whichever has room.
        """
        named = [at for at, one in enumerate(self.ranks) if one.index == index]
        room = [at for at, one in enumerate(self.ranks) if taken.get(at, 0) < one.multiplicity]
        at = next(iter([*named, *room, 0]))
        taken[at] = taken.get(at, 0) + 1
        return self.ranks[at]


def as_measured(model: Model, record: Measurement) -> Model:
    """The model with what a measurement made of it: adapters beside its layers, and which of its tensors began as zeros.

    Raises:
        InputError: adapters that this model cannot have.
        NotModelledError: adapters of a kind that is not modelled.
    """
    if record.settings.lora is not None:
        model = with_adapters(model, record.settings.lora)
    zeros = set(record.zeros)
    if not zeros:
        return model
    return replace(
        model, tensors=tuple(replace(one, zeros=True) if zeros.issuperset(one.names()) else one for one in model.tensors)
    )


def predict(job: Job, model: Model, *, replayed: bool = True) -> Prediction:
    """Every rank's prediction; without ``replayed`` the peaks allocated and reserved are left out.

    Raises:
        InputError: names or values that cannot be.
        NotModelledError: a parallelism memcalc does not model yet.
    """
    footprint = estimate_whole(job, model, replayed=replayed).footprint
    plan = make_plan(job)
    counted = accounts(plan, model, int(plan.shards * plan.replicas))
    return Prediction(
        footprint,
        tuple(
            RankPrediction(
                index=one.layout.index, multiplicity=int(one.layout.multiplicity), components=component_bytes(one),
                host=host_bytes(one), tensors=tuple(_expected(buffers_of(plan, one, model), model.tensors)),
            )
            for one in counted
        ),
    )  # fmt: skip


def _expected(held: Iterable[Held], tensors: Sequence[Tensor]) -> Iterator[Expected]:
    """Every buffer of a listed component under the names of the model's own tensors, where it is known which they are."""
    known = {tensor.name: tensor for tensor in tensors}
    for one in held:
        if one.component not in LISTED or one.lives in ("backward", ONE_AT_A_TIME):
            continue  # gone when backward ends, where gradients are walked
        owner = _owner(one.name, known)
        if owner is None:
            yield Expected(one.component, one.name, "", one.requested, one.place, one.times)
            continue
        suffix = one.name[len(owner) :]
        whole = Expected(one.component, one.name, owner, one.requested, one.place, one.times)
        count = int(known[owner].count)
        if count < 1 or one.times % count:
            yield whole  # a rank holds some of them, and which is not said
            continue
        for name in known[owner].names():
            yield replace(whole, name=name + suffix, owner=name, times=one.times // count)


def _owner(name: str, known: dict[str, Tensor]) -> str | None:
    """The model's tensor a buffer is of: the longest whose name it begins with, before a space or a dot."""
    if name in known:
        return name
    head, dot, _ = name.partition(" ")[0].rpartition(".")
    for candidate in (name.partition(" ")[0], head if dot else ""):
        if candidate in known:
            return candidate
    return None
