"""Views and copies: the same memory under another shape where that can be, a copy where it cannot.

What can be a view is told by the order of dimensions in memory and by the gaps between them (pytorch
ATen/TensorUtils.cpp:computeStride).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Order, Shape, Value, alike

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def _viewed(value: Value, shape: Shape, order: Order | None, gaps: tuple[int, ...]) -> Value:
    if order is not None and order == tuple(range(len(shape))):
        order = None
    return Value(value.storage, shape, value.dtype, order, True, gaps)


def split_dim(machine: Machine, value: Value, dim: int, sizes: Sequence[Count]) -> Value:
    """One dimension seen as several: ``(b, s, h·d)`` as ``(b, s, h, d)``."""
    out = _split(value, dim % len(value.shape), tuple(sizes))
    return machine.record(out, (value,), (), _split_backward, (dim % len(value.shape), len(sizes)))


def _split(value: Value, dim: int, sizes: Shape) -> Value:
    more = len(sizes) - 1
    shape = (*value.shape[:dim], *sizes, *value.shape[dim + 1 :])
    order = value.order
    if order is not None:
        flat: list[int] = []
        for d in order:
            flat += range(d, d + more + 1) if d == dim else [d if d < dim else d + more]
        order = tuple(flat)
    return _viewed(value, shape, order, tuple(d if d <= dim else d + more for d in value.gaps))


def _split_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    dim, count = node.meta
    return (_merged(machine, grad, dim, dim + count - 1),)


def merge_dims(machine: Machine, value: Value, first: int, last: int) -> Value:
    """Several dimensions as one, from ``first`` to ``last``: a view where they lie closely in order, else of a copy."""
    last %= len(value.shape)
    if not _mergeable(machine, value, first, last):
        value = clone(machine, value)
    out = _merge(value, first, last)
    return machine.record(out, (value,), (), _merge_backward, (first, value.shape[first : last + 1]))


def _merge_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    first, sizes = node.meta
    return (_split(grad, first, sizes),)


def _merged(machine: Machine, value: Value, first: int, last: int) -> Value:
    """``reshape`` outside the graph."""
    if not _mergeable(machine, value, first, last):
        value = machine.new(value.shape, value.dtype, "clone")
    return _merge(value, first, last)


def _mergeable(machine: Machine, value: Value, first: int, last: int) -> bool:
    if value.order is None and not value.gaps:
        return True
    dims = list(range(first, last + 1))
    if _close(value, dims):
        return True
    # extents of 1 lie anywhere
    kept = [d for d in dims if not machine.same(value.shape[d], 1)]
    others = {d for d in range(len(value.shape)) if machine.same(value.shape[d], 1)}
    return _close(value, kept, others)


def _close(value: Value, dims: Sequence[int], ignored: Any = ()) -> bool:
    order = [d for d in (value.order or range(len(value.shape))) if d not in ignored]
    places = [order.index(d) for d in dims]
    return all(b == a + 1 for a, b in pairwise(places)) and not any(d in value.gaps for d in dims[1:])


def _merge(value: Value, first: int, last: int) -> Value:
    size: Count = 1
    for extent in value.shape[first : last + 1]:
        size = size * extent
    shape = (*value.shape[:first], size, *value.shape[last + 1 :])
    less = last - first

    def moved(d: int) -> int:
        return d if d < first else first if d <= last else d - less

    order = value.order
    if order is not None:
        seen: list[int] = []
        for d in order:
            if moved(d) not in seen:
                seen.append(moved(d))
        order = tuple(seen)
    # a gap inside is one beside extents of 1 alone, which the whole then has
    return _viewed(value, shape, order, tuple(sorted({moved(d) for d in value.gaps})))


def permute(machine: Machine, value: Value, dims: Sequence[int]) -> Value:
    """The same memory with its dimensions in another order."""
    return machine.record(_permuted(value, tuple(dims)), (value,), (), _permute_backward, tuple(dims))


def transpose(machine: Machine, value: Value, first: int, second: int) -> Value:
    """Two dimensions exchanged."""
    dims = list(range(len(value.shape)))
    dims[first], dims[second] = dims[second], dims[first]
    return permute(machine, value, dims)


def _permuted(value: Value, dims: Order) -> Value:
    place = {d: i for i, d in enumerate(dims)}
    order = tuple(place[d] for d in (value.order or range(len(dims))))
    shape = tuple(value.shape[d] for d in dims)
    return _viewed(value, shape, order, tuple(sorted(place[d] for d in value.gaps)))


def _permute_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    inverse = [0] * len(node.meta)
    for place, dim in enumerate(node.meta):
        inverse[dim] = place
    return (_permuted(grad, tuple(inverse)),)


def unsqueeze(machine: Machine, value: Value, dim: int) -> Value:
    """A dimension of 1 more."""
    out = _split(value, dim, (1, value.shape[dim])) if dim < len(value.shape) else _split(value, dim - 1, (value.shape[-1], 1))
    at = dim if dim < len(value.shape) else dim - 1
    return machine.record(out, (value,), (), _split_backward, (at, 2))


def expand(machine: Machine, value: Value, shape: Shape) -> Value:
    """Stretched over extents of 1, without memory of its own; ``shape`` may have more dimensions in front."""
    extra = len(shape) - len(value.shape)
    stretched = tuple(d for d in range(len(shape)) if d < extra or not alike((value.shape[d - extra],), (shape[d],)))
    if not stretched:
        return value
    gaps = {d + extra for d in value.gaps} | set(stretched) | {d + 1 for d in stretched if d + 1 < len(shape)}
    out = Value(value.storage, shape, value.dtype, None, True, tuple(sorted(gaps)))
    return machine.record(out, (value,), (), _same)  # summed by the engine to the shape that is due


def _same(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (grad,)


def narrow(machine: Machine, value: Value, dim: int, length: Count) -> Value:
    """A slice of one dimension."""
    dim %= len(value.shape)
    shape = (*value.shape[:dim], length, *value.shape[dim + 1 :])
    return machine.record(_sliced(value, dim, shape), (value,), (), _slice_backward, value.shape)


def strided(machine: Machine, value: Value, length: Count) -> Value:
    """Every so many-th index of the last dimension, of which ``length`` are left."""
    last = len(value.shape) - 1
    out = _sliced(value, last, (*value.shape[:-1], length))
    return machine.record(out, (value,), (), _slice_backward, value.shape)


def _sliced(value: Value, dim: int, shape: Shape) -> Value:
    return Value(value.storage, shape, value.dtype, value.order, True, tuple(sorted({*value.gaps, dim})))


def _slice_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.new(node.meta, grad.dtype, "slice_backward"),)


def select(machine: Machine, value: Value, dim: int) -> Value:
    """One index of a dimension, which goes."""
    dim %= len(value.shape)
    shape = (*value.shape[:dim], *value.shape[dim + 1 :])
    gaps = {d if d < dim else d - 1 for d in value.gaps if d != dim}
    if dim > 0:  # the dimension outside it no longer lies closely
        gaps.add(min(dim, len(shape) - 1))
    order = value.order and tuple(d if d < dim else d - 1 for d in value.order if d != dim)
    out = _viewed(value, shape, order, tuple(sorted(gaps)))
    return machine.record(out, (value,), (), _select_backward, value.shape)


def _select_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.new(node.meta, grad.dtype, "select_backward"),)


def pieces(machine: Machine, value: Value, dim: int, lengths: Sequence[Count]) -> list[Value]:
    """``split`` or ``chunk``: slices side by side, whose gradients are put together again."""
    dim %= len(value.shape)
    outs = [_sliced(value, dim, (*value.shape[:dim], n, *value.shape[dim + 1 :])) for n in lengths]
    if machine.wants(value):
        machine.attach(outs, (value,), ((value.node, value.index),), (), _pieces_backward, (value.shape, value.dtype))
    return outs


def _pieces_backward(machine: Machine, node: Node, saved: Any, grads: Any) -> Gradients:
    shape, dtype = node.meta
    grads = [grads] if node.results == 1 else grads
    if all(grad is None for grad in grads):
        return (None,)
    return (machine.new(shape, dtype, "cat"),)


def cat(machine: Machine, values: Sequence[Value], dim: int) -> Value:
    """Values side by side, in fresh memory."""
    dim %= len(values[0].shape)
    size: Count = 0
    for value in values:
        size = size + value.shape[dim]
    shape = (*values[0].shape[:dim], size, *values[0].shape[dim + 1 :])
    # native/cuda/Shape.cu:cat_out_cuda: contiguous, unless all are channels-last
    order = values[0].order if all(v.order == (0, 2, 3, 1) for v in values) else None
    dtypes = {value.dtype for value in values}
    # torch.promote_types of what a model has under autocast: one of its two dtypes, or FP32
    dtype = values[0].dtype if len(dtypes) == 1 else "float32"
    out = machine.new(shape, dtype, "cat", order)
    return machine.record(out, tuple(values), (), _cat_backward, (dim, tuple(v.shape for v in values)))


def _cat_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    dim, shapes = node.meta
    return [_sliced(grad, dim, shape) if node.needs(i) else None for i, shape in enumerate(shapes)]


def stack(machine: Machine, values: Sequence[Value], dim: int) -> Value:
    """Values under a new dimension, in fresh memory."""
    first = values[0].shape
    dim %= len(first) + 1
    out = machine.new((*first[:dim], len(values), *first[dim:]), values[0].dtype, "stack")
    return machine.record(out, tuple(values), (), _stack_backward, (dim, first))


def _stack_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    dim, shape = node.meta
    gaps = (min(dim, len(shape) - 1),) if dim else ()
    return [Value(grad.storage, shape, grad.dtype, None, True, gaps) if node.needs(i) else None for i in range(len(node.edges))]


def clone(machine: Machine, value: Value) -> Value:
    """A contiguous copy."""
    return machine.record(machine.new(value.shape, value.dtype, "clone"), (value,), (), _same)


def contiguous(machine: Machine, value: Value) -> Value:
    """Itself where its dimensions lie in order, else a copy; extents of 1 lie anywhere."""
    if value.contiguous or _mergeable(machine, value, 0, len(value.shape) - 1):
        return value
    return clone(machine, value)
