"""Which parameters FSDP2 gathers together: each member of a model's lists of layers, groups of modules by name, and the rest.

source: pytorch 2.13 torch/distributed/fsdp/_fully_shard/_fully_shard.py:fully_shard, which takes a module or a list of them
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from memcalc.arrays import Count, maximum
from memcalc.errors import NotModelledError
from memcalc.models import Model
from memcalc.parallelism.fsdp2_members import each_member, managed, of_kind, outermost
from memcalc.play.values import Storage
from memcalc.records import dataclass, replace
from memcalc.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.parallelism.base import Setting
    from memcalc.play.machine import Machine

State = Literal["idle", "forward", "before", "behind"]
"""TrainingState: IDLE, FORWARD, PRE_BACKWARD, POST_BACKWARD."""


class Units(NamedTuple):
    """How a model is wrapped; what no group has is the root's.

    Attributes:
        groups: module paths that share a group; ``layers.*`` is a group for each member of that list.
        stays: of them those that are not let go of after forward; ``layers.-1`` is the last member of a list.
    """

    groups: tuple[tuple[str, ...], ...]
    stays: tuple[tuple[str, ...], ...] = ()


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


class Unit:
    """One FSDPParamGroup.

    Attributes:
        paths: of its modules, in the order they run.
        pieces: its parameters.
        root: whether it is the root's.
        stays: whether it is not let go of after forward.
        state: where it is.
        gather: the buffer of an all-gather under way.
        whole: the gathered parameters; empty where they are sharded.
        fewer: this rank's pieces of them among fewer ranks, from forward to backward.
        sums: whole gradients in ``reduce_dtype`` that wait for the last micro-batch, by leaf.
        reduced: the buffer the sharded gradients are views of.
        all_reduced: what an all-reduce works on, held until backward is through.
        places: where it stands in the order forward went.
    """

    def __init__(self, paths: tuple[str, ...], pieces: tuple[Piece, ...], *, root: bool = False, stays: bool = False) -> None:
        self.paths, self.pieces, self.root, self.stays = paths, pieces, root, stays
        self.state: State = "idle"
        self.gather: Storage | None = None
        self.whole: list[Storage] = []
        self.fewer: list[Storage] = []
        self.sums: dict[str, Storage] = {}
        self.reduced: Storage | None = None
        self.all_reduced: Storage | None = None
        self.places: list[int] = []

    @property
    def name(self) -> str:
        """What it is called."""
        return " and ".join(self.paths) if any(self.paths) else "root"


def usual_units(model: Model) -> Units:
    """Every member of each outermost list of layers by itself; of a list whose members hold lists, each member by its number.

    Raises:
        NotModelledError: there is no such list.
    """
    starts = dict.fromkeys(outermost(tensor.name) for tensor in model.parameters if "*" in tensor.name)
    if not starts:
        raise refused("finds no list of layers to shard one by one")
    return Units(tuple((start,) for start in starts))


class Wrapped:
    """The units of a model, made as its modules are met.

    Attributes:
        model: whose.
        lists: what stands before the place of a member of each list that is sharded by members, as ``model.layers.``.
        nested: whether a module that is sharded by its name holds a list of layers.
        met: units by the paths of their modules; None for a module that is in none of its own.
    """

    def __init__(self, setting: Setting, units: Units | None) -> None:
        self.model, self.dtype = setting.model, setting.dtype
        self.units = units or usual_units(setting.model)
        self.lists = [paths[0][:-1] for paths in self.units.groups if paths[0].endswith("*")]
        self.met: dict[str, Unit | None] = {}
        named = {path for paths in self.units.groups for path in paths if not path.endswith("*")}
        self.nested = any("*" in each.name and _inside(each.name, named) for each in self.model.parameters)

    def unit(self, machine: Machine, path: str, layer: Any) -> Unit | None:
        """The unit of the module at a path."""
        if path not in self.met:
            self.met[path] = self._made(machine, path, layer)
        return self.met[path]

    def all(self) -> list[Unit]:
        """Every unit met, once; the root first, as ``named_modules`` has it."""
        return list(dict.fromkeys(unit for unit in self.met.values() if unit is not None))

    def missed(self, idle: Collection[str]) -> str | None:
        """A list of which no member was met, or a module sharded by its name, outside of those that do not run."""
        met = [path for path, unit in self.met.items() if unit is not None and not unit.root]
        wanted = [path.removesuffix("*") for paths in self.units.groups for path in paths if path.endswith("*") or self.nested]
        return next((one for one in wanted if not _inside(one, idle) and not any(path.startswith(one) for path in met)), None)

    def _made(self, machine: Machine, path: str, layer: Any) -> Unit | None:
        if path == self.model.prefix:
            return Unit(
                (path,), self._pieces(machine, "", [each for each in self.model.parameters if self._left(each.name)]), root=True
            )
        for paths in self.units.groups:
            if path in paths and not path.endswith("*"):
                return self._grouped(machine, paths)
        for start in self.lists:
            if path.startswith(start) and "." not in path[len(start) :]:
                stays = (f"{start}-1",) in self.units.stays and self._last(machine, start, path[len(start) :])
                return Unit((path,), self._pieces(machine, f"{path}.", self._members(start, layer)), stays=stays)
        return None

    def _grouped(self, machine: Machine, paths: tuple[str, ...]) -> Unit:
        known = next((unit for path in paths if (unit := self.met.get(path)) is not None), None)
        if known is not None:
            return known
        inside = [each for each in self.model.parameters if _inside(each.name, paths)]
        return Unit(paths, self._pieces(machine, "", inside), stays=paths in self.units.stays)

    def _left(self, name: str) -> bool:
        """Whether a parameter is in no group."""
        named = [path for paths in self.units.groups for path in paths if not path.endswith("*")]
        return not any(name.startswith(start) for start in (*self.lists, *(f"{path}." for path in named)))

    def _last(self, machine: Machine, start: str, place: str) -> bool:
        """Whether a member is the last of its list, by its place: its number, or ``last`` and its number in a turn."""
        count = self._count(start)
        turn = sum(path.startswith(start) and path[len(start) :].isdigit() for path in self.met)
        number = place.removeprefix("last") or "0"
        if place.startswith("last") and number.isdigit():
            return machine.decide(count % maximum(turn, 1) == 0) and int(number) == turn - 1
        number = place.removeprefix("end")
        if number.isdigit():
            return machine.decide(count == int(number) + 1)
        if place.startswith("*"):
            return False
        raise refused(f"keeps the last of {start.rstrip('.')}, which is not told from the others")

    def _count(self, start: str) -> Count:
        return next(each.spans[0].count for each in self.model.parameters if each.name.startswith(f"{start}*"))

    def _members(self, start: str, layer: Any) -> Sequence[Tensor]:
        """The parameters of a member of a list, named from the member down."""
        if self.model.adapter is None and layer is not None:
            return [tensor for tensor in layer.tensors() if tensor.role == "parameter"]
        listed = [tensor for tensor in self.model.parameters if tensor.name.startswith(f"{start}*.")]
        found = of_kind([replace(tensor, name=tensor.name[len(start) + 2 :]) for tensor in listed], layer)
        if found is None:
            raise refused(f"shards {start}*, whose members are of kinds that are not told apart, with adapters on them")
        spans = [(tensor, maximum(tensor.spans[0].count, 1)) for tensor in found]
        return [replace(tensor, count=tensor.count // times, spans=tensor.spans[1:]) for tensor, times in spans]

    def _pieces(self, machine: Machine, start: str, tensors: Iterable[Tensor]) -> tuple[Piece, ...]:
        found = {tensor.name: tensor for tensor in each_member(machine, tensors)}
        names = [(name, name.split(".")) for name in found]
        return tuple(Piece(f"{start}{name}", found[name].shape, self.dtype(found[name])) for name in managed(names))


def _inside(name: str, paths: Collection[str]) -> bool:
    """Whether a name is inside of one of some modules."""
    return any(f"{name}.".startswith(f"{path}.") for path in paths)


def refused(rule: str) -> NotModelledError:
    """What FSDP2 does that is not played."""
    return NotModelledError("parallelism.zero_backend", "fsdp2", rule, "use zero_backend torch")
