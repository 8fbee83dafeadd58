"""One record judged: each component predicted, measured, their difference, and what explains it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from memcalc.errors import EXIT_NO, EXIT_UNJUDGED, EXIT_YES, MemcalcError
from memcalc.footprint import Footprint
from memcalc.job import Job, read_job
from memcalc.measurement import Measurement, Rank, component_sums
from memcalc.models import Model
from memcalc.records import dataclass
from memcalc.tape.events import COMPONENTS
from memcalc.units import format_gib
from memcalc.verify.match import HOST, Pair, pairs
from memcalc.verify.predict import LISTED, Prediction, RankPrediction, as_measured, predict
from memcalc.verify.tolerance import Tolerance

PASSED, FAILED, UNJUDGED = "passed", "failed", "unjudged"
JUDGED = (*LISTED, HOST)
"""Components the verdict rests on; the others are shown beside them."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One component.

    Attributes:
        name: its name among a footprint's components, or HOST.
        predicted: bytes; None where it is not modelled.
        measured: bytes; None where nothing counted it.
        spread: the sum of the tensors' differences, each without its sign: 0 only where every tensor agrees.
        outcome: ``passed``, ``failed``, or ``unjudged`` for one that is only shown.
        why: what explains the difference, or why there is none to judge.
    """

    name: str
    predicted: int | None
    measured: int | None
    spread: int = 0
    outcome: str = UNJUDGED
    why: str = ""

    @property
    def difference(self) -> int | None:
        """Measured less predicted; None unless both are known."""
        return None if self.predicted is None or self.measured is None else self.measured - self.predicted

    @property
    def percent(self) -> float | None:
        """The difference as a share of what was measured, in percent; None where that is nothing."""
        return None if self.difference is None or not self.measured else 100 * self.difference / self.measured


@dataclass(frozen=True, slots=True)
class RankVerdict:
    """One rank's components, and its tensors one by one."""

    index: int
    components: tuple[Compared, ...]
    tensors: tuple[Pair, ...]

    @property
    def spread(self) -> int:
        """Bytes of difference over all tensors, each without its sign."""
        return sum(one.spread for one in self.components)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One record, or one live measurement, judged.

    Attributes:
        case: what it is called.
        source: the file it was read from; ``live`` for a step that was just taken.
        outcome: ``passed``, ``failed`` or ``unjudged``.
        reason: why, in one line.
        record: what was measured; None where it could not be read.
        footprint: what is predicted; None where nothing could be.
        ranks: rank by rank, in the record's order.
    """

    case: str
    source: str
    outcome: str
    reason: str
    record: Measurement | None = None
    footprint: Footprint | None = None
    ranks: tuple[RankVerdict, ...] = ()

    @property
    def worst(self) -> RankVerdict | None:
        """The rank that differs most; the first where none does."""
        return max(self.ranks, key=lambda rank: rank.spread, default=None)


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """Any failure wins, then any that could not be judged; nothing judged is nothing judged.

    >>> exit_code([])
    2
    """
    outcomes = {verdict.outcome for verdict in verdicts}
    if FAILED in outcomes:
        return EXIT_NO
    return EXIT_YES if outcomes == {PASSED} else EXIT_UNJUDGED


def judge(record: Measurement, source: str, tolerance: Tolerance, model_of: Callable[[Job], Model]) -> Verdict:
    """Today's prediction held against a record.

    Args:
        record: what was measured.
        source: where it came from.
        tolerance: how large a component's difference may be.
        model_of: the model a job names.
    """
    if record.status == "failed":
        return Verdict(record.case, source, UNJUDGED, _failure(record), record)
    try:
        job = read_job(record.request)
        prediction = predict(job, as_measured(model_of(job), record))
    except MemcalcError as error:
        return Verdict(record.case, source, UNJUDGED, str(error), record)
    if record.status == "out_of_memory":
        return _out_of_memory(record, source, prediction.footprint)
    if not any(rank.tensors for rank in record.ranks):
        return Verdict(record.case, source, UNJUDGED, "the record lists no tensors", record, prediction.footprint)
    if (adapted := _adapter(record, prediction)) is not None:
        reason = (
            f"the model was measured with adapters ({adapted}) that its settings do not tell of; name it as py: to predict them"
        )
        return Verdict(record.case, source, UNJUDGED, reason, record, prediction.footprint)
    on_cpu = record.environment.device.kind == "cpu"
    taken: dict[int, int] = {}
    ranks = tuple(_rank(rank, prediction.of_rank(rank.index, taken), tolerance, on_cpu=on_cpu) for rank in record.ranks)
    outcome, reason = _said(record, prediction, ranks, tolerance)
    return Verdict(record.case, source, outcome, reason, record, prediction.footprint, ranks)


def _rank(rank: Rank, predicted: RankPrediction, tolerance: Tolerance, *, on_cpu: bool) -> RankVerdict:
    found = pairs(predicted.tensors, rank.tensors, on_cpu=on_cpu)
    compared = [_listed(name, [pair for pair in found if pair.component == name], tolerance) for name in JUDGED]
    for name in COMPONENTS.values():
        if name not in LISTED:
            seen = rank.components.get(name)
            counted = None if seen is None else seen.walked if seen.walked is not None else seen.counted
            compared.append(_shown(name, predicted.components.get(name), counted))
    return RankVerdict(rank.index, tuple(compared), tuple(found))


def _listed(name: str, found: Sequence[Pair], tolerance: Tolerance) -> Compared:
    predicted, measured = sum(pair.predicted or 0 for pair in found), sum(pair.measured or 0 for pair in found)
    spread = sum(abs(pair.difference) for pair in found)
    passed = tolerance.allows(spread, measured)
    return Compared(name, predicted, measured, spread, PASSED if passed else FAILED, _why(found))


def _shown(name: str, predicted: int | None, measured: int | None) -> Compared:
    if predicted is None:
        return Compared(name, predicted, measured, why="not modelled yet")
    why = "no tensor one can walk to, and nothing counted it" if measured is None else "shown, not judged"
    return Compared(name, predicted, measured, why=why if predicted or measured else "")


def _why(found: Sequence[Pair]) -> str:
    """The tensors a difference comes from, the largest first."""
    wrong = sorted((pair for pair in found if pair.difference), key=lambda pair: -abs(pair.difference))
    if not wrong:
        return "every tensor agrees" if found else ""
    only = "" if len(wrong) == 1 else f" and {len(wrong) - 1} more"
    return f"{len(wrong)} of {len(found)} tensors differ: {_of(wrong[0])}{only}"


def _of(pair: Pair) -> str:
    if pair.predicted is None:
        return f"{pair.name} takes {pair.measured:,} B and was not predicted"
    if pair.measured is None:
        return f"{pair.name} was predicted with {pair.predicted:,} B and is not there"
    return f"{pair.name} takes {pair.measured:,} B, not {pair.predicted:,} B"


def _said(record: Measurement, prediction: Prediction, ranks: Sequence[RankVerdict], tolerance: Tolerance) -> tuple[str, str]:
    """(outcome, why): differences first, then what makes a record unfit to be judged by."""
    for rank in ranks:
        for one in rank.components:
            if one.outcome == FAILED:
                which = f" on rank {rank.index}" if len(ranks) > 1 else ""
                return FAILED, f"{one.name.replace('_', ' ')}{which}: {one.why}"
    expected = sum(one.multiplicity for one in prediction.ranks)
    if len(ranks) != expected:
        return UNJUDGED, f"the record has {len(ranks)} ranks, and its job asks for {expected}"
    for seen in record.ranks:
        for name, size in component_sums(seen.tensors).items():
            walked = seen.components[name].walked if name in seen.components else None
            if walked is not None and walked != size:
                return UNJUDGED, f"the record contradicts itself: {name} lists {size:,} B of tensors and says {walked:,} B"
        if (low := _broken_bound(seen, prediction.footprint)) is not None:
            return FAILED, low
    within = "every byte agrees" if not any(rank.spread for rank in ranks) else f"within {tolerance}"
    return PASSED, within


def _broken_bound(rank: Rank, footprint: Footprint) -> str | None:
    """Why the states cannot be a lower bound of what was measured; only CUDA's counters see a whole step."""
    peaks = [phase.peak.requested for step in rank.iterations if step.index > 1 for phase in step.phases]
    highest = max((peak for peak in peaks if peak is not None), default=None)
    if highest is None or rank.index != footprint.ranks[0].index or highest >= footprint.states.requested:
        return None
    return (
        f"the step peaked at {highest:,} requested B, below the {footprint.states.requested:,} B its states were said to take"
    )


