"""Which module an operator runs for: the one whose forward is under way, or in backward the one that made the node.

Autograd numbers its nodes as they are made (pytorch torch/csrc/autograd/function.h:sequence_nr), so that the numbers at which a
module's forward begins and ends tell whose a node is: nothing is attached to tensors or nodes.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch._C._autograd import _get_sequence_nr
from torch.nn.modules import module as hooks


class Sites:
    """The module under way, by name.

    Args:
        modules: the named modules of everything that is traced.
    """

    def __init__(self, modules: Iterator[tuple[str, Any]] | list[tuple[str, Any]] = ()) -> None:  # type: ignore[assignment]
        self.names: dict[int, str] = {}
        self.add(modules)
        self._stack: list[str] = []
        self._runs: list[int] = []
        self._entered = 0
        self._numbers: list[int] = []
        self._paths: list[str] = []

    def add(self, modules: Any) -> None:
        """More modules, by name."""
        for name, module in modules:
            self.names.setdefault(id(module), name or type(module).__name__)

    def inside(self) -> bool:
        """Whether a forward is under way."""
        return bool(self._stack)

    def run(self) -> int:
        """The forward under way, by its number; 0 outside of any."""
        return self._runs[-1] if self._runs else 0

    def path(self) -> str:
        """The module that runs now; empty where none is known."""
        if self._stack:
            return self._stack[-1]
        node: Any = torch._C._current_autograd_node()
        if node is None or not self._numbers:
            return ""
        index = bisect.bisect_right(self._numbers, node._sequence_nr()) - 1
        return self._paths[index] if index >= 0 else ""

    def forget(self) -> None:
        """Drop the numbers of graphs that are gone."""
        self._numbers.clear()
        self._paths.clear()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Follow every module's forward."""
        handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._stack.clear()
            self._runs.clear()

    def _enter(self, module: Any, _: Any) -> None:
        self._entered += 1
        self._runs.append(self._entered)
        self._stack.append(self.names.get(id(module)) or type(module).__name__)
        self._note(self._stack[-1])

    def _leave(self, module: Any, *_: Any) -> None:
        if self._stack:
            self._stack.pop()
            self._runs.pop()
        self._note(self._stack[-1] if self._stack else "")

    def _note(self, path: str) -> None:
        """From the next node on, nodes are this path's."""
        number = _get_sequence_nr()
        if self._numbers and self._numbers[-1] >= number:
            # no node was made since: the later word holds. A thread of its own starts at 0 again, and is not followed.
            self._paths[-1] = path
            return
        self._numbers.append(number)
        self._paths.append(path)
