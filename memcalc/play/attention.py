"""Attention kernels: what each keeps, gives back and needs for a moment, and which one CUDA takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count, ceil_div, maximum, round_up, where
from memcalc.play.graph import Gradients, Node
from memcalc.play.reshape import expand, narrow
from memcalc.play.values import Shape, Value
from memcalc.play.written_out import additive, math_kernel

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

FLASH = "native/transformers/cuda/flash_attn/flash_api.cpp"


def attend(
    machine: Machine,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    *,
    probability: float = 0.0,
    causal: bool = False,
    grouped: bool = False,
    order: tuple[str, ...] | None = None,
) -> Value:
    """``scaled_dot_product_attention`` on CUDA: (batch, heads, length, head dimension).

    ``order`` are the backends that the code around it allows, in its own order (``torch.nn.attention.sdpa_kernel``).
    """
    if machine.autocast is not None:
        mask = None if mask is None else machine.low(mask)
        value, key = machine.low(value), machine.low(key)
        query = machine.low(query)
    probability = probability if machine.training else 0.0
    kernel = machine.policy.kernel(machine, query, key, value, mask, probability, causal, grouped, order)
    return KERNELS[kernel](machine, query, key, value, mask, probability, causal, grouped)


def _padded(machine: Machine, value: Value) -> Value:
    width = value.shape[-1]
    if machine.decide(width % 8 == 0):
        return value
    padded = machine.new((*value.shape[:-1], round_up(width, 8)), value.dtype, "constant_pad_nd")
    return machine.record(padded, (value,), (), _unpad, value.shape)


def _unpad(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # padded by less than nothing, which is a copy (PadNd.cpp:constant_pad_nd)
    return (machine.new(node.meta, grad.dtype, "constant_pad_nd", grad.order),)


def _flash(machine: Machine, query: Value, key: Value, value: Value, mask: Any, p: float, causal: bool, grouped: bool) -> Value:
    """source: attention.cu:_scaled_dot_product_flash_attention_cuda; flash_api.cpp:mha_fwd"""
    width = query.shape[-1]
    query, key, value = _padded(machine, query), _padded(machine, key), _padded(machine, value)
    batch, heads, length = query.shape[:3]
    out = machine.kept_like(query, "_scaled_dot_product_flash_attention")
    lse = machine.kept((batch, heads, length), "float32", "_scaled_dot_product_flash_attention", beside=True)
    seed = machine.kept((2,), "uint64", "_scaled_dot_product_flash_attention", beside=True)
    offset = machine.kept((), "uint64", "_scaled_dot_product_flash_attention", beside=True)
    if p > 0:
        machine.scratch(0 if machine.found() else 16, "rng_state made twice")
    elif not machine.found():
        machine.scratches(accumulators(machine, query.shape, key.shape[2], machine.policy.behaviour.multiprocessors))
    machine.record(out, (query, key, value), (query, key, value, out, lse, seed, offset), _flash_backward)
    return out if machine.same(out.shape[-1], width) else narrow(machine, out, 3, width)


def accumulators(machine: Machine, shape: Shape, keys: Count, multiprocessors: int) -> list[tuple[str, Count]]:
    """What a forward with few queries, (batch, heads, length, size), takes to split keys (flash_api.cpp:set_params_splitkv)."""
    from memcalc.kernels.attention import flash_splits

    batch, heads, length, dim = shape
    block = where(dim <= 64, 256, where(dim <= 128, 128, 64))
    blocks = batch * heads * ceil_div(length, 64)
    key_blocks = ceil_div(keys, block)
    # one for all that fill the GPU, which the function says too
    few = blocks * 5 < multiprocessors * 4
    splits = machine.each(flash_splits, blocks, multiprocessors, key_blocks, only=few, otherwise=1)
    rows = where(splits > 1, splits, 0) * batch * heads * length
    wide = round_up(dim, where(dim <= 128, 32, 64))
    return [("softmax_lse_accum", 4 * rows), ("out_accum", 4 * rows * wide)]


def _flash_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """source: attention_backward.cu:_flash_attention_backward; flash_api.cpp:mha_bwd"""
    query, key, value, out = saved[:4]
    results = _three(machine, query, key, value, "_scaled_dot_product_flash_attention_backward")
    (batch, heads, length, dim), (key_heads, keys) = query.shape, key.shape[1:3]
    rows = batch * heads * round_up(length, 128)
    wide = round_up(dim, where(dim <= 128, 32, 64))
    deterministic = machine.policy.behaviour.deterministic
    splits = ceil_div(machine.policy.behaviour.multiprocessors, batch * heads) if deterministic else 1
    held: list[tuple[str, Count]] = [("softmax_d", 4 * rows), ("dq_accum", 4 * splits * rows * wide)]
    expanded = where(key_heads == heads, 0, batch * keys * heads * dim * query.itemsize)
    held += [("dk_expanded", expanded), ("dv_expanded", expanded)]
    for name, tensor in (("grad_out", grad), ("out", out)):
        moved = tensor.order == (0, 2, 1, 3) and not tensor.gaps
        if not moved and not (tensor.contiguous and (machine.same(heads, 1) or machine.same(length, 1))):
            held.append((f"contiguous {name}", tensor.nbytes))
    machine.scratches(held)
    return results


def _three(machine: Machine, query: Value, key: Value, value: Value, operator: str) -> tuple[Value, Value, Value]:
    """Gradients of query, key and value, in memory as those are."""
    return machine.like(query, operator), machine.like(key, operator), machine.like(value, operator)


def _cudnn(machine: Machine, query: Value, key: Value, value: Value, mask: Any, p: float, causal: bool, grouped: bool) -> Value:
    """source: native/cudnn/MHA.cpp:run_cudnn_SDP_fprop; attention.cu:_cudnn_attention_forward"""
    operator = "_scaled_dot_product_cudnn_attention"
    bias = additive(machine, mask, query.dtype)
    batch, heads, length = query.shape[:3]
    out = machine.kept_like(query, operator, (*query.shape[:3], value.shape[3]))
    trains = machine.wants(query, key, value)  # attention.cu:_cudnn_attention_forward, compute_logsumexp
    lse = machine.kept((batch, heads, length, 1), "float32", operator, beside=True) if trains else None
    seed = machine.kept((), "int64", operator, beside=True)
    offset = machine.kept((), "int64", operator, beside=True)
    machine.scratch(0 if machine.found() else 4 * batch * heads * length, "cuDNN workspace")
    return machine.record(out, (query, key, value), (query, key, value, bias, out, lse, seed, offset), _cudnn_backward)


def _cudnn_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """source: native/cudnn/MHA.cpp:run_cudnn_SDP_bprop; the workspace as cudnn-frontend's backward node asks for it"""
    query, key, value, _, out = saved[:5]
    results = _three(machine, query, key, value, "_scaled_dot_product_cudnn_attention_backward")
    batch, heads, length, dim = query.shape
    rows = batch * heads * length
    size = 4 * rows + 4 * rows * dim
    shared = heads * (key.nbytes // key.shape[1] + value.nbytes // value.shape[1])
    held: list[tuple[str, Count]] = [("cuDNN workspace", size + where(key.shape[1] == heads, 0, shared))]
    if grad.order != out.order or grad.gaps:
        held.append(("grad_out in the output's layout", grad.nbytes))
    machine.scratches(held)
    return results


def _efficient(
    machine: Machine, query: Value, key: Value, value: Value, mask: Any, p: float, causal: bool, grouped: bool
) -> Value:
    """source: attention.cu:_scaled_dot_product_efficient_attention_cuda, _efficient_attention_forward"""
    operator = "_scaled_dot_product_efficient_attention"
    bias = additive(machine, mask, query.dtype)
    bias = None if bias is None else _aligned(machine, bias, query, key)
    batch, heads, length = query.shape[:3]
    made = machine.kept((batch, length, heads, value.shape[3]), query.dtype, operator)
    out = transpose_of(made)
    del made
    needs = machine.wants(query, key, value)
    lse = machine.kept((batch, heads, round_up(length, 32) if needs else 0), "float32", operator, beside=True)
    # seed and offset are on the host where no graph is captured (attention.cu, Note [Seed and Offset Device])
    if query.itemsize < 4 and not machine.found():
        machine.scratch(where(value.shape[3] > 128, out.numel * 4, 0), "output_accum")
    return machine.record(out, (query, key, value, bias), (query, key, value, bias, out, lse), _efficient_backward)


def transpose_of(value: Value) -> Value:
    """(batch, length, heads, dim) in memory, seen as (batch, heads, length, dim): a kernel's result, no view to autograd."""
    batch, length, heads, dim = value.shape
    return Value(value.storage, (batch, heads, length, dim), value.dtype, (0, 2, 1, 3))


def _aligned(machine: Machine, mask: Value, query: Value, key: Value) -> Value:
    """Rows of a multiple of 8 (attention.cpp:preprocess_mask), stretched over batch and heads."""
    if not machine.decide(mask.shape[-1] % 8 == 0):
        length = mask.shape[-1]
        padded = machine.new((*mask.shape[:-1], length + 8 - length % 8), mask.dtype, "constant_pad_nd")
        mask = narrow(machine, machine.record(padded, (mask,), (), _unpad, mask.shape), len(mask.shape) - 1, length)
    return expand(machine, mask, (*query.shape[:3], key.shape[2]))


def _efficient_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """source: attention_backward.cu:_efficient_attention_backward; mem_eff_attention/kernel_backward.h:workspace_size"""
    query, key, value = saved[:3]
    operator = "_scaled_dot_product_efficient_attention_backward"
    batch, heads, length, dim = query.shape
    keys, wide = key.shape[2], value.shape[3]
    results = [
        transpose_of(machine.new((batch, n, heads, d), query.dtype, operator))
        for n, d in ((length, dim), (keys, dim), (keys, wide))
    ]
    of_bias = None
    if node.needs(3):  # rows of a multiple of 16 (attention_backward.cu: "force alignment for the last dim")
        made = machine.new((batch, heads, length, round_up(keys, 16)), query.dtype, operator)
        of_bias = Value(made.storage, (batch, heads, length, keys), query.dtype, view=True, gaps=(2,))
        del made
    held: list[tuple[str, Count]] = [("delta", 4 * batch * heads * length)]
    if query.itemsize == 4:
        held.append(("grad_out * out", 4 * batch * heads * length * wide))
    if grad.order != (0, 2, 1, 3) or grad.gaps:
        held.append(("contiguous grad_out", grad.nbytes))
    tiles = batch * heads * round_up(length, 128) * round_up(dim, 128) * 4
    splits = maximum(1, where(ceil_div(keys, 64) < 200 // (batch * heads), ceil_div(keys, 64), 200 // (batch * heads)))
    more = batch * heads * splits * 128 * (round_up(dim, 128) + round_up(wide, 128)) * 4
    held.append(("workspace", tiles + where(dim > 128, more, 0)))
    machine.scratches(held)
    return (*results, of_bias)


KERNELS = {"flash": _flash, "cudnn": _cudnn, "efficient": _efficient, "math": math_kernel}
