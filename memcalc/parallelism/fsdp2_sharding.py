"""How FSDP2 shards a job's model: over how many ranks, in which dtypes, and what it lets go of.

source: pytorch 2.13 torch/distributed/fsdp/_fully_shard: _fsdp_api.py (MixedPrecisionPolicy), _fully_shard.py (fully_shard)
"""

from __future__ import annotations

from memcalc.arrays import Count, ceil_div
from memcalc.parallelism.base import Setting, engine_args
from memcalc.parallelism.fsdp2 import ARGS
from memcalc.records import dataclass


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
        InputError: an option that FSDP2 does not have here.
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
