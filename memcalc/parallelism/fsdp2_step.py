"""FSDP2's step on one rank: what ``fully_shard`` gathers before a layer, lets go of after it, and reduces behind it.

Each member of a model's outermost lists of layers is a unit, and the root, with everything else, the last, unless a project
wraps its own otherwise (``fsdp2_units``). Parameters are gathered into one buffer and copied out of it into tensors of their
own; what one stream makes for another is held by reference until the host lets go of it: in what order buffers are born and die
does not depend on how fast a GPU is.

source: pytorch 2.13 torch/distributed/fsdp/_fully_shard: _fsdp_state.py (FSDPState), _fsdp_param_group.py (FSDPParamGroup),
_fsdp_collectives.py (foreach_all_gather, foreach_all_gather_copy_out, foreach_reduce), _fsdp_param.py (FSDPParam)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.parallelism.base import Setting
from memcalc.parallelism.fsdp2_sharding import sharding_of
from memcalc.parallelism.fsdp2_units import Piece, Unit, Units, Wrapped, refused
from memcalc.play.around import Call, Hooks
from memcalc.play.pointwise import to
from memcalc.play.values import Life, Storage, Value
from memcalc.tensors import itemsize

if TYPE_CHECKING:
    from memcalc.play.graph import Leaf
    from memcalc.play.machine import Machine

GATHER, REDUCE, ALL_REDUCE = 1, 2, 3
"""Streams beside the one that computes: FSDPCommContext.all_gather_copy_in_stream, reduce_scatter_stream, all_reduce_stream."""


class FullyShard(Hooks):
    """The hooks of ``fully_shard`` on every unit of a model.

    Attributes:
        sharding: how it is sharded.
        wrapped: its units.
        order: units in the order forward left them (post_forward_order).
        previous: the last all-gather's buffer, let go of once the next is copied out of (comm_ctx.all_gather_state).
        scattered: the last reduce-scatter's input, let go of before the next one's (comm_ctx.reduce_scatter_states).
    """

    def __init__(self, setting: Setting, units: Units | None = None) -> None:
        if setting.scheme.main_gradient is not None:
            raise refused(f"has no second set of gradients, as {setting.scheme.name} has")
        self.sharding, self.wrapped = sharding_of(setting), Wrapped(setting, units)
        self.order: list[Unit] = []
        self.previous: Storage | None = None
        self.scattered: Storage | None = None
        self.syncs = True
        self.one_by_one = self.wrapped.nested

    def known(self, machine: Machine, path: str, layer: Any) -> Unit | None:
        """The unit of a module; the root's where its forward is not under way."""
        unit = self.wrapped.unit(machine, path, layer)
        return None if unit is not None and unit.root and unit.state == "forward" else unit

    # -- forward ----------------------------------------------------------------------------------------------------------

    def begin(self, machine: Machine, *, first: bool, last: bool) -> None:
        """Whether gradients are reduced behind each unit of this micro-batch."""
        self.syncs = last or not self.sharding.waits

    def inputs(self, machine: Machine, values: Mapping[str, Value]) -> dict[str, Value]:
        """Floating inputs are cast as the root is entered (FSDPState._cast_forward_inputs)."""
        dtype = self.sharding.gathered
        return {name: to(machine, each, dtype) if dtype and "float" in each.dtype else each for name, each in values.items()}

    def before_forward(self, machine: Machine, call: Call) -> None:
        """Gathered (FSDPParamGroup.pre_forward); run again inside backward, it finds what was gathered before backward."""
        unit: Unit = call.known
        if call.again:
            if not unit.whole:
                self._unshard(machine, unit)
                self._wait(machine, unit)
            return
        if unit.state == "forward":  # another of its modules has been entered
            return
        unit.state = "forward"
        self._unshard(machine, unit)
        self._wait(machine, unit)

    def after_forward(self, machine: Machine, call: Call) -> None:
        """Let go of (FSDPParamGroup.post_forward); the root's stay, and with it goes the last gather's buffer."""
        unit: Unit = call.known
        if call.again or call.path != unit.paths[-1]:
            return
        if self.sharding.reshards and not unit.stays and (not unit.root or self.sharding.reshards_root):
            self._reshard(machine, unit)
        if unit.pieces:  # else it has no group, and none is gathered ahead of it
            unit.places.append(len(self.order))
            self.order.append(unit)
        unit.state = "idle"
        if unit.root:
            self.previous = None
            missed = self.wrapped.missed(machine.idle)
            if missed is not None:
                start = missed.rstrip(".")
                raise refused(f"shards the members of {start} by themselves, and this model's are not played by themselves")
            machine.assumed |= dict.fromkeys(self._assumed())

    def _reshard(self, machine: Machine, unit: Unit) -> None:
        """Each parameter goes, to fewer ranks a copy of this one's piece of it first (FSDPParam.to_sharded_post_forward)."""
        if unit.whole and self.sharding.after and machine.decide(self.sharding.ranks != self.sharding.after):
            for piece in unit.pieces:
                dtype = self._gathered(piece)
                size = self._spread(piece.shape, self.sharding.after) * itemsize(dtype)
                name = f"{self._label(unit, piece.name)} (resharded)"
                unit.fewer.append(machine.held_by_engine(size, "parameter_copy", name, dtype))
                unit.whole.pop(0)
        _freed(unit.whole)

    def _spread(self, shape: tuple[Count, ...], ranks: Count) -> Count:
        """Elements of a parameter, padded for all ranks, on each of some of them."""
        return self.sharding.whole(shape) // ranks

    def _assumed(self) -> Iterator[str]:
        paths = [" with ".join(paths) for paths in self.wrapped.units.groups]
        yield f"FSDP2 gathers {', '.join(paths)} each by itself, and the root with what is left"
        if self.sharding.gathered is not None and self.sharding.reduced is None:
            yield f"gradients are reduced in {self.sharding.gathered}; zero_args.reduce_in_float32 has them in FP32"

    def _unshard(self, machine: Machine, unit: Unit) -> None:
        """An all-gather begins: its buffer is made, and what is cast for it dies (foreach_all_gather)."""
        if unit.gather is not None or unit.whole or not unit.pieces:
            return
        copied: Count = 0
        total: Count = 0
        ranks = self.sharding.after if unit.fewer else self.sharding.ranks
        for piece in unit.pieces:
            size = self._spread(piece.shape, ranks) * itemsize(self._gathered(piece))
            total = total + size
            copied = copied + (size if self._gathered(piece) != piece.dtype else 0)
        if not machine.decide(ranks > 1):
            return
        flat = None
        if self.sharding.gathered is not None and machine.decide(copied > 0):
            flat = machine.held_by_engine(copied, "communication", "all-gather input", stream=GATHER)
        unit.gather = machine.held_by_engine(total * ranks, "communication", "all-gather output", stream=GATHER)
        del flat

    def _gathered(self, piece: Piece) -> str:
        """The dtype of a gathered parameter (FSDPParam.init_dtype_attrs)."""
        return self.sharding.gathered if self.sharding.gathered is not None and "float" in piece.dtype else piece.dtype

    def _wait(self, machine: Machine, unit: Unit) -> None:
        """Parameters are copied out of the gather's buffer (FSDPParamGroup.wait_for_unshard)."""
        if unit.whole or not unit.pieces:
            return
        forward = unit.state == "forward"
        before = self.previous if forward else None  # the function's own name of it keeps it to its end
        cast = None  # over one rank, where the last lives until there is another (FSDPParam.all_gather_inputs)
        for piece in unit.pieces:
            dtype = self._gathered(piece)
            size = self.sharding.whole(piece.shape) * itemsize(dtype)
            if unit.gather is None and dtype != piece.dtype:
                cast = machine.held_by_engine(size, "temporary", f"{self._label(unit, piece.name)} ({dtype})", dtype)
            unit.whole.append(
                machine.held_by_engine(size, "parameter_copy", f"{self._label(unit, piece.name)} (gathered)", dtype)
            )
        del cast
        _freed(unit.fewer)
        if forward:
            self.previous = unit.gather
        unit.gather = None
        del before

    def _label(self, unit: Unit, name: str) -> str:
        """A parameter's name from its unit down, so that layers alike are one line of an explanation."""
        return name.removeprefix(f"{unit.paths[0]}.") if len(unit.paths) == 1 else name

    # -- backward ---------------------------------------------------------------------------------------------------------

    def before_backward(self, machine: Machine, call: Call) -> None:
        """Gathered again, and after it the unit that forward left before (FSDPParamGroup.pre_backward)."""
        unit: Unit = call.known
        if unit.state == "before":
            return
        unit.state = "before"
        self._unshard(machine, unit)
        self._wait(machine, unit)
        if unit.places:
            place = unit.places.pop()
            if place > 0:
                self._unshard(machine, self.order[place - 1])

    def after_backward(self, machine: Machine, call: Call) -> None:
        """Gradients are reduced (FSDPParamGroup.post_backward), once the first of the unit's modules is through."""
        if call.path == call.known.paths[0]:
            self._post_backward(machine, call.known)

    def _post_backward(self, machine: Machine, unit: Unit) -> None:
        unit.state = "behind"
        if not unit.pieces:
            return
        leaves = [leaf for piece in unit.pieces if (leaf := machine.leaves.get(piece.name)) is not None]
        for leaf in leaves:
            if leaf.name in unit.sums and leaf.gradient is not None:
                leaf.gradient = None  # unsharded_accumulated_grad += grad
        if not self.syncs:
            _freed(unit.whole)
            self._summed(machine, unit, leaves)
            return
        found = [leaf for leaf in leaves if leaf.name in unit.sums or leaf.gradient is not None]
        _freed(unit.whole)
        self.scattered = None
        if found:
            self._reduced(machine, unit, found)

    def _summed(self, machine: Machine, unit: Unit, leaves: Iterable[Leaf]) -> None:
        """Whole gradients that wait are kept in ``reduce_dtype`` (FSDPParam.to_accumulated_grad_if_needed)."""
        dtype = self.sharding.reduced
        for leaf in leaves:
            if leaf.gradient is not None and dtype is not None and leaf.dtype != dtype:
                size = leaf.gradient.life.size // itemsize(leaf.dtype) * itemsize(dtype)
                unit.sums[leaf.name] = machine.held_by_engine(size, "temporary", f"{leaf.name}.grad (whole)", dtype)
                leaf.gradient = None

    def _reduced(self, machine: Machine, unit: Unit, found: list[Leaf]) -> None:
        """A reduce-scatter and, over several replicas, an all-reduce of what it gave (foreach_reduce)."""
        sharding = self.sharding
        dtype = sharding.reduced or found[0].dtype
        rows: Count = sum((sharding.rows(leaf.shape) for leaf in found), 0)
        given = machine.held_by_engine(rows * sharding.ranks * itemsize(dtype), "communication", "reduce-scatter input", dtype)
        # a loop's name for the last of them outlives the list, where there are shards to look at
        last = (found[-1].gradient, unit.sums.get(found[-1].name)) if machine.decide(sharding.ranks > 1) else None
        for leaf in reversed(found):  # as a list lets go of what it has (unsharded_grads.clear())
            unit.sums.pop(leaf.name, None)
            leaf.gradient = None
        own = next(piece.dtype for piece in unit.pieces if piece.name == found[0].name)
        name = f"{unit.name} reduced gradients"
        first = unit.reduced is None
        role = "gradient" if first and dtype == own else "communication"
        out = machine.held_by_engine(rows * itemsize(dtype), role, name, dtype, stream=REDUCE)  # type: ignore[arg-type]
        self.scattered = given
        replicated = machine.decide(sharding.replicas > 1)
        if replicated:
            unit.all_reduced = out
        if dtype != own:
            stream = ALL_REDUCE if replicated else REDUCE
            out = machine.held_by_engine(rows * itemsize(own), "gradient" if first else "temporary", name, own, stream=stream)
        if first:
            unit.reduced = out
        del out, given, last

    def end_of_backward(self, machine: Machine) -> None:
        """What no input's gradient has announced is reduced, and all buffers go (_root_post_backward_final_callback)."""
        for unit in sorted(self.wrapped.all(), key=lambda unit: not unit.root):
            if unit.state != "behind":
                machine.path = unit.paths[0]
                self._post_backward(machine, unit)
            if unit.fewer:
                raise refused(f"keeps what {unit.name} left on fewer ranks for good, where backward never comes to it")
            unit.state = "idle"
            unit.all_reduced = unit.gather = None
            unit.places.clear()
        self.order.clear()
        self.scattered = None

    # -- what the machine asks --------------------------------------------------------------------------------------------

    def on_gradient(self, machine: Machine, leaf: Leaf) -> None:
        """A whole gradient is on its way into a reduction: it is not what the optimizer sees."""
        if leaf.gradient is not None:
            leaf.gradient.life.role, leaf.gradient.life.name = "temporary", f"{leaf.name}.grad (whole)"

    def carried(self) -> dict[str, Life]:
        """The buffers that the next unit takes over."""
        ahead = next((unit.gather for unit in self.wrapped.all() if unit.gather is not None), None)
        held = {"gather": self.previous, "ahead": ahead, "scattered": self.scattered}
        for unit in self.wrapped.all():  # one that runs again takes what it left on fewer ranks
            held |= {f"{unit.name} {place}": piece for place, piece in enumerate(unit.fewer)}
        return {key: storage.life for key, storage in held.items() if storage is not None}

    def kept(self) -> Iterable[Storage]:
        """The sharded gradients."""
        return [unit.reduced for unit in self.wrapped.all() if unit.reduced is not None]


def _freed(parameters: list[Storage]) -> None:
    """One after the other (FSDPParamGroup._to_sharded)."""
    while parameters:
        parameters.pop(0)
