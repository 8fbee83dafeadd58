"""Values without data: what PyTorch would allocate, and for how long it is held."""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING

from memcalc.arrays import Count, is_array
from memcalc.tape.events import Role
from memcalc.tensors import ITEMSIZE

if TYPE_CHECKING:
    from memcalc.play.graph import Node
    from memcalc.play.memory import Memory

Shape = tuple[Count, ...]
Order = tuple[int, ...]
"""Dimensions from the outermost in memory to the innermost."""


class Life:
    """One allocation, from its birth on the tape to its death.

    Attributes:
        size: requested bytes.
        role: what it is for, where that is known at birth; else told by whether it was saved.
        saved: whether autograd kept it for backward.
        operator: what made it.
        module: dotted path of the module that made it.
        name: what it is called, where it is more than an operator's result.
        shape: what it was made for.
        dtype: likewise.
        stream: the stream it is allocated on; 0 is the one that computes.
    """

    __slots__ = ("dtype", "module", "name", "operator", "role", "saved", "shape", "size", "stream")

    def __init__(
        self,
        size: Count,
        operator: str,
        module: str,
        role: Role | None = None,
        name: str = "",
        shape: Shape | None = None,
        dtype: str = "",
        stream: int = 0,
    ) -> None:
        self.size, self.operator, self.module = size, operator, module
        self.role, self.name, self.saved = role, name, False
        self.shape, self.dtype, self.stream = shape, dtype, stream


class Storage:
    """Memory that values share; when the last of them goes, it is freed on the tape."""

    __slots__ = ("life", "owner")

    def __init__(self, life: Life, owner: Memory | None) -> None:
        self.life, self.owner = life, owner

    def __del__(self) -> None:
        owner = self.owner
        if owner is not None:
            owner.tape.append((-1, self.life))
            owner.alive -= 1
            if get_ident() != owner.thread:  # a thread that held frames, as a profiler does, has kept it until now
                owner.disturbed = True


class Value:
    """A tensor without data.

    Attributes:
        storage: its memory.
        shape: its dimensions.
        dtype: torch's name of it.
        order: dimensions from the outermost in memory to the innermost; None where that is their own order.
        view: whether it is a view, which keeps its base's memory from being written over.
        gaps: dimensions that do not lie closely inside the next outer one, as those of a slice or of an expanded value.
        node: what backward goes to; None for a value without a gradient.
        index: which of its node's results it is.
    """

    __slots__ = ("dtype", "gaps", "index", "node", "order", "shape", "storage", "view")

    def __init__(
        self,
        storage: Storage,
        shape: Shape,
        dtype: str,
        order: Order | None = None,
        view: bool = False,
        gaps: tuple[int, ...] = (),
    ) -> None:
        self.storage, self.shape, self.dtype = storage, shape, dtype
        self.order, self.view, self.gaps = order, view, gaps
        self.node: Node | None = None
        self.index = 0

    @property
    def dense(self) -> bool:
        """Whether it covers its memory without gaps or overlaps."""
        return not self.gaps

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return ITEMSIZE[self.dtype]

    @property
    def numel(self) -> Count:
        """Elements."""
        total: Count = 1
        for size in self.shape:
            total = total * size
        return total

    @property
    def nbytes(self) -> Count:
        """Bytes of its elements."""
        return self.numel * ITEMSIZE[self.dtype]

    @property
    def contiguous(self) -> bool:
        """Whether it lies in memory as its dimensions stand, without gaps."""
        return self.order is None and not self.gaps

    def detached(self) -> Value:
        """The same memory and shape, without a gradient."""
        return Value(self.storage, self.shape, self.dtype, self.order, self.view, self.gaps)

    def __repr__(self) -> str:
        return f"Value({self.shape}, {self.dtype}, {self.storage.life.operator})"


def alike(first: Shape, second: Shape) -> bool:
    """Whether two shapes are one; extents that are arrays are compared job by job.

    >>> alike((2, 3), (2, 3)), alike((2, 3), (2, 1))
    (True, False)
    """
    if first is second:
        return True
    return len(first) == len(second) and all(a is b or _equal(a, b) for a, b in zip(first, second, strict=True))


def _equal(first: Count, second: Count) -> bool:
    same = first == second
    return bool(same.all()) if is_array(same) else bool(same)  # type: ignore[union-attr]


def is_floating(dtype: str) -> bool:
    """Whether a dtype can carry a gradient.

    >>> is_floating("bfloat16"), is_floating("int64")
    (True, False)
    """
    return "float" in dtype
