"""DeepSpeed's ZeRO-1 and -2 in backward: gradients on their way into a bucket, its reduction, and what a partition keeps.

source: deepspeed 0.19.8 runtime/zero/stage_1_and_2.py, with contiguous_gradients and use_multi_rank_bucket_allreduce, as by
default. A gradient is copied into the bucket and its own memory goes; a bucket that the next does not fit is reduced: slices of
it by the rank they belong to are flattened into a copy, unless all are one rank's. One larger than the bucket keeps its own
memory until it is reduced alone. Where no copy is made (``reduce_scatter`` off), the bucket is reduced in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from memcalc.arrays import Count, product
from memcalc.engines.analytic.moments import END, GRADIENT, REDUCTION_STREAM, is_moment, written
from memcalc.play.adapting import counted
from memcalc.records import dataclass
from memcalc.tape.events import Alloc, Buffer, Event, Free, Mark
from memcalc.tensors import itemsize

GRAD = ".grad"


@dataclass(frozen=True, slots=True)
class Placed:
    """A parameter in the flat buffer.

    Attributes:
        name: its name, places in lists as ``*``.
        start: its first element there.
        numel: its elements.
    """

    name: str
    start: int
    numel: int

    def slices(self, partition: int) -> list[tuple[int, int]]:
        """(rank, elements) of each partition it reaches into (stage_1_and_2.py:initialize_gradient_partition)."""
        found, at, end = [], self.start, self.start + self.numel
        while at < end:
            cut = min((at // partition + 1) * partition, end)
            found.append((at // partition, cut - at))
            at = cut
        return found


@dataclass(frozen=True, slots=True)
class Reduction:
    """How one rank's gradients are reduced.

    Attributes:
        stage: 1 or 2.
        rank: which partition is kept.
        partition: elements of one.
        dtype: the gradients'.
        bucket: elements of the bucket (``reduce_bucket_size``).
        overlap: whether reduction overlaps backward, with a second bucket (``overlap_comm``).
        copies: whether slices are flattened into a copy before they are reduced (``reduce_scatter``).
        placed: the parameters in the order of the flat buffer.
        order: positions in ``placed`` in the order of registration.
    """

    stage: int
    rank: int
    partition: int
    dtype: str
    bucket: int
    overlap: bool
    copies: bool
    placed: Sequence[Placed]
    order: Sequence[int]

    def kept(self) -> list[Placed]:
        """The parameters whose gradients this rank keeps whole: those its partition touches."""
        return [one for one in self.placed if self._within(one) > 0]

    def pieces(self) -> list[int]:
        """Elements of each kept gradient that fall into the partition (get_flat_partition)."""
        return [self._within(one) for one in self.kept()]

    def _within(self, one: Placed) -> int:
        """Elements of a parameter that fall into this rank's partition."""
        start = self.rank * self.partition
        return min(one.start + one.numel, start + self.partition) - max(one.start, start)

    def rest(self) -> int:
        """Elements of the partition beyond the last parameter: zeros."""
        return self.partition - sum(self.pieces())


