"""A played step as DeepSpeed's ZeRO-3 runs it: gathers around modules, gradients reduced and split, and the step by sub-groups.

source: deepspeed 0.19.8 runtime/zero/parameter_offload.py:setup_zero_stage3_hooks; runtime/zero/stage3.py:
reduce_independent_p_g_buckets_and_remove_grads, __avg_scatter_grads, step, _prepare_fp32_grad_for_sub_group; runtime/comm/
coalesced_collectives.py:reduce_scatter_coalesced.
"""

from __future__ import annotations

from collections.abc import Sequence

from memcalc.arrays import ceil_div, product
from memcalc.engines.analytic.gathers import Coordinator, Limits, own_parameters
from memcalc.engines.analytic.moments import END, GRADIENT, REDUCTION_STREAM, Gradients, is_moment, mark, written
from memcalc.engines.analytic.tapes import Around, Played
from memcalc.engines.analytic.under_deepspeed import norm_events
from memcalc.engines.analytic.update import update_events
from memcalc.errors import NotModelledError
from memcalc.kernels.reduction import Chip
from memcalc.models import Model
from memcalc.parallelism.base import Layout, Setting, engine_args, scalar
from memcalc.parallelism.deepspeed import ARGS
from memcalc.parallelism.plain import in_order
from memcalc.plan import Plan
from memcalc.play.adapting import counted
from memcalc.play.around import Call
from memcalc.play.machine import Machine
from memcalc.records import replace
from memcalc.tape.events import Alloc, Buffer, Event, Free, Mark, allocs, frees
from memcalc.tape.unroll import unroll
from memcalc.tensors import itemsize

TO, FROM = "forward comes to a module", "forward leaves a module"
BACK_TO, BACK_FROM = "backward comes to a module", "backward leaves a module"
AGAIN_TO, AGAIN_FROM = "a module is run again", "a module has been run again"
KINDS = frozenset({TO, FROM, BACK_TO, BACK_FROM, AGAIN_TO, AGAIN_FROM, GRADIENT, END})
ASSUMED = (
    "the model is built under deepspeed.zero.Init, whose linear layers save their weight, not a view that keeps it gathered",
    "ZeRO-3 fetches ahead at every module but activation functions, which are no modules here",
)


class Modules(Gradients):
    """Marks every module that is come to and left as well."""

    def __init__(self) -> None:
        super().__init__(given_up=True)

    def known(self, machine: Machine, path: str, layer: object) -> str:
        """Every module."""
        return path or "(the model)"

    def before_forward(self, machine: Machine, call: Call) -> None:
        """The moment."""
        mark(machine, AGAIN_TO if call.again else TO, call.known)

    def after_forward(self, machine: Machine, call: Call) -> None:
        """The moment."""
        mark(machine, AGAIN_FROM if call.again else FROM, call.known)

    def before_backward(self, machine: Machine, call: Call) -> None:
        """The moment."""
        mark(machine, BACK_TO, call.known)

    def after_backward(self, machine: Machine, call: Call) -> None:
        """The moment."""
        mark(machine, BACK_FROM, call.known)


def under_zero3(plan: Plan, model: Model, layout: Layout, around: Around, played: Played, chip: Chip) -> tuple[Around, Played]:
    """What stands around the step, and forward and backward as the engine has them.

    Raises:
        ScalarOnlyError: ranks or tensors are arrays.
        NotModelledError: parameters that do not train, or that no module was seen to use.
    """
    setting = plan.setting(model)
    writer = _Writer(setting, played.events)
    events = tuple(written(played.events, KINDS, writer.told))
    early, update = _step(plan, model, layout, writer, chip)
    assumed = (*played.assumed, *ASSUMED)
    return (
        replace(around, clip=(), early=early, update=update),
        replace(played, events=events, gradients=(), assumed=assumed),
    )


