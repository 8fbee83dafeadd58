"""How FSDP2 gathers a unit's parameters, lets go of them, and leaves a share of them on fewer ranks in between.

source: pytorch 2.13 torch/distributed/fsdp/_fully_shard: _fsdp_param_group.py (FSDPParamGroup), _fsdp_param.py (FSDPParam),
_fsdp_collectives.py (foreach_all_gather, foreach_all_gather_copy_out)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.arrays import Count
from memcalc.parallelism.base import Setting
from memcalc.parallelism.fsdp2_sharding import sharding_of
from memcalc.parallelism.fsdp2_units import Piece, Unit, Units, Wrapped, refused
from memcalc.play.around import Hooks
from memcalc.play.values import Storage
from memcalc.tensors import itemsize

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

GATHER, REDUCE, ALL_REDUCE = 1, 2, 3
"""Streams beside the one that computes: FSDPCommContext.all_gather_copy_in_stream, reduce_scatter_stream, all_reduce_stream."""


class Gathers(Hooks):
    """A model's units, gathered and let go of.

    Attributes:
        sharding: how it is sharded.
        wrapped: its units.
        previous: the last all-gather's buffer, let go of once the next is copied out of (comm_ctx.all_gather_state).
    """

    def __init__(self, setting: Setting, units: Units | None = None) -> None:
        if setting.scheme.main_gradient is not None:
            raise refused(f"has no second set of gradients, as {setting.scheme.name} has")
        self.sharding, self.wrapped = sharding_of(setting), Wrapped(setting, units)
        self.previous: Storage | None = None

    def unshard(self, machine: Machine, unit: Unit) -> None:
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

    def wait(self, machine: Machine, unit: Unit) -> None:
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
        freed(unit.fewer)
        if forward:
            self.previous = unit.gather
        unit.gather = None
        del before

    def _label(self, unit: Unit, name: str) -> str:
        """A parameter's name from its unit down, so that layers alike are one line of an explanation."""
        return name.removeprefix(f"{unit.paths[0]}.") if len(unit.paths) == 1 else name

    def reshard(self, machine: Machine, unit: Unit) -> None:
        """Each parameter goes, to fewer ranks a copy of this one's piece of it first (FSDPParam.to_sharded_post_forward)."""
        if unit.whole and self.sharding.after and machine.decide(self.sharding.ranks != self.sharding.after):
            for piece in unit.pieces:
                dtype = self._gathered(piece)
                size = self._spread(piece.shape, self.sharding.after) * itemsize(dtype)
                name = f"{self._label(unit, piece.name)} (resharded)"
                unit.fewer.append(machine.held_by_engine(size, "parameter_copy", name, dtype))
                unit.whole.pop(0)
        freed(unit.whole)

    def _spread(self, shape: tuple[Count, ...], ranks: Count) -> Count:
        """Elements of a parameter, padded for all ranks, on each of some of them."""
        return self.sharding.whole(shape) // ranks


def freed(parameters: list[Storage]) -> None:
    """One after the other (FSDPParamGroup._to_sharded)."""
    while parameters:
        parameters.pop(0)
