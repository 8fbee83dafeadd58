"""What evaluations of many jobs, held as arrays, have in common: structures played once, and plans, models and accounts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from memcalc.arrays import SplitError, is_array
from memcalc.engines.analytic.static import Account
from memcalc.engines.analytic.structures import SIZES, STRUCTURES, Structure, structure_of
from memcalc.job import Job
from memcalc.models import Model
from memcalc.parallelism.base import ScalarOnlyError
from memcalc.plan import Plan
from memcalc.reading import Reading
from memcalc.recording import LEAST
from memcalc.symbols import NotParametricError

T = TypeVar("T")
KEPT = 64
"""Plans, models and accounts that evaluations of arrays have in common, and kinds of jobs whose structures are remembered."""


class Shared:
    """Structures of jobs that are held as arrays, and what else they have in common, from one evaluation to the next."""

    def __init__(self) -> None:
        self.known: dict[Any, tuple[object, list[Structure] | None]] = {}
        self.made: dict[Any, tuple[Any, tuple[Any, ...]]] = {}

    def kept(self, make: Callable[..., T], *taken: Any) -> T:
        """What a function makes of numbers and of objects, these told by their identity; the latest answers are kept.

        Of arrays, and of what holds some, there will not be the same again, and nothing is kept.
        """
        key = (make, *(one if isinstance(one, int) else id(one) for one in taken))
        found = self.made.pop(key, None)
        if found is None:
            found = make(*taken), taken  # what a key tells by identity stays alive with it
            if any(map(_varies, taken)):
                return found[0]
            while len(self.made) >= KEPT:
                del self.made[next(iter(self.made))]
        self.made[key] = found
        return found[0]

    def find(
        self, owner: object, job: Job, plan: Plan, model: Model, account: Account, ranks: int
    ) -> tuple[Structure, Reading] | None:
        """The structure of some jobs and the formulas for their sizes; None where there are none for them.

        Args:
            owner: what makes the model the one it is, told by its identity.
            job: theirs; sizes of its batch are arrays.
            plan: theirs.
            model: theirs.
            account: what they keep.
            ranks: 1, or any larger number where there are several.

        Raises:
            SplitError: they are of several structures.
            NotModelledError: they cannot be played.
        """
        given = {key: size for key in SIZES if (size := getattr(job.training, key)) is not None}
        if any(is_array(one) for one in (plan.shards, plan.replicas, plan.accumulation, model.num_parameters)):
            return None
        for size in given.values():
            if is_array(size) and not (more := size >= LEAST).all():
                raise SplitError(more)
        sizes = {key: size for key, size in given.items() if is_array(size) or size >= LEAST}
        shown = job.model_copy(update={"training": job.training.model_copy(update=dict.fromkeys(sizes, LEAST))})
        mesh = (ranks, plan.shards, plan.replicas, plan.accumulation)
        key = (id(owner), *mesh, tuple(sizes), shown.model_dump_json())
        found = self._structures(key, owner)
        if found is None or not sizes:
            return None
        for structure in found:
            if (reading := structure.recording.read(sizes)) is not None:
                return structure, reading
        if len(found) >= STRUCTURES:
            return None
        first = {key: int(size.flat[0]) if is_array(size) else size for key, size in sizes.items()}
        try:
            structure = structure_of(job, plan, model, account, first, ranks)
        except (NotParametricError, ScalarOnlyError):
            self.known[key] = owner, None
            return None
        found.append(structure)
        reading = structure.recording.read(sizes)
        assert reading is not None, "it was played with the first of them"
        return structure, reading

    def _structures(self, key: Any, owner: object) -> list[Structure] | None:
        """The structures of a key, the latest used are kept; None where its jobs are played one by one."""
        kept = self.known.pop(key, (owner, []))  # what a key tells by identity stays alive with it
        while len(self.known) >= KEPT:
            del self.known[next(iter(self.known))]
        self.known[key] = kept
        return kept[1]


def _varies(one: Any) -> bool:
    """Whether an array is one of a plan's or a model's numbers, or all that is given."""
    if isinstance(one, Plan):
        return any(map(is_array, (one.shards, one.replicas, one.accumulation)))
    return is_array(one.num_parameters if isinstance(one, Model) else one)
