"""FSDP2's step on one rank: what ``fully_shard`` gathers before a layer, lets go of after it, and reduces behind it.

Each member of a model's outermost lists of layers is a unit, and the root, with everything else, the last. Parameters are
gathered into one buffer and copied out of it into tensors of their own; what one stream makes for another is held until events
say that it may go, which the host decides: in what order buffers are born and die does not depend on how fast a GPU is.

source: pytorch 2.13 torch/distributed/fsdp/_fully_shard: _fsdp_state.py (FSDPState), _fsdp_param_group.py (FSDPParamGroup),
_fsdp_collectives.py (foreach_all_gather, foreach_all_gather_copy_out, foreach_reduce), _fsdp_param.py (FSDPParam)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from memcalc.arrays import Count, ceil_div
from memcalc.errors import NotModelledError
from memcalc.models import Model
from memcalc.parallelism.base import Setting, engine_args
from memcalc.parallelism.fsdp2 import ARGS
from memcalc.play.around import Call, Hooks
from memcalc.play.values import Life, Storage
from memcalc.records import dataclass
from memcalc.tensors import Tensor, itemsize

if TYPE_CHECKING:
    from memcalc.play.graph import Leaf
    from memcalc.play.machine import Machine

GATHER, REDUCE, ALL_REDUCE = 1, 2, 3
"""Streams beside the one that computes: FSDPCommContext.all_gather_copy_in_stream, reduce_scatter_stream, all_reduce_stream."""
State = Literal["idle", "forward", "before", "behind"]
"""TrainingState: IDLE, FORWARD, PRE_BACKWARD, POST_BACKWARD."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One parameter of a unit.

    Attributes:
        name: as the machine's leaf has it.
        shape: whole.
        dtype: of the sharded parameter.
    """

    name: str
    shape: tuple[Count, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a model is sharded.

    Attributes:
        ranks: in a group that shards.
        replicas: such groups (HSDP where there are several).
        gathered: MixedPrecisionPolicy's ``param_dtype``; None for the parameters' own.
        reduced: its ``reduce_dtype``; None for that of the gradients.
        reshards: whether parameters are let go of after forward.
        reshards_root: whether the root's are too, which backward needs at once.
        waits: whether gradients stay whole until the last micro-batch (``set_requires_gradient_sync(False)`` before it).
    """

    ranks: Count
    replicas: Count = 1
    gathered: str | None = None
    reduced: str | None = None
    reshards: bool = True
    reshards_root: bool = False
    waits: bool = False

    def rows(self, shape: tuple[Count, ...]) -> Count:
        """Elements of a parameter's padded piece (_fsdp_param.py:_init_sharded_param, padded_sharded_param_size)."""
        total = ceil_div(shape[0], self.ranks) if shape else 1
        for extent in shape[1:]:
            total = total * extent
        return total

    def whole(self, shape: tuple[Count, ...]) -> Count:
        """Elements of all its pieces."""
        return self.rows(shape) * self.ranks


def sharding_of(setting: Setting) -> Sharding:
    """How a job shards.

    Raises:
        InputError: an option that FSDP2 does not have here, or a group to reshard to that is none of its ranks.
    """
    args = engine_args(setting.args, ARGS, "FSDP2")
    return Sharding(
        setting.shards,
        setting.replicas,
        gathered=setting.scheme.copy,
        reduced="float32" if args["reduce_in_float32"] else None,
        reshards=setting.stage == 3,
        reshards_root=bool(args["reshard_root"]),
        waits=bool(args["no_sync"]),
    )


def lists_of(model: Model) -> frozenset[str]:
    """What stands before the number of a member of each outermost list of layers, as ``model.layers.``.

    Raises:
        NotModelledError: there is none, or it is inside of another list.
    """
    found = frozenset(tensor.name.split("*")[0] for tensor in model.parameters if "*" in tensor.name)
    inner = [start for start in found if any(part.isdigit() for part in start.split("."))]
    if not found or inner:
        what = f"shards a list that {inner[0].rstrip('.')} is in" if inner else "finds no list of layers to shard one by one"
        raise _refused(what)
    return found


class Unit:
    """One FSDPParamGroup.

    Attributes:
        path: of its module.
        pieces: its parameters.
        root: whether it is the root's.
        state: where it is.
        gather: the buffer of an all-gather under way.
        whole: the gathered parameters; empty where they are sharded.
        sums: whole gradients in ``reduce_dtype`` that wait for the last micro-batch, by leaf.
        reduced: the buffer the sharded gradients are views of.
        all_reduced: what an all-reduce works on, held until backward is through.
        places: where it stands in the order forward went.
    """

    def __init__(self, path: str, pieces: tuple[Piece, ...], *, root: bool) -> None:
        self.path, self.pieces, self.root = path, pieces, root
        self.state: State = "idle"
        self.gather: Storage | None = None
        self.whole: list[Storage] = []
        self.sums: dict[str, Storage] = {}
        self.reduced: Storage | None = None
        self.all_reduced: Storage | None = None
        self.places: list[int] = []