class Reducer:
    """Writes a played backward anew, as it goes under ZeRO-1 or -2.

    Attributes:
        left: what is kept for the step, once ``rewritten`` has run.
    """

    def __init__(self, reduction: Reduction, gradients: Iterable[tuple[Buffer, Count]]) -> None:
        self.to = reduction
        self.waiting: dict[tuple[str, int], list[int]] = {}
        self.own: dict[str, list[tuple[Buffer, int]]] = {}
        for buffer, times in gradients:
            self.own.setdefault(_parameter(buffer), []).append((buffer, int(times)))
        size = itemsize(reduction.dtype)
        self.size, self.inside = size, {id(one) for one in reduction.kept()}
        self.buckets = [
            Buffer("ipg bucket", reduction.bucket * size, "communication") for _ in range(2 if reduction.overlap else 1)
        ]
        self.open = False
        self.elements = 0
        self.filled: list[tuple[Placed, Buffer | None]] = []
        """What is in the bucket, and its own memory where that is too large for it."""
        self.late: list[Buffer] = []
        self.left: list[Buffer] = []
        self.new: Buffer | None = None
        self.dying: Buffer | None = None
        self.batch = self.batches = 0

    def rewritten(self, events: Sequence[Event]) -> list[Event]:
        """The events of forward and backward, with what the engine does in them."""
        self.batches = sum(isinstance(event, Mark) and event.phase == "forward" for event in events)
        return written(events, frozenset({GRADIENT, END}), self._told)

    def _told(self, event: Event) -> Sequence[Event]:
        if isinstance(event, Mark) and event.phase == "forward":
            self._begun()
        elif is_moment(event, GRADIENT):
            return self._came(event.buffer)  # type: ignore[union-attr]
        elif is_moment(event, END):
            return self._ended()
        elif self.to.stage == 2 and isinstance(event, Free) and event.buffer.site.endswith(GRAD):
            self.dying = event.buffer  # as it is copied: the hook, which is next, says when
            return ()
        return (event,)

    @property
    def boundary(self) -> bool:
        """Whether this micro-batch is the last of the step."""
        return self.batch == self.batches

    def _begun(self) -> None:
        """A micro-batch begins: no parameter has a gradient yet; of a stack's, the last layer's comes first."""
        self.batch += 1
        self.waiting = {}
        for place in self.to.order:
            one = self.to.placed[place]
            self.waiting.setdefault((one.name, one.numel), []).append(place)

    def _came(self, moment: Buffer) -> list[Event]:
        """A gradient is there: its hook runs (process_gradients)."""
        events: list[Event] = []
        if not self.open:  # setup_buckets
            self.open = True
            events += [Alloc(bucket) for bucket in self.buckets]
        one = self.to.placed[self.waiting[counted(moment.site), int(product(moment.shape or ()))].pop()]
        if self.to.stage == 2:
            own, self.dying = self.dying, None
            events += self._pushed(one, own)
        elif self.to.overlap and self.boundary:
            events += self._pushed(one, self._own(one))
        return events

    def _own(self, one: Placed) -> Buffer:
        """The memory of a gradient that was kept until now."""
        held = self.own[one.name]
        alike = [place for place, (buffer, _) in enumerate(held) if buffer.requested == one.numel * self.size]
        buffer, times = held.pop(alike[-1] if alike else -1)
        if times > 1:
            held.append((buffer, times - 1))
        return buffer

    def _pushed(self, one: Placed, own: Buffer | None) -> list[Event]:
        """Into the bucket, after what is there has been reduced where both do not fit (reduce_independent_p_g_buckets_...)."""
        events = self._reduced() if self.elements + one.numel > self.to.bucket else []
        self.elements += one.numel
        if one.numel > self.to.bucket:
            self.filled.append((one, own))
            return events
        self.filled.append((one, None))
        return [*events, Free(own)] if own is not None else events

    def _reduced(self) -> list[Event]:
        """The bucket goes to its ranks (reduce_ipg_grads), and what this one keeps is copied out (copy_grads_in_partition)."""
        events = self._averaged() if self.to.copies else []
        for one, own in self.filled:
            inside = id(one) in self.inside
            if inside and self.new is None:
                self.new = Buffer("grads_in_partition", sum(each.numel for each in self.to.kept()) * self.size, "gradient")
                events.append(Alloc(self.new))
            if own is not None and (inside or self.to.stage == 2):
                events.append(Free(own))
            elif own is not None:
                self.late.append(own)
        self.filled.clear()
        self.elements = 0
        return events

    def _averaged(self) -> list[Event]:
        """Flat copies that are reduced (average_tensor, allreduce_and_scatter): neighbours of one rank are one slice."""
        every = [piece for one, _ in self.filled for piece in one.slices(self.to.partition)]
        slices = [sum(numel for _, numel in run) for _, run in groupby(every, key=lambda piece: piece[0])]
        events: list[Event] = []
        small = together = 0
        for place, numel in enumerate(slices):
            small, together = small + 1, together + numel
            if together > self.to.bucket or place == len(slices) - 1:
                if small > 1:  # one tensor is flattened as a view of itself
                    stream = REDUCTION_STREAM if self.to.overlap else 0
                    flat = Buffer("flattened bucket", together * self.size, "communication", stream=stream)
                    events += [Alloc(flat), Free(flat)]
                small = together = 0
        return events

    def _ended(self) -> list[Event]:
        """Backward is through (reduce_gradients, independent_gradient_partition_epilogue)."""
        if self.to.stage == 1 and not self.boundary:
            return []
        events: list[Event] = []
        if self.to.stage == 1 and not self.to.overlap:
            for place in self.to.order:
                one = self.to.placed[place]
                if self.own.get(one.name):
                    events += self._pushed(one, self._own(one))
        events += self._reduced()
        if self.boundary and (rest := self.to.rest()):
            self.left.append(Buffer("zeros after the last gradient", rest * self.size, "gradient"))
            events.append(Alloc(self.left[-1]))
        if self.open:
            events += [Free(bucket) for bucket in self.buckets]
        events += [Free(own) for own in self.late]
        if self.new is not None:
            if self.batch > 1 and self.to.stage == 2:  # added to those of the first micro-batch
                events.append(Free(self.new))
            else:
                self.left.insert(0, self.new)
        self.open, self.new = False, None
        self.late.clear()
        return events


def _parameter(buffer: Buffer) -> str:
    return counted(buffer.site.removesuffix(GRAD))