class _Places:
    """Which layer of a stack a moment is of: forward goes from the first to the last, backward back."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts = counts
        self.begin()

    def begin(self) -> None:
        """A micro-batch begins."""
        self.visits: dict[tuple[str, str], int] = {}

    def of(self, kind: str, path: str) -> int:
        """The layer's number."""
        count = self.counts.get(path, 1)
        visit = self.visits.get((kind, path), 0)
        self.visits[kind, path] = visit + 1
        return min(visit, count - 1) if kind in (TO, FROM) else max(count - 1 - visit, 0)


class _Writer:
    """Writes a played step anew, with gathers, reductions and what they let go of."""

    def __init__(self, setting: Setting, events: Sequence[Event]) -> None:
        if setting.frozen:
            raise NotModelledError(
                "parallelism.zero_stage", 3, "is not played where parameters are frozen", "use zero_stage 2, or scope states"
            )
        args = engine_args({"overlap_comm": True, **setting.args}, ARGS, "DeepSpeed")  # in stage 3 by default
        self.args, self.ranks = args, scalar(setting.shards)
        self.size = itemsize(setting.uniform())
        self.dtype = setting.uniform()
        single = in_order(setting.trainable)
        names = [counted(setting.trainable[position].name) for position, _ in single]
        self.sizes = [scalar(numel) for _, numel in single]
        self.ids: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            self.ids.setdefault(name, []).append(number)
        tied = {counted(name): counted(other) for name, other in setting.model.tied.items()}
        self.own = own_parameters(self.ids, tied)
        counts = {path: max(len(self.ids[name]) for name in mine) for path, mine in self.own.items()}
        self.places, limits = _Places(counts), self._limits(args)
        small = frozenset(n for n, size in enumerate(self.sizes) if size <= args["stage3_param_persistence_threshold"])
        order = self._order(events)
        unseen = set(range(len(self.sizes))) - {param for params in order for param in params}
        if unseen:
            raise NotModelledError(
                "model", names[min(unseen)], "is used by a module whose calls are not told", "use zero_stage 2, or scope states"
            )
        self.gathers = Coordinator(self.sizes, names, small, order, limits)
        self.bucket: list[tuple[int, Buffer | None]] = []
        self.elements = 0
        self.dying: Buffer | None = None
        self.open: dict[object, list[int]] = {}
        self.names = names

    def _limits(self, args: dict[str, int]) -> Limits:
        return Limits(
            self.ranks, self.size, args["stage3_max_live_parameters"], args["stage3_max_reuse_distance"],
            args["stage3_prefetch_bucket_size"], bool(args["overlap_comm"]),
        )  # fmt: skip

    def _order(self, events: Sequence[Event]) -> list[list[int]]:
        """The parameters of each module in the order they are fetched in, of one micro-batch."""
        found: list[list[int]] = []
        for event in unroll(events):
            if is_moment(event, END):
                break
            if isinstance(event, Alloc) and event.buffer.operator in (TO, BACK_TO, AGAIN_TO):
                found.append(self._module(event.buffer)[1])
        self.places.begin()
        return found

    def _module(self, buffer: Buffer) -> tuple[object, list[int]]:
        """(which module a moment is of, its parameters)."""
        path = counted(buffer.site)
        place = self.places.of(buffer.operator, path)
        mine = [self.ids[name] for name in self.own.get(path, ())]
        return (path, place), [ids[min(place, len(ids) - 1)] for ids in mine]

    def told(self, event: Event) -> Sequence[Event]:
        """What stands in the place of one event."""
        if isinstance(event, Mark):
            if event.phase == "forward":
                self.places.begin()
                self.gathers.begin()
                self.waiting = {name: list(ids) for name, ids in self.ids.items()}
            return (event,)
        if isinstance(event, Free) and event.buffer.site.endswith(".grad"):
            self.dying = event.buffer
            return ()
        if not (isinstance(event, Alloc) and event.buffer.operator in KINDS):
            return (event,)
        kind = event.buffer.operator
        if kind == GRADIENT:
            own, self.dying = self.dying, None
            return self._pushed(self._arrived(event.buffer), own)
        if kind == END:
            return self._ended()
        module, params = self._module(event.buffer)
        if kind in (TO, BACK_TO, AGAIN_TO):
            if kind == BACK_TO:
                self.open[module] = params
            return self.gathers.fetch(module, params)
        if kind == BACK_FROM:
            self.open.pop(module, None)
        return self.gathers.release(module, params)

    def _arrived(self, moment: Buffer) -> int:
        """Whose gradient it is: of those of that name and size that are waited for, the last."""
        waiting, numel = self.waiting[counted(moment.site)], product(moment.shape or ())
        alike = [place for place, param in enumerate(waiting) if self.sizes[param] == numel]
        return waiting.pop(alike[-1])

    def _pushed(self, param: int, own: Buffer | None) -> list[Event]:
        """A gradient goes into the bucket (reduce_independent_p_g_buckets_and_remove_grads, __add_grad_to_ipg_bucket)."""
        numel, size = self.sizes[param], self.args["reduce_bucket_size"]
        events = self._reduced() if self.bucket and self.elements + numel > size else []
        fits = self.elements + numel <= size
        self.elements += numel
        self.bucket.append((param, None if fits else own))
        return [*events, Free(own)] if fits and own is not None else events

    def _reduced(self) -> list[Event]:
        """The bucket's gradients are split over the ranks, from a copy in which each rank's pieces lie together."""
        sizes = [self.sizes[param] for param, _ in self.bucket]
        in_place = not self.args["reduce_scatter"] and self.elements <= self.args["reduce_bucket_size"]
        events: list[Event] = []
        if not in_place and not (len(sizes) == 1 and sizes[0] % self.ranks == 0):
            whole = sum(int(ceil_div(numel, self.ranks)) * self.ranks for numel in sizes) * self.size
            stream = REDUCTION_STREAM if self.args["overlap_comm"] else 0
            flat = Buffer("gradients to reduce", whole, "communication", stream=stream)
            events += [Alloc(flat), Free(flat)]
        events += [Free(own) for _, own in self.bucket if own is not None]
        self.bucket.clear()
        self.elements = 0
        return events

    def _ended(self) -> list[Event]:
        """Backward is through: what is left in the bucket, and modules whose backward never ended."""
        events = self._reduced()
        for module in reversed(list(self.open)):
            events += self.gathers.leave(module, self.open.pop(module))
        return events


