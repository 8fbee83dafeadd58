"""Every storage of a step from birth to death, seen from the dispatcher.

The tracker stands above the fake tensors: it sees each operator as a CUDA kernel would be launched (what a fake tensor
decomposes it into stays unseen), takes down the storages its results bring and, in between, what its kernel needs for a
moment. A death is the storage's own: the moment its last reference goes, whoever held it: a view, autograd's saved tensors,
a Python name.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memcalc.engines.trace.accumulation import ADD, ADD_IN_PLACE, alone, is_in_place
from memcalc.engines.trace.cuda.formulas import as_real
from memcalc.engines.trace.cuda.scratch import Scratch
from memcalc.engines.trace.fake import PRIM_DEVICE, device_in_cpp
from memcalc.engines.trace.kernels import Kernels
from memcalc.engines.trace.sites import Sites
from memcalc.tape.events import Phase, Role

INDEX = torch.ops.aten.index.Tensor


class Life:
    """One storage, or one kernel's scratch.

    Attributes:
        nbytes: requested.
        place: ``device`` or ``host``.
        operator: what made it, as ``aten.addmm.default``.
        module: dotted path of the module it was made in, or for.
        dtype: of the first tensor on it.
        shape: of the same.
        born: (phase, iteration) it was born in.
        died: the same; None while it lives.
        again: whether it was made while a forward ran inside backward: recomputation.
        role: what it is for, once that is known.
        name: what a reader calls it, once that is known.
    """

    __slots__ = ("again", "born", "died", "dtype", "module", "name", "nbytes", "operator", "place", "role", "shape")

    def __init__(
        self, nbytes: int, place: str, operator: str, module: str, dtype: str, shape: tuple[int, ...], born: tuple[Phase, int]
    ) -> None:
        self.nbytes, self.place, self.operator, self.module = nbytes, place, operator, module
        self.dtype, self.shape, self.born = dtype, shape, born
        self.died: tuple[Phase, int] | None = None
        self.again = False
        self.role: Role | None = None
        self.name = ""


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The record of a step.

    Attributes:
        events: (kind, what) in order: ``+`` and ``-`` with a :class:`Life`, ``=`` with a (phase, iteration).
        operators: how often each operator was called.
        live: the living storages, by their key.
        under_way: the operator that is called, or that has failed.
    """

    def __init__(self, sites: Sites, kernels: Kernels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        alone()  # asked once, before there is anything to follow
        self.sites, self.kernels = sites, kernels
        self.events: list[tuple[str, Any]] = []
        self.operators: dict[Any, int] = {}
        self.live: dict[int, Life] = {}
        self.under_way: Any = None
        self.now: tuple[Phase, int] = ("init", 0)
        self.progress: Callable[[str, int], None] = lambda what, count: None
        self._count = 0
        self._watched: dict[int, weakref.ref[Any]] = {}

    def close(self) -> None:
        """Nothing that dies from now on is taken down."""
        self._watched.clear()

    def mark(self, phase: Phase, iteration: int) -> None:
        """A phase begins."""
        self.now = (phase, iteration)
        self.events.append(("=", self.now))

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One operator."""
        if func is PRIM_DEVICE:
            return device_in_cpp(args[0])
        func = ADD_IN_PLACE if func is ADD and is_in_place(args) else as_real(func)
        told = kwargs or {}
        kernels = self.kernels
        self.under_way = func
        if func is INDEX:
            self._listed(args[1])
        result = kernels.run(func, args, told)
        self.under_way = None
        self.operators[func] = self.operators.get(func, 0) + 1
        self._count += 1
        if self._count % 500 == 0:
            self.progress(f"{self.now[0].replace('_', ' ')} of iteration {self.now[1]}", self._count)
        elsewhere = kernels.on_host(func)
        for index, tensor in enumerate(tensors_of(result)):
            life = self.see(tensor, func, args)
            if life is not None and index in elsewhere:
                life.place = "host"
        for name, nbytes in kernels.kept(func, args, told):
            self.lasting(name, nbytes, "workspace", func)
        self._moments(kernels.scratch(func, args, told, result), func)
        return result

    def _listed(self, indices: Iterable[Any]) -> None:
        """A list that indexes becomes a tensor beside the one it indexes (python_variable_indexing.cpp:sequenceToVariable)."""
        for index in indices:
            if type(index) is torch.Tensor and index.device.type == "meta":
                self.see(index, INDEX)

    def _moments(self, scratch: Iterable[Scratch], func: Any) -> None:
        """The scratch of one kernel, all of it at once."""
        lives = []
        for one in scratch:
            life = self._life(one.nbytes, "device", func, "uint8", (one.nbytes,))
            life.role, life.name, life.died = "temporary", one.name, self.now
            lives.append(life)
        self.events += [("+", life) for life in lives]
        self.events += [("-", life) for life in reversed(lives)]

    def see(self, tensor: torch.Tensor, func: Any = None, args: Sequence[Any] = ()) -> Life | None:
        """A tensor whose storage may be new; the storage's life, unless it has no memory of its own."""
        if tensor.layout is not torch.strided:
            for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else ():
                self.see(part, func)
            return None
        storage = tensor.untyped_storage()
        key = storage._cdata
        life = self.live.get(key)
        if life is None:
            nbytes = storage.nbytes()
            if not nbytes:
                return None
            life = self._born(tensor, nbytes, func, args)
            self.live[key] = life
            self._watched[key] = weakref.ref(storage, lambda _, key=key: self._gone(key))  # type: ignore[misc]
        elif storage.nbytes() != life.nbytes:
            life = self._resized(key, life, storage.nbytes())
        return life

    def life_of(self, tensor: torch.Tensor) -> Life | None:
        """The life of a tensor's storage, if it has one."""
        return self.live.get(tensor.untyped_storage()._cdata)

    def lasting(self, name: str, nbytes: int, role: Role, func: Any = None) -> Life:
        """Memory that stays to the end."""
        life = self._life(nbytes, "device", func, "uint8", (nbytes,))
        life.role, life.name, life.module = role, name, ""
        self.events.append(("+", life))
        return life

    def end(self, life: Life) -> None:
        """The end of one that was made to last."""
        life.died = self.now
        self.events.append(("-", life))

    def _born(self, tensor: torch.Tensor, nbytes: int, func: Any, args: Sequence[Any]) -> Life:
        place = "host" if tensor.device.type == "cpu" else "device"
        life = self._life(nbytes, place, func, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        if func is _TO_COPY and self.now[0] in ("forward", "loss", "backward") and isinstance(args[0], torch.Tensor):
            source = self.life_of(args[0])
            if source is not None and source.role == "parameter" and source.place == place:
                life.role, life.name = "parameter_copy", f"{source.name} ({life.dtype} copy)"
        self.events.append(("+", life))
        return life

    def _life(self, nbytes: int, place: str, func: Any, dtype: str, shape: tuple[int, ...]) -> Life:
        operator = "" if func is None else str(func)
        life = Life(nbytes, place, operator, self.sites.path(), dtype, shape, self.now)
        life.again = self.now[0] == "backward" and self.sites.inside()
        return life

    def _resized(self, key: int, life: Life, nbytes: int) -> Life:
        """A storage given another size is another block of memory."""
        self.end(life)
        after = Life(nbytes, life.place, life.operator, life.module, life.dtype, life.shape, self.now)
        after.role, after.name = life.role, life.name
        self.live[key] = after
        self.events.append(("+", after))
        return after

    def _gone(self, key: int) -> None:
        self._watched.pop(key, None)
        life = self.live.pop(key, None)
        if life is not None:
            self.end(life)


_TO_COPY = torch.ops.aten._to_copy.default


def tensors_of(result: Any) -> Iterator[torch.Tensor]:
    """The tensors of an operator's result, wrappers unwrapped."""
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for each in result:
            yield from tensors_of(each)
