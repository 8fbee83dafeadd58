"""The memory of the machine that plays a step: what is born and dies on its tape, and what was there before."""

from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident
from typing import Any

from memcalc.arrays import Count, is_array
from memcalc.play.policy import Policy
from memcalc.play.stretch import Stretch
from memcalc.play.values import Life, Order, Shape, Storage, Value
from memcalc.tape.events import Phase, Role
from memcalc.tensors import ITEMSIZE


class Memory:
    """Gives operators their results and scratch, and notes each on the tape.

    Attributes:
        tape: what happened: (+1 or -1, life), or (a phase, None), or a list that is repeated.
        path: dotted path of the module at work.
        earlier: what there was before the first operator, as a tape.
        alive: how many values' memory there is.
        thread: the thread that plays.
        disturbed: whether memory was let go of by another thread, later than this one did.
        frame: the checkpoint at work; None outside of any.
        again: whether what is played was played before, and is recomputed.
        in_backward: whether autograd's thread is at work.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.tape: list[Any] = []
        self.alive, self.thread, self.disturbed = 0, get_ident(), False
        self.path = ""
        self.again = self.in_backward = False
        self.frame: Any = None
        self.earlier: list[Any] = []
        self._turns: Count | None = None
        self._outer: list[Any] | None = None
        self._sizes: dict[Any, tuple[Shape, Count]] = {}

    def new(
        self, shape: Shape, dtype: str, operator: str, order: Order | None = None, *, role: Role | None = None, name: str = ""
    ) -> Value:
        """A fresh value, born on the tape."""
        size = self.bytes_of(shape, dtype)
        life = Life(size, operator, self.path, role or ("activation" if self.again else None), name, shape, dtype)
        self.tape.append((1, life))
        self.alive += 1
        return Value(Storage(life, self), shape, dtype, order)

    def before(self, shape: Shape, dtype: str, role: Role, name: str, order: Order | None = None) -> Value:
        """A value that was there before the first operator: of every turn one, within what is repeated."""
        life = Life(self.bytes_of(shape, dtype), name, self.path, role, name, shape, dtype)
        born = (1, life)
        self.earlier.append(born if self._turns is None else (Stretch(self._turns, [born], ()), None))
        self.alive += 1
        return Value(Storage(life, self), shape, dtype, order)

    def held_by_engine(self, size: Count, role: Role, name: str, dtype: str = "", *, stream: int = 0) -> Storage:
        """Memory that an engine of parallelism takes, and lets go of by letting go of this."""
        life = Life(size, name, self.path, role, name, dtype=dtype, stream=stream)
        self.tape.append((1, life))
        self.alive += 1
        return Storage(life, self)

    def bytes_of(self, shape: Shape, dtype: str) -> Count:
        """Bytes of a shape; equal arrays are one object, so that a reader of many jobs meets each size once."""
        size: Count = ITEMSIZE[dtype]
        if not any(extent.__class__ is not int for extent in shape):
            for extent in shape:
                size = size * extent
            return size
        key = (size, *sorted([extent if extent.__class__ is int else id(extent) for extent in shape]))
        found = self._sizes.get(key)
        if found is None:
            for extent in shape:
                size = size * extent
            found = self._sizes[key] = shape, size
        return found[1]

    def like(self, value: Value, operator: str, dtype: str | None = None) -> Value:
        """A fresh value of the same shape and order in memory, that of a slice too (ATen ExpandUtils.h:infer_dense_strides)."""
        return self.new(value.shape, dtype or value.dtype, operator, value.order)

    def scratch(self, nbytes: Count, name: str) -> None:
        """Bytes that a kernel holds for a moment."""
        self.scratches([(name, nbytes)])

    def scratches(self, sizes: Sequence[tuple[str, Count]]) -> None:
        """Buffers that a kernel holds together for a moment."""
        lives = [Life(size, name, self.path, "temporary", name) for name, size in sizes if is_array(size) or size]
        self.tape += [(1, life) for life in lives]
        self.tape += [(-1, life) for life in reversed(lives)]

    def workspace(self, name: str, nbytes: Count) -> None:
        """Memory a library takes at its first use and keeps, before whatever is repeated."""
        tape = self.tape if self._outer is None else self._outer
        tape.append((1, Life(nbytes, name, self.path, "workspace", name)))

    def kept(self, shape: Shape, dtype: str, operator: str, *, beside: bool = False) -> Value:
        """A fresh value that a checkpoint's policy may keep, ``beside`` the one before: found again where it is recomputed."""
        if self.frame is not None:
            return self.frame.kept(self, shape, dtype, operator, beside=beside)  # type: ignore[no-any-return]
        return self.new(shape, dtype, operator)

    def found(self) -> bool:
        """Whether what was asked of ``kept`` last was there: its operator does not run again."""
        return self.frame is not None and bool(self.frame.found)

    def kept_like(self, value: Value, operator: str, shape: Shape | None = None) -> Value:
        """The same, of another value's order in memory."""
        out = self.kept(shape or value.shape, value.dtype, operator)
        out.order = value.order
        return out

    def blas(self, operator: str, *, lt: bool = False) -> None:
        """CuBLAS works: at its first use in a thread it takes a workspace, and keeps it."""
        thread = "autograd" if self.in_backward else "forward"
        for name, size in self.policy.workspaces.first_use(operator, thread=thread, lt=lt):
            self.workspace(f"{name} workspace of the {thread} thread", size)
        for name, size in self.policy.workspaces.transient(operator, lt=lt):
            self.scratch(size, f"{name} workspace")

    def mark(self, phase: Phase) -> None:
        """A phase begins."""
        self.tape.append((phase, None))
