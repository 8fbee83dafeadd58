"""Jobs that differ in the sizes of their batch alone: played once with formulas for sizes, and read from these from then on.

What a step does is the same for many sizes, until a kernel is chosen by one of them: such questions are kept with the formulas,
and where a job answers them otherwise it is another structure. To play with formulas takes longer than to play one job, so that
jobs are played one by one until there have been some of a kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from memcalc.allocator.program import NotPlainError, Numbered, Program, program_of
from memcalc.allocator.settings import asked_settings
from memcalc.arrays import rounded
from memcalc.behaving import Assumed
from memcalc.engines.analytic.peak import Summit, assembled, steps_of, through
from memcalc.engines.analytic.static import Account
from memcalc.engines.analytic.tapes import steady_tape, two_steps
from memcalc.engines.analytic.whole import Whole
from memcalc.errors import MemcalcError
from memcalc.footprint import Footprint
from memcalc.job import Job
from memcalc.models import Model
from memcalc.plan import Plan, understood
from memcalc.plan_checks import check_settings
from memcalc.positions import check_positions
from memcalc.reading import Reading
from memcalc.recording import LEAST, Recording
from memcalc.records import dataclass
from memcalc.symbols import NotParametricError
from memcalc.tape.events import Event
from memcalc.tape.fold import requested
from memcalc.tape.formulas import Formulas, Measured
from memcalc.tape.read_again import read_again

if TYPE_CHECKING:
    from memcalc.tape.formula_arrays import FormulaArrays

SIZES = ("micro_batch_size", "sequence_length")
"""Keys of a job's training that may vary within a structure."""
ALONE = 4
"""Jobs of a kind that are played one by one before one is played for all, which takes as long as some six."""
KINDS = 32
"""Kinds of jobs that are remembered, the latest used."""
STRUCTURES = 16
"""Structures of a kind: where there are more, its jobs have little in common, and are played one by one."""


@dataclass
class Structure:
    """A step, for any sizes that answer its questions alike.

    Attributes:
        recording: the formulas' atoms, and the questions.
        steady: the steady step's tape.
        steps: two iterations.
        assumed: what it was assumed to run on.
        more: what was assumed on the way.
        read: the steady step's instants, and what the allocator plays, as far as somebody has asked for them.
    """

    recording: Recording
    steady: list[Event]
    steps: list[Event]
    assumed: Assumed
    more: tuple[str, ...]
    read: dict[str, Any] = field(default_factory=dict)

    def measured(self) -> tuple[Measured, Measured]:
        """Its instants for one job at a time: as requested, and in blocks."""
        if "one" not in self.read:
            formulas = Formulas(self.steady, self.recording)
            self.read["one"] = formulas.measured(requested), formulas.measured(rounded)
        return self.read["one"]  # type: ignore[no-any-return]

    def tape(self, reading: Reading) -> Iterable[Event]:
        """Two iterations for one job; the events themselves are written once somebody asks for them."""
        if "program" not in self.read:
            self.read["program"] = None
            with suppress(NotPlainError):  # what the bare loops do not play, the full replay does
                self.read["program"] = program_of(self.steps)
        program: Program | None = self.read["program"]
        if program is not None:
            with suppress(NotPlainError):
                return Numbered(program, reading.value, lambda: read_again(self.steps, reading))
        return read_again(self.steps, reading)

    def arrays(self) -> FormulaArrays:
        """Its instants, for many."""
        if "many" not in self.read:
            from memcalc.tape.formula_arrays import FormulaArrays

            self.read["many"] = FormulaArrays(self.steady, self.recording)
        return self.read["many"]  # type: ignore[no-any-return]


def structure_of(
    job: Job, plan: Plan, model: Model, account: Account, sizes: Mapping[str, int], ranks: int | None = None
) -> Structure:
    """The structure of a job with these sizes.

    Raises:
        NotParametricError: what is played depends on a size itself, or differs from rank to rank.
        NotModelledError, InputError: as an estimate does.
    """
    recording = Recording()
    told = {key: recording.input(key, size) for key, size in sizes.items()}
    asked = job.model_copy(update={"training": job.training.model_copy(update=told)})
    steps, assumed = steps_of(asked, plan, model, account, ranks)
    if len(steps) > 1:
        raise NotParametricError("which rank is the highest differs from job to job")
    return Structure(recording, steady_tape(*steps[0]), two_steps(*steps[0]), assumed, steps[0][1].assumed)