def _adapter(record: Measurement, prediction: Prediction) -> str | None:
    """A tensor of LoRA's that was measured in a model whose job knows of none.

    source: peft 0.17 src/peft/tuners/lora/layer.py:LoraLayer.adapter_layer_names (lora_A, lora_B, lora_embedding_A, …)
    """
    known = {one.name for rank in prediction.ranks for one in rank.tensors}
    names = (tensor.name for rank in record.ranks for tensor in rank.tensors if tensor.component == "parameters")
    return next((name for name in names if ".lora_" in name and name not in known), None)


def _out_of_memory(record: Measurement, source: str, footprint: Footprint) -> Verdict:
    """A step that ran out of memory contradicts a prediction only if that promised it would fit."""
    failure = record.failure
    total = failure.total if failure else None
    high = footprint.peak.high if footprint.peak.device_high is None else footprint.peak.device_high
    if high is not None and total is not None and high <= total:
        reason = f"it ran out of memory on {format_gib(total)}, and was predicted to take at most {format_gib(high)}"
        return Verdict(record.case, source, FAILED, reason, record, footprint)
    return Verdict(
        record.case, source, PASSED, "it ran out of memory, and nothing promised that it would fit", record, footprint
    )


def _failure(record: Measurement) -> str:
    failure = record.failure
    return "the case gave no answer" if failure is None else f"the case {failure.kind.replace('_', ' ')}: {failure.message}"