class FullyShard(Hooks):
    """The hooks of ``fully_shard`` on every unit of a model.

    Attributes:
        sharding: how it is sharded.
        units: every unit met so far, by path.
        order: units in the order forward left them (post_forward_order).
        previous: the last all-gather's buffer, let go of once the next is copied out of (comm_ctx.all_gather_state).
        scattered: the last reduce-scatter's input, let go of before the next one's (comm_ctx.reduce_scatter_states).
    """

    def __init__(self, setting: Setting) -> None:
        self.model, self.sharding, self.lists = setting.model, sharding_of(setting), lists_of(setting.model)
        self.dtype = setting.dtype
        self.units: dict[str, Unit | None] = {}
        self.order: list[Unit] = []
        self.previous: Storage | None = None
        self.scattered: Storage | None = None
        self.syncs = True

    # -- which modules ----------------------------------------------------------------------------------------------------

    def known(self, machine: Machine, path: str, layer: Any) -> Unit | None:
        """The unit of a module: of a member of a list of layers, and of the root, whose forward is not under way."""
        if path in self.units:
            unit = self.units[path]
        else:
            unit = self.units[path] = self._unit(path, layer)
        return None if unit is not None and unit.root and unit.state == "forward" else unit

    def _unit(self, path: str, layer: Any) -> Unit | None:
        if path == self.model.prefix:
            own = [tensor for tensor in self.model.parameters if "*" not in tensor.name]
            return Unit(path, self._pieces("", own), root=True)
        for start in self.lists:
            if path.startswith(start) and "." not in path[len(start) :]:
                return Unit(path, self._pieces(f"{path}.", self._members(start, layer)), root=False)
        return None

    def _members(self, start: str, layer: Any) -> list[Tensor]:
        """The parameters of a member of a list, named from the member down."""
        if self.model.adapter is None and layer is not None:
            return [tensor for tensor in layer.tensors() if tensor.role == "parameter"]
        found = [tensor for tensor in self.model.parameters if tensor.name.startswith(f"{start}*.")]
        names = [tensor.name for tensor in found]
        if len(set(names)) < len(names):
            raise _refused(f"shards {start}*, whose members are of several kinds, with adapters on them")
        return [replace(tensor, name=tensor.name[len(start) + 2 :], count=1) for tensor in found]

    def _pieces(self, start: str, tensors: Iterable[Tensor]) -> tuple[Piece, ...]:
        found = []
        for tensor in tensors:
            if "*" in tensor.name:
                raise _refused(f"shards {start}{tensor.name}, a list within a layer, which is not modelled")
            found.append(Piece(f"{start}{tensor.name}", tensor.shape, self.dtype(tensor)))
        return tuple(found)

    def _met(self) -> Iterator[Unit]:
        return (unit for unit in self.units.values() if unit is not None)

    # -- forward ----------------------------------------------------------------------------------------------------------

    def begin(self, machine: Machine, *, first: bool, last: bool) -> None:
        """Whether gradients are reduced behind each unit of this micro-batch."""
        self.syncs = last or not self.sharding.waits

    def before_forward(self, machine: Machine, call: Call) -> None:
        """Gathered (FSDPParamGroup.pre_forward); run again inside backward, it finds what was gathered before backward."""
        unit: Unit = call.known
        if call.again:
            if not unit.whole:
                self._unshard(machine, unit)
                self._wait(machine, unit)
            return
        if unit.places:
            raise _refused(f"shards {unit.path}, which runs more than once a step")
        unit.state = "forward"
        self._unshard(machine, unit)
        self._wait(machine, unit)

    def after_forward(self, machine: Machine, call: Call) -> None:
        """Let go of (FSDPParamGroup.post_forward); the root's stay, and with it goes the last gather's buffer."""
        unit: Unit = call.known
        if call.again:
            return
        if self.sharding.reshards and (not unit.root or self.sharding.reshards_root):
            _freed(unit.whole)
        unit.places.append(len(self.order))
        self.order.append(unit)
        unit.state = "idle"
        if unit.root:
            self.previous = None
            self._require_every_list()

    def _require_every_list(self) -> None:
        for start in self.lists:
            if not any(unit.path.startswith(start) for unit in self._met() if not unit.root):
                raise _refused(
                    f"shards the members of {start.rstrip('.')} by themselves, and this model's are not played by themselves"
                )

    def _unshard(self, machine: Machine, unit: Unit) -> None:
        """An all-gather begins: its buffer is made, and what is cast for it dies (foreach_all_gather)."""
        if unit.gather is not None or unit.whole or not unit.pieces:
            return
        copied: Count = 0
        total: Count = 0
        for piece in unit.pieces:
            size = self.sharding.rows(piece.shape) * itemsize(self._gathered(piece))
            total = total + size
            copied = copied + (size if self._gathered(piece) != piece.dtype else 0)
        ranks = self.sharding.ranks
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
                cast = machine.held_by_engine(size, "temporary", f"{piece.name} ({dtype})", dtype)
            unit.whole.append(machine.held_by_engine(size, "parameter_copy", f"{piece.name} (gathered)", dtype))
        del cast
        if forward:
            self.previous = unit.gather
        unit.gather = None
        del before

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
        """Gradients are reduced (FSDPParamGroup.post_backward)."""
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
        name = f"{unit.path or 'root'} reduced gradients"
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
        for unit in sorted(self._met(), key=lambda unit: not unit.root):
            if unit.state != "behind":
                machine.path = unit.path
                self._post_backward(machine, unit)
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
        ahead = next((unit.gather for unit in self._met() if unit.gather is not None), None)
        held = {"gather": self.previous, "ahead": ahead, "scattered": self.scattered}
        return {key: storage.life for key, storage in held.items() if storage is not None}

    def kept(self) -> Iterable[Storage]:
        """The sharded gradients."""
        return [unit.reduced for unit in self._met() if unit.reduced is not None]


def _freed(parameters: list[Storage]) -> None:
    """One after the other (FSDPParamGroup._to_sharded)."""
    while parameters:
        parameters.pop(0)


def _refused(rule: str) -> NotModelledError:
    return NotModelledError("parallelism.zero_backend", "fsdp2", rule, "use zero_backend torch")
