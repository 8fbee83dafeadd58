"""Attention kernels: what they allocate beyond their results."""

from __future__ import annotations

import math
from typing import Any

from memcalc.engines.trace.cuda.scratch import Arguments, Scratch, nbytes, round_up, scratch
from memcalc.kernels.attention import flash_splits
from memcalc.kernels.behaviour import Behaviour

FLASH = "native/transformers/cuda/flash_attn/flash_api.cpp"
EFFICIENT = "native/transformers/cuda/attention_backward.cu:_efficient_attention_backward"


@scratch("_scaled_dot_product_flash_attention", source=f"{FLASH}:mha_fwd, set_params_splitkv")
def _flash_forward(args: Arguments, _: Any, behaviour: Behaviour) -> list[Scratch]:
    (batch, heads, length, dim), keys = args["query"].shape, args["key"].shape[2]
    found = []
    if args["dropout_p"] > 0:
        found.append(Scratch("rng_state made twice", 16))  # mha_fwd: empty({2}, kUInt64), again where there is dropout
        return found  # "SplitKV is not implemented for dropout"
    block = 256 if dim <= 64 else 128 if dim <= 128 else 64
    splits = flash_splits(batch * heads * -(-length // 64), behaviour.multiprocessors, -(-keys // block))
    if splits > 1:
        rounded = round_up(dim, 32 if dim <= 128 else 64)
        rows = splits * batch * heads * length
        found += [Scratch("softmax_lse_accum", 4 * rows), Scratch("out_accum", 4 * rows * rounded)]
    return found


@scratch(
    "_scaled_dot_product_flash_attention_backward", source=f"{FLASH}:mha_bwd; attention_backward.cu:_flash_attention_backward"
)
def _flash_backward(args: Arguments, _: Any, behaviour: Behaviour) -> list[Scratch]:
    query, key = args["query"], args["key"]
    (batch, heads, length, dim), (key_heads, keys) = query.shape, key.shape[1:3]
    rows = batch * heads * round_up(length, 128)
    rounded = round_up(dim, 32 if dim <= 128 else 64)
    # non-deterministic: one fp32 accumulator; deterministic: one a split of the batch and heads over the multiprocessors
    splits = -(-behaviour.multiprocessors // (batch * heads)) if behaviour.deterministic else 1
    found = [Scratch("softmax_d", 4 * rows), Scratch("dq_accum", 4 * splits * rows * rounded)]
    if key_heads != heads:  # MQA and GQA: gradients for every query head, summed over the groups afterwards
        found += [Scratch(name, batch * keys * heads * dim * query.element_size()) for name in ("dk_expanded", "dv_expanded")]
    for name, tensor in (
        ("grad_out", args["grad_out"]),
        ("out", args["out"]),
    ):  # _flash_attention_backward: .contiguous() as (b, s, h, d)
        if not tensor.transpose(1, 2).is_contiguous():
            found.append(Scratch(f"contiguous {name}", nbytes(tensor)))
    return found


@scratch("_scaled_dot_product_efficient_attention", source="native/transformers/cuda/attention.cu:_efficient_attention_forward")
def _efficient_forward(args: Arguments, out: Any, _: Behaviour) -> list[Scratch]:
    # kernel_forward.h:kNeedsOutputAccumulatorBuffer: an fp32 output where the output is half and wider than one tile of 128
    wide = args["value"].shape[-1] > 128 and out[0].element_size() < 4
    return [Scratch("output_accum", nbytes(out[0], 4))] if wide else []


@scratch(
    "_scaled_dot_product_efficient_attention_backward",
    source=f"{EFFICIENT}; mem_eff_attention/kernel_backward.h:workspace_size",
)
def _efficient_backward(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    query, value, grad = args["query"], args["value"], args["grad_out_"]
    (batch, heads, length, dim), keys, value_dim = query.shape, args["key"].shape[2], value.shape[-1]
    found = [Scratch("delta", 4 * batch * heads * length)]
    if query.element_size() == 4:  # kKernelComputesDelta is for half precision; else grad * out, then its sum
        found.append(Scratch("grad_out * out", 4 * batch * heads * length * value_dim))
    if not grad.transpose(1, 2).is_contiguous():
        found.append(Scratch("contiguous grad_out", nbytes(grad)))
    # workspace_elements_gq: an fp32 tile of dq a block of queries; blocks are 64 or 128 wide by the kernel dispatched
    accumulate = batch * heads * round_up(length, 128) * round_up(dim, 128) * 4
    if dim > 128:  # kNeedsAccumGradK, V: not kOutputInRF, in up to 200 / (batch * heads) splits of the keys
        splits = max(1, min(-(-keys // 64), 200 // (batch * heads)))
        accumulate += batch * heads * splits * 128 * (round_up(dim, 128) + round_up(value_dim, 128)) * 4
    return [*found, Scratch("workspace", accumulate, bound=True)]


@scratch("_scaled_dot_product_cudnn_attention", source="native/cudnn/MHA.cpp:run_cudnn_SDP_fprop")
def _cudnn_forward(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    rows = math.prod(args["query"].shape[:3])
    return [Scratch("cuDNN workspace", 4 * rows, bound=True)]  # mha_graph->get_workspace_size(): cuDNN's own


@scratch("_scaled_dot_product_cudnn_attention_backward", source="native/cudnn/MHA.cpp:run_cudnn_SDP_bprop")
def _cudnn_backward(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    query, key, value = args["query"], args["key"], args["value"]
    rows, dim = math.prod(query.shape[:3]), query.shape[-1]
    # cudnn-frontend's backward node asks for softmax_sum and an fp32 dq accumulator, and for GQA dk and dv of every head
    size = 4 * rows + 4 * rows * dim
    if key.shape[1] != query.shape[1]:
        size += query.shape[1] * (nbytes(key) // key.shape[1] + nbytes(value) // value.shape[1])
    found = [Scratch("cuDNN workspace", size, bound=True)]
    if tuple(args["grad_out"].stride()) != tuple(args["out"].stride()):  # permute_to_matching_layout(o, dO)
        found.append(Scratch("grad_out in the output's layout", nbytes(args["grad_out"])))
    return found


@scratch("_safe_softmax", source="native/transformers/attention.cpp:_safe_softmax: softmax, then rows of -inf are set to 0")
def _safe_softmax(args: Arguments, out: Any, behaviour: Behaviour) -> list[Scratch]:
    rows = out.numel() // max(1, out.shape[args["dim"]])
    found = [Scratch("masked", out.numel()), Scratch("masked_rows", rows), Scratch("minus infinity", out.element_size())]
    if behaviour.torch >= (2, 13):
        return found  # in place on the softmax
    return [
        *found,
        Scratch("softmax", nbytes(out), bound=behaviour.torch > (2, 6)),
    ]  # at::where at v2.6, in place at some later