def _step(plan: Plan, model: Model, layout: Layout, writer: _Writer, chip: Chip) -> tuple[list[Event], list[Event]]:
    """(what comes before the optimizer's own step, that step sub-group by sub-group and what follows)."""
    kept = [held for held in layout.resident if held.buffer.role == "parameter_copy"]
    early = [*writer.gathers.all(), *(frees(held.buffer, held.times) for held in kept)]
    update: list[Event] = []
    for params, pieces in zip(layout.params, _groups(writer), strict=True):
        early += norm_events(pieces, chip)
        size, tensors = sum(pieces), len(pieces)
        flat = Buffer("flattened gradients", size * writer.size, "temporary")
        single = Buffer("fp32 gradients", size * 4, "temporary")
        own = flat if writer.dtype == "float32" else single
        inner = update_events(plan, replace(layout, params=(params,), in_turn=False), model, chip)
        view = tensors == 1 and own is flat
        update += [Alloc(flat)] if tensors > 1 else []
        update += [Alloc(single)] if own is single else []
        update += [Free(flat)] if tensors > 1 and own is single else []
        update += inner if view else [*inner, Free(own)]
    return early, [*update, *(allocs(held.buffer, held.times) for held in kept)]


def _groups(writer: _Writer) -> list[list[int]]:
    """Elements of each parameter's piece, by sub-group (stage3.py:_create_fp16_sub_groups)."""
    limit, found = writer.args["sub_group_size"], [[]]  # type: ignore[var-annotated]
    for numel in writer.sizes:
        found[-1].append(int(ceil_div(numel, writer.ranks)))
        if sum(found[-1]) >= limit:
            found.append([])
    return [group for group in found if group]
