"""Live bytes on a CPU: the storages alive that operators returned, followed by dispatch from birth to death.

The operators are those a GPU would run, so the tensors are too; what an operator allocates inside itself is not seen, and
nothing is rounded or cached. These are therefore never CUDA figures, and are never called so.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memcalc.runtime.walk import plain_parts, storage_key

CASTS = frozenset({"aten._to_copy.default"})
"""The operator autocast copies a parameter with (pytorch aten/src/ATen/autocast_mode.cpp:cached_cast)."""


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that run while it is entered, by name; allocates nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))

    def attention(self) -> dict[str, int]:
        """The attention operators among them: name -> times."""
        return {name: times for name, times in sorted(self.counts.items()) if "scaled_dot_product" in name}


class LiveBytes(Operators):  # type: ignore[no-untyped-call]
    """Follows every storage on the CPU while it is entered.

    Attributes:
        live: bytes alive now.
        peak: the most since :meth:`reset_peak`.
        copies: bytes alive now of low-precision copies of the parameters named by :meth:`watch_copies_of`.
        copies_peak: the most of those since :meth:`reset_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.copies = self.copies_peak = 0
        self._sizes: dict[Any, int] = {}
        self._copies: set[Any] = set()
        self._watched: set[int] = set()
        self._resize: Any = None

    def __enter__(self) -> LiveBytes:
        super().__enter__()  # type: ignore[no-untyped-call]
        storages: Any = torch.UntypedStorage
        self._resize = resize = storages.resize_

        def followed(storage: torch.UntypedStorage, size: int) -> Any:
            # FSDP frees and refills a storage in place, which no operator tells of
            done = resize(storage, size)
            self._resized(storage)
            return done

        storages.resize_ = followed
        return self

    def __exit__(self, *raised: Any) -> None:
        storages: Any = torch.UntypedStorage
        storages.resize_ = self._resize
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def reset_peak(self) -> None:
        """Begin a phase: what is live now is its peak so far."""
        self.peak, self.copies_peak = self.live, self.copies

    def watch_copies_of(self, tensors: Any) -> None:
        """Tell apart casts of these from other storages, from now on; none of an empty list."""
        self._watched = {storage_key(part) for tensor in tensors for part in plain_parts(tensor)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.counts[name] += 1
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in given:
            self._met(tensor)  # made where no operator was called, as from a numpy array
        out = func(*args, **(kwargs or {}))
        cast = name in CASTS and any(storage_key(part) in self._watched for part in plain_parts(given[0]))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._met(leaf, cast=cast)
        self.peak, self.copies_peak = max(self.peak, self.live), max(self.copies_peak, self.copies)
        return out

    def _met(self, tensor: torch.Tensor, *, cast: bool = False) -> None:
        for part in plain_parts(tensor):
            storage = part.untyped_storage()
            if storage.device.type != "cpu":
                continue
            reference = weakref.ref(storage, self._died)
            if reference in self._sizes:
                continue
            self._sizes[reference] = size = storage.nbytes()
            self.live += size
            if cast:
                self._copies.add(reference)
                self.copies += size

    def _died(self, reference: Any) -> None:
        size = self._sizes.pop(reference)
        self.live -= size
        if reference in self._copies:
            self._copies.discard(reference)
            self.copies -= size

    def _resized(self, storage: torch.UntypedStorage) -> None:
        reference = weakref.ref(storage)
        if reference in self._sizes:
            change = storage.nbytes() - self._sizes[reference]
            self._sizes[reference] += change
            self.live += change
            self.peak = max(self.peak, self.live)