@dataclass
class Kind:
    """Jobs that differ in their sizes alone.

    Attributes:
        given: the model they name; what is told by its identity stays alive with it.
        model: the same, prepared.
        plan: their plan.
        footprint: what they keep.
        jobs: how many were played one by one.
        structures: those found so far.
        alone: whether its jobs are played one by one for good.
    """

    given: Model
    model: Model
    plan: Plan
    footprint: Footprint
    jobs: int = 0
    structures: list[Structure] = field(default_factory=list)
    alone: bool = False


class Kinds:
    """What was played with formulas in this process, the latest used.

    Attributes:
        strict: whether code that cannot work on formulas, and does not say so, is an error; for tests.
    """

    strict: ClassVar[bool] = False

    def __init__(self) -> None:
        self.known: dict[Any, Kind] = {}

    def answer(self, job: Job, given: Model, *, replayed: bool) -> Whole | None:
        """A job from formulas; None where there are none for it.

        Raises:
            InputError: a size that cannot be.
        """
        if given.root is None:
            return None
        kind = self.known.get(_key(job, given))
        if kind is None or not kind.structures:
            return None
        check_positions(job, given)
        check_settings(job, kind.model)
        sizes = _sizes(job)
        for structure in kind.structures:
            if (reading := structure.recording.read(sizes)) is not None:
                return _answered(job, kind, structure, reading, replayed=replayed)
        return None

    def played(self, job: Job, given: Model, model: Model, plan: Plan, account: Account, footprint: Footprint) -> None:
        """A job was played alone, and ``footprint`` is what it keeps: of the next of its kind, formulas may be known."""
        sizes = _sizes(job)
        if not sizes:
            return
        key = _key(job, given)
        kind = self.known.pop(key, None)
        if kind is None:
            kind = Kind(given, model, plan, footprint)
            while len(self.known) >= KINDS:
                self.known.pop(next(iter(self.known)), None)  # which another thread may have let go of
        self.known[key] = kind
        kind.jobs += 1
        if kind.jobs < ALONE or kind.alone:
            return
        try:
            structure = structure_of(job, plan, model, account, sizes)
            structure.measured()
            kind.structures.append(structure)
        except Exception as error:  # the job has been answered: what goes wrong here may only cost time
            if self.strict and not isinstance(error, NotParametricError | MemcalcError):
                raise
            kind.alone = True
        kind.alone |= len(kind.structures) >= STRUCTURES


KNOWN = Kinds()
"""This process's."""


def _sizes(job: Job) -> dict[str, int]:
    """The sizes that vary: those that are given, and no 1."""
    given = {key: getattr(job.training, key) for key in SIZES}
    return {key: size for key, size in given.items() if size is not None and size >= LEAST}


def _key(job: Job, model: Model) -> Any:
    """What jobs of a kind have in common.

    A model that was read from its config is told by that, not by its identity: it may have been read anew for each job.
    """
    sizes = _sizes(job)
    shown = job.model_copy(update={"training": job.training.model_copy(update=dict.fromkeys(sizes, LEAST))})
    own: Any = id(model)
    if model.adapter is None and hasattr(model.config, "model_dump_json"):
        tensors = tuple((tensor.trainable, tensor.dtype) for tensor in model.tensors)
        read = (model.name, model.family, model.architecture, model.dtype, model.implementation, model.assumptions)
        own = (*read, tensors, model.config.model_dump_json())
    return own, tuple(sizes), shown.model_dump_json()


def _answered(job: Job, kind: Kind, structure: Structure, reading: Reading, *, replayed: bool) -> Whole:
    asked, blocks = structure.measured()
    highest = blocks.highest(reading)
    summit = Summit(
        asked.highest(reading).top, asked.role_tops(reading), highest.top, highest.roles, highest.phase, highest.site
    )
    steps = structure.tape(reading) if replayed or job.hardware.gpu or job.hardware.memory else None
    found = through(steps, asked_settings(job)) if replayed and steps is not None else None
    footprint = replace(kind.footprint, job=understood(job, kind.plan))
    return Whole(assembled(footprint, summit, structure.assumed, structure.more, found), steps)
