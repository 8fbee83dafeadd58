"""What CUDA's kernels do that fake tensors do not show: results of another dtype, scratch, and the workspaces cuBLAS keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from memcalc.engines.trace.cuda.checked import CHECKED
from memcalc.engines.trace.cuda.in_place import IN_PLACE, in_place
from memcalc.engines.trace.cuda.results import FIXES, INSTEAD, corrected, host_results, instead
from memcalc.engines.trace.cuda.schema import bound
from memcalc.engines.trace.cuda.scratch import Entry, Scratch, load
from memcalc.kernels.behaviour import Behaviour
from memcalc.kernels.workspaces import CUBLAS, Workspaces, goes_to_lt


class Kernels:
    """The kernels of one GPU and one torch, asked once for each operator of a trace.

    Attributes:
        unread: operators whose CUDA source nobody has read, with how often they were called.
        bounded: names of scratch whose true size is a library's own business.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.unread: dict[str, int] = {}
        self.bounded: dict[str, None] = {}
        self._entries = load()
        self._workspaces = Workspaces(behaviour)
        self._known: dict[Any, tuple[str, Entry | None, bool, tuple[int, ...], bool]] = {}

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The operator's results as CUDA makes them."""
        special = self._asked(func)[2]
        if not special:
            return func(*args, **kwargs)
        if func in IN_PLACE:
            return in_place(func, args)(*args, **kwargs)
        made = instead(func, args, kwargs, self.behaviour)
        return corrected(func, args, kwargs, func(*args, **kwargs) if made is NotImplemented else made, self.behaviour)

    def on_host(self, func: Any) -> tuple[int, ...]:
        """Positions of results that are in the host's memory."""
        return self._asked(func)[3]

    def scratch(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Iterable[Scratch]:
        """What is born and dies within the operator."""
        name, entry, _, _, read = self._asked(func)
        if entry is None:
            if not read:
                self.unread[name] = self.unread.get(name, 0) + 1
            return ()
        told = bound(func, args, kwargs)
        found = [one for one in entry.formula(told, result, self.behaviour) if one.nbytes > 0]
        for one in found:
            if one.bound:
                self.bounded.setdefault(f"{name}: {one.name}")
        if name in CUBLAS:
            lt = goes_to_lt(name, told)
            found += [Scratch(which, size) for which, size in self._workspaces.transient(name, lt=lt)]
        return found

    def kept(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
        """Workspaces that are born at this call and stay; the thread of autograd has a handle of its own."""
        name = self._asked(func)[0]
        if name not in CUBLAS:
            return ()
        thread = "forward" if torch._C._current_autograd_node() is None else "autograd"
        told = bound(func, args, kwargs)
        born = self._workspaces.first_use(name, thread=thread, lt=goes_to_lt(name, told))
        return [(f"{which} workspace of the {thread} thread", size) for which, size in born]

    def _asked(self, func: Any) -> tuple[str, Entry | None, bool, tuple[int, ...], bool]:
        """(name, scratch's entry, whether its results differ, which are on the host, whether its source was read)."""
        known = self._known.get(func)
        if known is None:
            full: str = getattr(getattr(func, "_schema", None), "name", str(func))
            name = full.removeprefix("aten::")
            read = name in CHECKED or not full.startswith("aten::")
            known = (
                name, self._entries.get(name), name in FIXES or name in INSTEAD or func in IN_PLACE,
                host_results(name, self.behaviour), read,
            )  # fmt: skip
            self._known[func] = known
        return known
