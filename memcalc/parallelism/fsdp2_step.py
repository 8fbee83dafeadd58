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
from memcalc.parallelism.fsdp2_gathers import ALL_REDUCE, REDUCE, Gathers, freed
from memcalc.parallelism.fsdp2_units import Unit, Units, refused
from memcalc.play.around import Call
from memcalc.play.pointwise import to
from memcalc.play.values import Life, Storage, Value
from memcalc.tensors import itemsize

if TYPE_CHECKING:
    from memcalc.play.graph import Leaf
    from memcalc.play.machine import Machine


class FullyShard(Gathers):
    """The hooks of ``fully_shard`` on every unit of a model.

    Attributes:
        order: units in the order forward left them (post_forward_order).
        scattered: the last reduce-scatter's input, let go of before the next one's (comm_ctx.reduce_scatter_states).
    """

    def __init__(self, setting: Setting, units: Units | None = None) -> None:
        super().__init__(setting, units)
        self.order: list[Unit] = []
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
                self.unshard(machine, unit)
                self.wait(machine, unit)
            return
        if unit.state == "forward":  # another of its modules has been entered
            return
        unit.state = "forward"
        self.unshard(machine, unit)
        self.wait(machine, unit)

    def after_forward(self, machine: Machine, call: Call) -> None:
        """Let go of (FSDPParamGroup.post_forward); the root's stay, and with it goes the last gather's buffer."""
        unit: Unit = call.known
        if call.again or call.path != unit.paths[-1]:
            return
        if self.sharding.reshards and not unit.stays and (not unit.root or self.sharding.reshards_root):
            self.reshard(machine, unit)
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

    def _assumed(self) -> Iterator[str]:
        paths = [" with ".join(paths) for paths in self.wrapped.units.groups]
        yield f"FSDP2 gathers {', '.join(paths)} each by itself, and the root with what is left"
        if self.sharding.gathered is not None and self.sharding.reduced is None:
            yield f"gradients are reduced in {self.sharding.gathered}; zero_args.reduce_in_float32 has them in FP32"

    # -- backward ---------------------------------------------------------------------------------------------------------

    def before_backward(self, machine: Machine, call: Call) -> None:
        """Gathered again, and after it the unit that forward left before (FSDPParamGroup.pre_backward)."""
        unit: Unit = call.known
        if unit.state == "before":
            return
        unit.state = "before"
        self.unshard(machine, unit)
        self.wait(machine, unit)
        if unit.places:
            place = unit.places.pop()
            if place > 0:
                self.unshard(machine, self.order[place - 1])

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
            freed(unit.whole)
            self._summed(machine, unit, leaves)
            return
        found = [leaf for leaf in leaves if leaf.name in unit.sums or leaf.gradient is not None]
        freed(unit.whole)
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
