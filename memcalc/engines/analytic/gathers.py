"""DeepSpeed's ZeRO-3 around modules: which parameters are gathered, ahead of use too, and when they are let go of.

source: deepspeed 0.19.8 runtime/zero/partitioned_param_coordinator.py (fetch_sub_module, release_sub_module,
__params_to_release), runtime/zero/partition_parameters.py (_all_gather_sequential, _all_gather_dtype,
AllGatherCoalescedHandle), of a run whose order of modules is known by now (a complete trace). A gather of one parameter is that
parameter; of several, one flat buffer, which is split into a copy of each as the first of them is waited for, and stays until
the last of them is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from memcalc.arrays import ceil_div
from memcalc.records import dataclass
from memcalc.tape.events import Alloc, Buffer, Event, Free

GATHER_STREAM = 2
"""The number by which the stream gathers are on is told (parameter_offload.py:__allgather_stream)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The engine's options, in elements.

    Attributes:
        ranks: over which parameters are split.
        itemsize: bytes of an element.
        live: ``stage3_max_live_parameters``.
        reuse: ``stage3_max_reuse_distance``.
        prefetch: ``stage3_prefetch_bucket_size``.
        overlap: ``overlap_comm``, which gives gathers a stream of their own.
    """

    ranks: int
    itemsize: int
    live: int
    reuse: int
    prefetch: int
    overlap: bool


class _Handle:
    """A gather under way: its parameters, its flat buffer, and how many still refer to it."""

    def __init__(self, params: Sequence[int], flat: Buffer | None) -> None:
        self.params, self.flat = list(params), flat
        self.waiting, self.complete = len(params), False


class Coordinator:
    """What is gathered at each moment of one micro-batch.

    Args:
        sizes: elements of every parameter.
        names: what each is called.
        persistent: parameters that are never let go of.
        order: the parameters of each module, in the order modules are come to, forward and backward.
        limits: the engine's options.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        names: Sequence[str],
        persistent: frozenset[int],
        order: Sequence[Sequence[int]],
        limits: Limits,
    ) -> None:
        self.sizes, self.names, self.persistent, self.order, self.limits = sizes, names, persistent, order, limits
        self.held: dict[int, Buffer | None] = {}
        self.flying: dict[int, _Handle] = {}
        self.begin()

    def begin(self) -> None:
        """A micro-batch begins (reset_step); what was gathered and not let go of stays."""
        self.step, self.available = 0, 0
        self.fetched: dict[int, int] = {}
        self.active: dict[int, list[object]] = {}
        self.queue = deque((param, step) for step, params in enumerate(self.order) for param in params)

    def fetch(self, module: object, params: Sequence[int]) -> list[Event]:
        """A module is come to: its parameters are gathered and waited for, and those of the next are sent for."""
        events = self._gathered([param for param in params if not self._there(param)])
        for param in params:
            self.active.setdefault(param, []).append(module)
            handle = self.flying.pop(param, None)
            if handle is not None:
                events += self._waited(handle)
        new = {param for param in params if self.fetched.get(param, -1) < self.step}
        popped: set[int] = set()
        while self.queue and len(popped) < len(new):
            param, step = self.queue.popleft()
            self.fetched[param] = step
            popped.add(param)
        events += self._ahead()
        self.step += 1
        return events

    def release(self, module: object, params: Sequence[int]) -> list[Event]:
        """A module is left: its parameters go, but those that are used again soon."""
        going = {param for param in params if param not in self.persistent and self.fetched.get(param, -1) <= self.step}
        seen = 0
        for later in self.order[self.step :]:
            if seen >= self.limits.reuse or not going:
                break
            for param in later:
                going.discard(param)
                seen += self.sizes[param]
        return self._left(module, params, going)

    def leave(self, module: object, params: Sequence[int]) -> list[Event]:
        """A module whose backward never ended is left as backward does (release_backward_leftovers)."""
        return self._left(module, params, {param for param in params if param not in self.persistent})

    def all(self) -> list[Event]:
        """Everything goes (release_and_reset_all, before the step)."""
        events = [Free(buffer) for buffer in self.held.values() if buffer is not None]
        self.held.clear()
        return events  # type: ignore[return-value]

    def _left(self, module: object, params: Iterable[int], going: set[int]) -> list[Event]:
        events: list[Event] = []
        for param in params:
            users = self.active.get(param, [])
            self.active[param] = [user for user in users if user != module]
            if param in going and not self.active[param] and param in self.held and param not in self.flying:
                buffer = self.held.pop(param)
                self.available -= self.sizes[param]
                if buffer is not None:
                    events.append(Free(buffer))
        return events

    def _there(self, param: int) -> bool:
        return param in self.persistent or param in self.held or param in self.flying

    def _gathered(self, params: Sequence[int]) -> list[Event]:
        """An all-gather is sent off (__all_gather_params, all_gather_coalesced)."""
        if not params:
            return []
        self.available += sum(self.sizes[param] for param in params)
        ranks, stream = self.limits.ranks, GATHER_STREAM if self.limits.overlap else 0
        padded = [int(ceil_div(self.sizes[param], ranks)) * ranks * self.limits.itemsize for param in params]
        if ranks == 1:  # a view of the partition
            handle = _Handle(params, None)
            handle.complete = True
            self.held |= dict.fromkeys(params)
            events: list[Event] = []
        elif len(params) == 1:
            handle = _Handle(params, None)
            handle.complete = True
            whole = Buffer(f"{self.names[params[0]]} (gathered)", padded[0], "parameter_copy", stream=stream)
            self.held[params[0]] = whole
            events = [Alloc(whole)]
        else:
            handle = _Handle(params, Buffer("gathered parameters", sum(padded), "parameter_copy", stream=stream))
            events = [Alloc(handle.flat)]  # type: ignore[arg-type]
        self.flying |= dict.fromkeys(params, handle)
        return events

    def _waited(self, handle: _Handle) -> list[Event]:
        """One of its parameters is waited for (AllGatherCoalescedHandle.wait)."""
        events: list[Event] = []
        if not handle.complete:
            handle.complete = True
            for param in handle.params:
                size = self.sizes[param] * self.limits.itemsize
                stream = GATHER_STREAM if self.limits.overlap else 0
                buffer = self.held[param] = Buffer(f"{self.names[param]} (gathered)", size, "parameter_copy", stream=stream)
                events.append(Alloc(buffer))
        handle.waiting -= 1
        if not handle.waiting and handle.flat is not None:
            events.append(Free(handle.flat))
        return events

    def _ahead(self) -> list[Event]:
        """Parameters of the modules to come, up to a bucket and to what may be live."""
        most = min(self.limits.live - self.available, self.limits.prefetch)
        chosen: dict[int, None] = {}
        numel = 0
        while self.queue and numel < most:
            param, step = self.queue.popleft()
            self.fetched[param] = max(self.fetched.get(param, -1), step)
            if not self._there(param) and param not in chosen:
                chosen[param] = None
                numel += self.sizes[param]
        return self._gathered(list(chosen))


def own_parameters(names: Iterable[str], tied: Mapping[str, str]) -> dict[str, list[str]]:
    """The parameters each module has itself, by its path: places in lists are ``*``; a tied one has another's.

    >>> own_parameters(["wte.weight", "h.*.mlp.weight", "h.*.mlp.bias"], {"lm_head.weight": "wte.weight"})
    {'wte': ['wte.weight'], 'h.*.mlp': ['h.*.mlp.weight', 'h.*.mlp.bias'], 'lm_head': ['wte.weight']}
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    for name, other in tied.items():
        mine = found.setdefault(name.rpartition(".")[0], [])
        if other not in mine:
            mine.append(other)
    return found
