"""From numbers of points to a table of their rows.

What a point may be refused for is looked at in the order in which an estimate looks: its values, its model, its plan, the
engine's own findings, and last its device. A refused point is a row with the words an estimate has for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from memcalc.plan_checks import INPUTS
from memcalc.positions import places_of, too_long
from memcalc.sweep.axes import NONE, PARAMS, Array
from memcalc.sweep.columns import FIGURES
from memcalc.sweep.distinct import distinct
from memcalc.sweep.figures import MANY_PARAMETERS, MANY_SCORES, MANY_TOKENS
from memcalc.sweep.layout import Block
from memcalc.sweep.plans import Planned, planned
from memcalc.sweep.resolve import Reader, Variant
from memcalc.sweep.solve import Points, Solver
from memcalc.sweep.stretch import Known, Stretch
from memcalc.sweep.table import ABSENT, Table

ACCUMULATION = "training.gradient_accumulation_steps"


class Evaluator:
    """The points of a layout, evaluated a stretch at a time; what they share is remembered between stretches."""

    def __init__(self, blocks: Sequence[Block], reader: Reader) -> None:
        self.blocks = blocks
        self.known = Known(reader)

    def table(self, start: int, stop: int) -> Table:
        """The rows of the points numbered from ``start`` up to ``stop``, dropped ones left out."""
        tables = []
        for block in self.blocks:
            first, last = max(start, block.first), min(stop, block.first + block.size)
            if first < last:
                numbers = block.kept(np.arange(first, last, dtype=np.int64))
                tables.append(_filled(Stretch(block, numbers, self.known)))
        return Table.joined(tables) if tables else Table.empty(0)


def _filled(stretch: Stretch) -> Table:
    """A stretch's table, worked through."""
    if stretch.rows.rows:
        stretch.name()
        stretch.refuse_bad_values()
        variants, variant_of = stretch.variants()
        _describe(stretch, variants, variant_of)
        for part in planned(stretch):
            _solve(stretch, part, variants, variant_of)
        _judge(stretch)
    return stretch.rows


def _describe(stretch: Stretch, variants: list[Variant], which: Array) -> None:
    """What was asked, for the living."""
    living = np.flatnonzero(stretch.alive)
    rows, which = stretch.rows, which[living]
    rows.put("gradient_accumulation_steps", living, stretch.number(ACCUMULATION)[living])
    models = [one.model for one in variants]
    for key in ("micro_batch_size", *INPUTS):
        applies = np.array([key in ("micro_batch_size", *one.reads) for one in variants])[which]
        given = stretch.number(f"training.{key}")[living]
        rows.put(key, living, np.where((given != NONE) & applies, given, ABSENT))
    rows.words["model"].put_each(living, which, [model.name if model else None for model in models])
    rows.words["family"].put_each(living, which, [model.family if model else None for model in models])
    rows.put("num_parameters", living, np.array([one.size if one.model else ABSENT for one in variants])[which])
    bare = living[np.array([one.bare for one in variants])[which]]
    if len(bare):
        counts, at = np.unique(stretch.number(PARAMS)[bare], return_inverse=True)
        # a size is named as it is written, and these were written as whole numbers
        rows.words["model"].put_each(bare, at, [f"{PARAMS}:{count}" for count in counts.tolist()])
        rows.words["family"].put(bare, PARAMS)
        rows.put("num_parameters", bare, counts[at])


