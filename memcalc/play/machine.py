"""The machine that plays a step on shapes: its graph, its modules and parameters, autocast and what is repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.play.around import called, carried_pairs
from memcalc.play.checkpoint import checkpointed
from memcalc.play.decisions import Decisions
from memcalc.play.graph import Backward, Leaf, Node
from memcalc.play.memory import Memory
from memcalc.play.policy import Policy
from memcalc.play.stretch import Section, Stretch, life_of, lives_due
from memcalc.play.values import Life, Shape, Storage, Value
from memcalc.tensors import Kind

if TYPE_CHECKING:
    from memcalc.play.caching import KeyValueCache

AUTOCAST_WEIGHTS = "parameter_copy"


class Machine(Memory, Decisions):
    """Plays operators; each is a function of ``memcalc.play`` that takes the machine first.

    Where its values lie is told in ``memcalc.play.memory``, how it decides on numbers in ``memcalc.play.decisions``.

    Attributes:
        recording: whether a graph is made (``torch.is_grad_enabled``).
        training: whether dropout drops.
        autocast: the dtype autocast casts to; None where it is off.
        attention: ``auto`` or the kernel asked for.
        behaviour: the software and GPU that are assumed.
        leaves: every parameter met so far, by name.
        assumed: what was assumed on the way.
        heeded: whether a mask or positions that the batch comes with were looked at.
        in_stead: whether another loss stood in for the head's own.
        layers: those of this forward so far, counted where not all are recomputed.
        held: what the script around the model holds until backward is through.
        cache: of keys and values, where they are kept from forward to forward; None where they are not.
        encoded: what an encoder gave before the first operator; None where there is none, or it is still to run.
        flashed: whether attention is that of flash-attn's own kernels.
        idle: paths of modules that this forward has no use for, lists of layers and all.
        uneven: whether what turns of a stretch hand on is of another size than what the first was given.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.recording, self.training, self.uneven = True, True, False
        self.autocast: str | None = None
        self.leaves: dict[str, Leaf] = {}
        self.parameters: dict[str, Value] = {}
        self.tied: dict[str, str] = {}
        self.assumed: dict[str, None] = {}
        self.idle: set[str] = set()
        self.frames: list[Any] = []
        self.sections: list[Section] = []
        self.unrolled = self.in_stead = self.heeded = self.flashed = False
        self.held: Any = None
        self.cache: KeyValueCache | None = None
        self.encoded: Value | None = None
        self.casts: dict[str, Value] = {}
        self._sequence = self.layers = 0
        self._section: Section | None = None

    def undisturbed(self) -> bool:
        """Whether everything died when its last name did, once a step is played: nothing is left but gradients and caches.

        A thread that holds other threads' frames keeps alive what they name, as a sampling profiler does for a moment
        (``sys._current_frames``; distributed/worker.py:trigger_profile).
        """
        left = {id(leaf.gradient) for leaf in self.leaves.values() if leaf.gradient is not None}
        if self.policy.hooks is not None:
            left |= {id(storage) for storage in self.policy.hooks.kept()}
        kept = (0 if self.cache is None else self.cache.storages()) + (self.encoded is not None)
        return not self.disturbed and self.alive == len(left) + kept

    # -- graph ------------------------------------------------------------------------------------------------------------

    def record(
        self, out: Value, inputs: Sequence[Value | None], saved: Sequence[Any], backward: Backward, meta: Any = None
    ) -> Value:
        """Make ``out`` the result of a node over ``inputs``, if any of them has a gradient."""
        if not self.recording:
            return out
        edges = tuple([(v.node, v.index) if v is not None and v.node is not None else None for v in inputs])
        if any(edges):
            self.attach([out], inputs, edges, saved, backward, meta)
        return out

    def attach(
        self,
        outs: Sequence[Value],
        inputs: Sequence[Value | None],
        edges: Any,
        saved: Sequence[Any],
        backward: Backward,
        meta: Any = None,
    ) -> None:
        """A node of several results."""
        self._sequence += 1
        due = tuple([(v.shape, v.dtype) if v is not None else ((), "") for v in inputs])
        node = Node(backward, edges, due, self._packed(saved), self._sequence, self.path, meta, len(outs))
        node.packed = self.frame is not None
        for index, out in enumerate(outs):
            out.node, out.index = node, index

    def wants(self, *values: Value | None) -> bool:
        """Whether a graph is made over these."""
        return self.recording and any(v is not None and v.node is not None for v in values)

    def foresee(self, *values: Any) -> None:
        """Operands about to be saved by an operator that has not run yet (autograd packs them first)."""
        if self.frame is not None and self.again:
            self.frame.foresee([value for value in values if value is not None])

    def _packed(self, saved: Sequence[Any]) -> list[Any]:
        if self.frame is not None:
            return [self.frame.pack(v) if isinstance(v, Value) else v for v in saved]
        kept = []
        for value in saved:
            if isinstance(value, Value):
                value.storage.life.saved = True
                kept.append(value.detached())
            else:
                kept.append(value)
        return kept

    def packed(self, *saved: Value) -> list[Any]:
        """What an operator that works in turns saves in one of them, before it is a node's (``attach`` with ``packed``)."""
        return self._packed(saved) if self.recording else []

    def unpacked(self, saved: list[Any]) -> list[Any]:
        """What a node saved, recomputed where it was dropped."""
        return [v.unpack(self) if hasattr(v, "unpack") else v for v in saved]

    def as_due(self, value: Value, shape: Shape, dtype: str) -> Value:
        """A gradient in the shape and dtype of what it belongs to (engine.cpp:validate_outputs)."""
        from memcalc.play.pointwise import to
        from memcalc.play.reduce import sum_to

        value = sum_to(self, value, shape)
        return value if value.dtype == dtype else to(self, value, dtype)

    # -- modules ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Inside the part of that name."""
        before = self.path
        self.path = f"{before}.{name}" if before and name else before or name
        try:
            yield
        finally:
            self.path = before

    def call(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A function, inside the part of that name."""
        before = self.path
        if name:
            self.path = f"{before}.{name}" if before else name
        try:
            if self.policy.hooks is None or function is checkpointed:  # which calls what is hooked itself
                return function(*args, **kwargs)
            return called(self, self.policy.hooks, function, args, kwargs)
        finally:
            self.path = before

    def parameter(self, name: str, shape: Shape, kind: Kind, *, trainable: bool = True) -> Value:
        """The parameter of that name in the module at work; it was there before the step."""
        full = f"{self.path}.{name}" if self.path and name else name or self.path
        full = self.tied.get(full, full)
        found = self.parameters.get(full)
        if found is not None:
            return found
        dtype = self.policy.dtype_of(kind)
        value = Value(Storage(Life(0, "parameter", self.path, "parameter", full), None), shape, dtype)
        if trainable and self.policy.trains(full):
            leaf = self.leaves[full] = Leaf(full, shape, dtype)
            value.node = leaf
        self.parameters[full] = value
        return value

    def constant(self, shape: Shape, dtype: str) -> Value:
        """A buffer of the module's, there before the step."""
        return Value(Storage(Life(0, "buffer", self.path, "buffer"), None), shape, dtype)

    def stored(self, leaf: Leaf) -> None:
        """A parameter has its gradient."""
        if self.policy.on_gradient is not None:
            self.policy.on_gradient(self, leaf)
        if self.policy.updates is not None:
            self.policy.updates.stored(self, leaf)
        if self.policy.hooks is not None:
            self.policy.hooks.on_gradient(self, leaf)

    # -- autocast ---------------------------------------------------------------------------------------------------------

    def low(self, value: Value) -> Value:
        """A value as an operator of autocast's lower-precision list takes it (ATen autocast_mode.cpp:cached_cast)."""
        dtype = self.autocast
        if dtype is None or value.dtype == dtype or "float" not in value.dtype:
            return value
        return self._cast(value, dtype)

    def wide(self, value: Value) -> Value:
        """A value as an operator of autocast's FP32 list takes it."""
        if self.autocast is None or value.dtype == "float32" or "float" not in value.dtype:
            return value
        return self._cast(value, "float32")

    def _cast(self, value: Value, dtype: str) -> Value:
        from memcalc.play.pointwise import to

        leaf = value.node
        if not (isinstance(leaf, Leaf) and value.dtype == "float32" and dtype == self.autocast and not value.view):
            return to(self, value, dtype)
        found = self.casts.get(leaf.name)
        if found is None:
            found = self.casts[leaf.name] = to(self, value, dtype)
            found.storage.life.role, found.storage.life.name = AUTOCAST_WEIGHTS, f"{leaf.name} ({dtype})"  # type: ignore[assignment]
        return found

    def leave_autocast(self) -> None:
        """The outermost context ends, and with it the cache of weights."""
        self.autocast = None
        self.casts.clear()

    # -- what is repeated -------------------------------------------------------------------------------------------------

    def repeated(self, times: Count, body: Callable[[], None], box: Sequence[Value | None]) -> None:
        """A stretch of forward that stands for ``times`` alike: it takes what is in the box and leaves there what it gives.

        Its nodes are run backward once, and stand for as many.
        """
        self._turns = times
        section = Section(self._sequence + 1, times)
        self.turns(times, body, box)
        self._turns = None
        section.last = self._sequence
        self.sections.append(section)

    def turns(self, times: Count, body: Callable[[], None], box: Sequence[Value | None]) -> None:
        """A stretch of the tape that stands for ``times`` alike, inside of one operator: no nodes are made in it.

        It takes what is in the box and leaves there what it gives. It may stand inside of another stretch.
        """
        outer, before, self.tape = self.tape, self._outer, []
        self._outer = outer if before is None else before
        given, held = [None if value is None else value.storage.life for value in box], self._carried()
        body()
        pairs = zip(given, box, strict=True)
        carried = tuple((first, later.storage.life) for first, later in pairs if first is not None and later is not None)
        carried += carried_pairs(held, self._carried())
        outer.append((Stretch(times, self.tape, carried), None))
        self.tape, self._outer = outer, before

    def reached(self, node: Node | None, grads: Sequence[Value | None], due: Mapping[Node, Sequence[Value | None]]) -> None:
        """Backward comes to a node: where it enters or leaves a section that stands for many, the tape is told.

        ``due`` are the gradients that wait for other nodes: one of them may be added to in every turn of a section.
        """
        section = self._section
        if section is not None and (node is None or node.sequence < section.first):
            self._close(section, grads, due)
        if self._section is None and node is not None and self.sections and node.sequence <= self.sections[-1].last:
            self._section = section = self.sections.pop()
            section.outer, self.tape = self.tape, []
            self._outer = section.outer
            section.given, section.waiting = life_of(grads), self._waiting()
            section.held, section.due = self._carried(), lives_due(due)

    def _waiting(self) -> Life | None:
        """A gradient that waits for its update."""
        return None if self.policy.updates is None else self.policy.updates.last

    def _carried(self) -> dict[str, Life]:
        """What an engine of parallelism holds from one module to the next."""
        return {} if self.policy.hooks is None else dict(self.policy.hooks.carried())

    def _close(self, section: Section, grads: Sequence[Value | None], due: Mapping[Node, Sequence[Value | None]]) -> None:
        gives = life_of(grads)
        carried: tuple[tuple[Life, Life], ...] = (
            ((section.given, gives),) if section.given is not None and gives is not None else ()
        )
        first, later = section.waiting, self._waiting()
        if first is not None and later is not None:
            carried += ((first, later),)
            self.uneven |= not self.same(first.size, later.size)
        carried += carried_pairs(section.held, self._carried())
        carried += carried_pairs(section.due, lives_due(due))
        section.outer.append((Stretch(section.times, self.tape, carried), None))
        self.tape, self._section, self._outer = section.outer, None, None
