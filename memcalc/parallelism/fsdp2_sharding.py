"""How FSDP2 shards a job's model: over how many ranks, in which dtypes, and what it lets go of.

source: pytorch 2.13 torch/distributed/fsdp/_fully_shard: _fsdp_api.py (MixedPrecisionPolicy), _fully_shard.py (fully_shard)
"""

from __future__ import annotations

from memcalc.arrays import Count, ceil_div, is_array
from memcalc.errors import InputError
from memcalc.parallelism.base import ScalarOnlyError, Setting, engine_args
from memcalc.records import dataclass

ARGS = {"reduce_in_float32": False, "reshard_root": False, "no_sync": False, "reshard_after_forward": 0}
"""MixedPrecisionPolicy(reduce_dtype=torch.float32); the root told to reshard after forward as its layers are, which it is not
by default; set_requires_gradient_sync(False) before all micro-batches but the last; reshard_after_forward as a number."""


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
        after: over how many of the ranks parameters are spread from forward to backward; 0 for all that shard.
        waits: whether gradients stay whole until the last micro-batch (``set_requires_gradient_sync(False)`` before it).
    """

    ranks: Count
    replicas: Count = 1
    gathered: str | None = None
    reduced: str | None = None
    reshards: bool = True
    reshards_root: bool = False
    after: int = 0
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
    after = ranks_after_forward(setting)
    args = engine_args(setting.args, ARGS, "FSDP2")
    return Sharding(
        setting.shards,
        setting.replicas,
        gathered=setting.scheme.copy,
        reduced="float32" if args["reduce_in_float32"] else None,
        reshards=setting.stage == 3,
        reshards_root=bool(args["reshard_root"]),
        after=after,
        waits=bool(args["no_sync"]),
    )


def ranks_after_forward(setting: Setting) -> int:
    """``reshard_after_forward`` as a number: how many ranks parameters are spread over until backward; 0 where none is given.

    source: pytorch 2.13 torch/distributed/fsdp/_fully_shard/_fsdp_init.py:_get_post_forward_mesh_info

    Raises:
        InputError: a truth value, which the stage is; a number that does not divide the ranks, or one of no use.
        ScalarOnlyError: it does not divide those of every job.
    """
    key = "reshard_after_forward"
    path, given = f"parallelism.zero_args.{key}", setting.args.get(key)
    if isinstance(given, bool):
        raise InputError(path, given, "is a number of ranks here", f"leave it out, with zero_stage {3 if given else 2}")
    after = int(engine_args(setting.args, ARGS, "FSDP2")[key])
    if not after:
        return 0
    if setting.stage != 3:
        raise InputError(path, after, "has no use under zero_stage 2, which keeps what was gathered", "use zero_stage 3")
    if after == 1:
        raise InputError(path, after, "is False to fully_shard, which keeps what was gathered", "use zero_stage 2")
    uneven = setting.shards % after != 0
    if is_array(uneven):
        if uneven.any():  # type: ignore[union-attr]
            raise ScalarOnlyError
    elif uneven:
        raise InputError(path, after, f"does not divide the {setting.shards} ranks that shard", "use one of their factors")
    return after