def _placed(stretch: Stretch, part: Planned, variants: list[Variant], variant_of: Array) -> Planned:
    """The points whose sequences their models have positions for; the others are refused, each length in its own words."""
    rows, mine = part.rows, variant_of[part.rows]
    none = np.iinfo(np.int64).max
    source = part.job.training.source_length
    tokens = stretch.number("training.sequence_length")[rows]
    kept = np.ones(len(rows), dtype=bool)
    for setting in ("sequence_length", "source_length"):
        sizes = tokens if setting == "sequence_length" else np.full(len(rows), NONE if source is None else source)
        most = np.array([none if one.model is None else places_of(one.model).get(setting, none) for one in variants])[mine]
        over = np.flatnonzero(kept & (sizes > most))
        firsts, which = distinct(mine[over], sizes[over]) if len(over) else ((), over)
        for index, first in enumerate(firsts):
            at = over[first]
            model = variants[int(mine[at])].model
            assert model is not None
            stretch.refuse(rows[over[which == index]], str(too_long(model, setting, int(sizes[at]), int(most[at]))))
        kept[over] = False
    if kept.all():
        return part
    return replace(part, rows=rows[kept], shards=part.shards[kept], replicas=part.replicas[kept])


def _solve(stretch: Stretch, part: Planned, variants: list[Variant], variant_of: Array) -> None:
    """The figures of points of one plan, structure by structure."""
    part = _placed(stretch, part, variants, variant_of)
    if not len(part.rows):
        return
    structures: dict[object, int] = {}
    own = [one.structure if one.structure is not None else ("alone", at) for at, one in enumerate(variants)]
    kind = np.array([structures.setdefault(structure, len(structures)) for structure in own])[variant_of[part.rows]]
    flat = np.array([one.structure == PARAMS for one in variants])
    sizes = np.array([one.size if one.structure == PARAMS else 0 for one in variants])
    mine = variant_of[part.rows]
    counts = np.where(sizes[mine] > 0, sizes[mine], stretch.number(PARAMS)[part.rows])
    # models that are nothing but a count differ by it alone
    same = np.where(flat[mine], int(np.argmax(flat)), mine)
    models = [None if one.structure == PARAMS else one.model for one in variants]
    given = [stretch.number(f"training.{key}")[part.rows] for key in ("micro_batch_size", "sequence_length")]
    accumulation = stretch.number(ACCUMULATION)[part.rows]
    points = Points(part.rows, same, counts, part.shards, part.replicas, accumulation, *given)
    solver = Solver(part.job, part.plan, part.several, models, stretch.answer, stretch.refuse, stretch.known.shared)
    rows, tokens = (np.maximum(sizes, 1).astype(np.float64) for sizes in given)
    huge = (rows * tokens >= MANY_TOKENS) | (rows * tokens * tokens >= MANY_SCORES)
    huge |= stretch.rows.numbers["num_parameters"][part.rows] >= MANY_PARAMETERS
    if huge.any():
        solver.singly(points.take(np.flatnonzero(huge)))
        points, kind = points.take(np.flatnonzero(~huge)), kind[~huge]
    if not len(points):
        return
    firsts, which = distinct(kind)
    for index in range(len(firsts)):
        solver.solve(points.take(np.flatnonzero(which == index)))


def _judge(stretch: Stretch) -> None:
    """The verdicts of the answered points, and whom the device refuses."""
    which, codes = stretch.codes("fit")
    for index, code in enumerate(codes):
        rows = np.flatnonzero(stretch.alive & (which == index))
        if len(rows):
            found = stretch.limit(code)
            if found.error is not None:
                stretch.refuse(rows, found.error)
                for name in FIGURES:
                    stretch.rows.put(name, rows, ABSENT)
            elif found.limit is not None:
                stretch.rows.words["gpu"].put(rows, found.gpu)
                _verdicts(stretch, rows, found.limit)


def _verdicts(stretch: Stretch, rows: Array, limit: int) -> None:
    """What :func:`memcalc.verdict.judge` says of each point, and the bytes left."""
    figures, words = stretch.rows.numbers, stretch.rows.words["verdict"]
    low, bound = figures["peak_low"][rows], figures["states_bound"][rows]
    by_states = stretch.by_states[rows]
    high = np.where(by_states, bound, low)
    known = ["does_not_fit", "tight", "fits", "unknown"]
    which = np.select([low > limit, ~by_states, high > limit], [0, 3, 1], 2)
    words.put_each(rows, which, known)
    stretch.rows.put("headroom", rows, limit - high)
