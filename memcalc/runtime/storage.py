"""Which registered tensors share memory: the same object twice, two views of one storage, or parts of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from memcalc.errors import NO_VALUE, InputError, NotModelledError

if TYPE_CHECKING:
    import torch

    from memcalc.runtime.module import Registered


class Extent(NamedTuple):
    """The bytes of a storage that a tensor spans, gaps included.

    Attributes:
        begin: its first byte.
        end: the byte after its last.
        name: the tensor's.
        layout: (shape, strides, dtype), which tells two views of the same bytes apart.
        dense: whether it uses every byte between.
    """

    begin: int
    end: int
    name: str
    layout: tuple[object, ...]
    dense: bool


class Storages:
    """What has been seen of a module's storages.

    Attributes:
        tied: name -> the name under which its memory is already counted.
        remarks: what a person should know about the sharing.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.tied: dict[str, str] = {}
        self.remarks: list[str] = []
        self._objects: dict[int, str] = {}
        self._extents: dict[int, list[Extent]] = {}
        self._alive: list[object] = []

    def seen(self, entry: Registered) -> str | None:
        """The name under which a tensor's memory is already counted; None where it is new.

        Raises:
            InputError: a lazy parameter, which has no shape yet.
            NotModelledError: a sparse tensor, or a view that overlaps another in part.
        """
        self._require_plain(entry)
        same = self._objects.get(id(entry.tensor))
        if same is None and not hasattr(entry.tensor, "__tensor_flatten__"):
            same = self._shared(entry)
        if same is None:
            self._objects[id(entry.tensor)] = entry.name
            self._alive.append(entry.tensor)  # an id, or a storage's address, is only good while the thing lives
        else:
            self.tied[entry.name] = same
        return same

    def shape(self, entry: Registered) -> tuple[int, ...]:
        """The shape of what a tensor stores: an expanded dimension repeats one element and is counted as 1.

        Raises:
            InputError: a trainable parameter of which several elements are one, so that no optimizer can write it.
        """
        tensor = entry.tensor
        shape = tuple(1 if step == 0 else size for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        if shape != tuple(tensor.shape) and 0 not in tensor.shape:
            if tensor.requires_grad:
                rule = f"is expanded from {list(shape)} to {list(tensor.shape)}, so that no optimizer can write it"
                raise InputError(f"{self.path}.{entry.name}", NO_VALUE, rule, "register a contiguous one")
            self.remarks.append(f"{entry.name} is expanded from {list(shape)}, which is what it stores")
            return shape
        return tuple(tensor.shape)

    def _require_plain(self, entry: Registered) -> None:
        import torch
        from torch.nn.parameter import is_lazy

        where, tensor = f"{self.path}.{entry.name}", entry.tensor
        if is_lazy(tensor):
            rule = "is a lazy parameter that has no shape yet"
            raise InputError(where, NO_VALUE, rule, "run a batch through the module in the factory, or give it its sizes")
        if hasattr(tensor, "__tensor_flatten__"):
            return
        if tensor.is_nested or tensor.layout is not torch.strided:
            layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            rule = "is a layout whose bytes depend on its values"
            raise NotModelledError(where, layout, rule, "register a dense tensor")

    def _shared(self, entry: Registered) -> str | None:
        tensor = entry.tensor
        if not tensor.numel():
            return None
        storage = tensor.untyped_storage()
        known = self._extents.setdefault(storage._cdata, [])
        extent = _extent(entry.name, tensor)
        overlapping = [other for other in known if other.begin < extent.end and extent.begin < other.end]
        for other in overlapping:
            if (other.begin, other.layout) == (extent.begin, extent.layout):
                if entry.role == "parameter":
                    self.remarks.append(
                        f"{entry.name} and {other.name} are two Parameters on one storage, counted as one: an optimizer keeps "
                        "states for each, and moving the module to another device parts them; assign one to the other instead"
                    )
                return other.name
        if overlapping:
            if entry.role == "buffer" and _covered(extent, overlapping):
                return overlapping[0].name
            rule = f"shares part of its storage with {overlapping[0].name}"
            raise NotModelledError(f"{self.path}.{entry.name}", NO_VALUE, rule, "register the whole and slice it in forward")
        known.append(extent)
        self._alive.append(storage)
        spare = storage.nbytes() - (extent.end - extent.begin)
        if spare > 0 and len(known) == 1 and extent.dense:
            self.remarks.append(
                f"{entry.name} is a view: the other {spare:,} bytes of its storage count where they are registered"
            )
        return None


def _extent(name: str, tensor: torch.Tensor) -> Extent:
    size = tensor.element_size()
    reach = 1 + sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    begin = int(tensor.storage_offset()) * size
    layout = (tuple(tensor.shape), tensor.stride(), tensor.dtype)
    return Extent(begin, begin + reach * size, name, layout, reach == tensor.numel())


def _covered(extent: Extent, others: list[Extent]) -> bool:
    """Whether every byte of an extent belongs to others already counted."""
    reached = extent.begin
    for other in sorted(others):
        if not other.dense or other.begin > reached:
            return False
        reached = max(reached, other.end)
    return reached >= extent.end
