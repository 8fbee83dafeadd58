"""Indexing, sorting and scanning."""

from __future__ import annotations

from typing import Any

from memcalc.engines.trace.cuda.scratch import Arguments, Scratch, contiguous_copy, cub_scan, cub_sort, nbytes, scratch
from memcalc.engines.trace.known import ones_of
from memcalc.kernels.behaviour import Behaviour

ROWS_PER_THREAD = 10  # EmbeddingBackwardKernel.cu:NROWS_PER_THREAD


@scratch(
    "embedding_dense_backward", source="native/cuda/Embedding.cu:embedding_dense_backward_cuda; EmbeddingBackwardKernel.cu"
)
def _embedding(args: Arguments, out: Any, _: Behaviour) -> list[Scratch]:
    grad, indices = args["grad_output"], args["indices"]
    number, item = indices.numel(), indices.element_size()
    found = contiguous_copy("grad", grad) + contiguous_copy("indices", indices)
    if number <= 3072 and not args["scale_grad_by_freq"]:
        return found  # embedding_backward_feature_kernel adds into the result
    segments = min(number, args["num_weights"])  # max_segments
    partial = number // ROWS_PER_THREAD + segments  # max_partial_segment
    accumulator = max(4, grad.element_size())
    return [
        *found,
        Scratch("sorted_indices", number * item),
        Scratch("orig_indices", number * item),
        *([Scratch("count", number * item)] if args["scale_grad_by_freq"] else []),
        Scratch("segment_offsets", number * item),
        Scratch("num_of_segments", 8),
        Scratch("partials_per_segment", segments * item),
        Scratch("partials_per_segment_offset", segments * item),
        Scratch("num_of_partial_segments", 8),
        Scratch("partial_segment_offset", partial * item),
        Scratch("grad_weight_per_segment", partial * out.shape[-1] * accumulator),
    ]


@scratch(
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "_unsafe_index_put",
    source="native/cuda/Indexing.cu:index_put_with_sort_kernel",
)
def _index_put(args: Arguments, _: Any, behaviour: Behaviour) -> list[Scratch]:
    indexed = [index for index in args["indices"] if index is not None]
    masks = [index for index in indexed if index.element_size() == 1]
    # IndexingUtils.h:expandTensors: a mask stands for the places where it is not zero
    picked = [index.numel() if ones is None else ones for index in masks for ones in [ones_of(index)]]
    places = [
        Scratch("nonzero", 8 * number * mask.dim(), bound=ones_of(mask) is None)
        for mask, number in zip(masks, picked, strict=True)
    ]
    if not args.get("accumulate") and not behaviour.deterministic:
        return places  # IndexKernel.cu:index_put_kernel writes straight into self
    whole = [index.numel() for index in indexed if index.element_size() > 1]
    number = max((*whole, *picked), default=0)  # linearIndex has the indices' broadcast shape
    found = places + contiguous_copy("values", args["values"]) + contiguous_copy("self", args["self"])
    names = ("linearIndex", "sorted_indices", "orig_indices", "range")
    return [*found, *(Scratch(name, 8 * number) for name in names), cub_sort(number, 8, 8)]


@scratch("index", "_unsafe_index", source="native/TensorAdvancedIndexing.cpp:index; boolean masks through nonzero")
def _index(args: Arguments, out: Any, _: Behaviour) -> list[Scratch]:
    masks = [i for i in args["indices"] if i is not None and i.element_size() == 1]
    found: list[Scratch] = []
    for mask in masks:
        ones = ones_of(mask)
        number = (out.shape[0] if out.dim() else 0) if ones is None else ones
        found += [Scratch("nonzero", 8 * number * mask.dim(), bound=ones is None), cub_scan(mask.numel(), 4)]
    return found


@scratch("index_add", "index_add_", source="native/cuda/Indexing.cu:index_add_cuda_impl; by index_put_ where deterministic")
def _index_add(args: Arguments, _: Any, behaviour: Behaviour) -> list[Scratch]:
    if not behaviour.deterministic:
        return contiguous_copy("index", args["index"])
    number = args["index"].numel()
    names = ("linearIndex", "sorted_indices", "orig_indices", "range")
    return [*(Scratch(name, 8 * number) for name in names), cub_sort(number, 8, 8)]


@scratch(
    "scatter",
    "scatter_",
    "scatter_add",
    "scatter_add_",
    "scatter_reduce",
    "scatter_reduce_",
    source="native/cuda/ScatterGatherKernel.cu",
)
def _scatter(args: Arguments, _: Any, behaviour: Behaviour) -> list[Scratch]:
    if not behaviour.deterministic or args["index"].dim() > 1:
        return []
    return [Scratch("linearIndex and its sort", 4 * 8 * args["index"].numel(), bound=True)]


@scratch("nonzero", source="native/cuda/Nonzero.cu:nonzero_cuda_out_impl: a count, then a selection")
def _nonzero(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    source = args["self"]
    return [*contiguous_copy("self", source), Scratch("num_nonzeros", 4), cub_scan(source.numel(), 4)]


@scratch("masked_select", source="native/cuda/IndexKernel.cpp:masked_select_out_cuda_impl: nonzero of the mask, then index")
def _masked_select(args: Arguments, out: Any, _: Behaviour) -> list[Scratch]:
    dims = max(args["self"].dim(), args["mask"].dim())
    return [Scratch("nonzero", 8 * out.numel() * dims), cub_scan(args["mask"].numel(), 4)]


@scratch("masked_scatter", source="native/cuda/IndexKernel.cpp:masked_scatter__cuda; IndexKernel.cu:the launch of its kernel")
def _masked_scatter(args: Arguments, out: Any, _: Behaviour) -> list[Scratch]:
    prefix = [Scratch("maskPrefixSum", 8 * out.numel())]
    if not args["mask"].is_contiguous() or args["mask"].shape != out.shape:
        prefix.append(Scratch("contiguous mask", out.numel()))
    return [*prefix, *contiguous_copy("source", args["source"]), cub_scan(out.numel(), 8)]


@scratch(
    "masked_scatter_backward",
    source="native/TensorAdvancedIndexing.cpp:masked_scatter_backward_symint: masked_select",
)
def _masked_scatter_backward(args: Arguments, out: Any, _: Behaviour) -> list[Scratch]:
    grad, mask = args["grad_output"], args["mask"]
    whole = [] if mask.is_contiguous() and mask.shape == grad.shape else [Scratch("contiguous mask", grad.numel())]
    return [Scratch("nonzero", 8 * out.numel() * grad.dim()), *whole, cub_scan(grad.numel(), 4)]


@scratch("sort", "argsort", source="native/cuda/Sort.cpp:sort_cuda_kernel; SortStable.cu:launch_stable_sort_kernel")
def _sort(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    source, dim = args["self"], args.get("dim", -1)
    if not source.dim() or source.shape[dim] <= 4096:  # should_use_small_sort: in place on the results
        return []
    length, number = source.shape[dim], source.numel()
    dense = source.is_contiguous() and source.stride()[dim] == 1
    found = [] if dense else [Scratch("self, values and indices, densely", 2 * nbytes(source) + 8 * number)]
    if number == length or length >= 1_000_000:  # segmented_sort_large_segments, one row after another
        return [*found, Scratch("indices", 8 * length), cub_sort(length, source.element_size(), 8)]
    return [*found, Scratch("segments", 16 * number, bound=True), cub_sort(number, max(8, source.element_size()), 8)]


@scratch("topk", source="native/cuda/TensorTopK.cu: sbtopk has no buffer, mbtopk counts by block")
def _topk(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    source, dim = args["self"], args.get("dim", -1)
    length = source.shape[dim] if source.dim() else 1
    slices = source.numel() // max(1, length)
    found = contiguous_copy("self", source)
    if (slices > 400 and length < 20000) or length < 400:  # should_use_mbtopk, roughly: few and long slices
        return found
    blocks = slices * -(-length // 2048)
    return [*found, Scratch("digit counts", blocks * 256 * 2 + blocks * 8 + slices * 24, bound=True)]


@scratch("cumsum", "cumsum_", "cumprod", "logcumsumexp", source="native/cuda/ScanUtils.cuh:scan_dim")
def _cumsum(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    source = args["self"]
    if source.dim() and source.shape[args["dim"]] != source.numel():  # scan_innermost_dim, scan_outer_dim: no buffer
        return contiguous_copy("self", source)
    return [*contiguous_copy("self", source), cub_scan(source.numel(), 8)]


@scratch("randperm", source="native/cuda/Randperm.cu:randperm_out_cuda: random keys, sorted with a range")
def _randperm(args: Arguments, out: Any, _: Behaviour) -> list[Scratch]:
    number = args["n"]
    return [
        *(Scratch(name, 8 * number, bound=True) for name in ("keys", "keys_tmp")),
        Scratch("range", number * out.element_size()),
        cub_sort(number, 8, out.element_size()),
    ]


@scratch("multinomial", source="native/Distributions.cpp:multinomial_out: q = exponential of self's shape")
def _multinomial(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    source = args["self"]
    if args["replacement"] and args["num_samples"] > 1:  # MultinomialKernel.cu: norm_dist and its prefix sum
        return [Scratch("origDist, normDist, prefixSum", 3 * nbytes(source), bound=True)]
    return [Scratch("q", nbytes(source))]


@scratch("bincount", "histc", source="native/cuda/SummaryOps.cu: counts in shared memory, else straight into the result")
def _bincount(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    return [Scratch("minimum and maximum", 16, bound=True), *contiguous_copy("self", args["self"])]


@scratch("_unique2", "unique_dim", "unique_consecutive", source="native/cuda/UniqueCub.cu:UniqueCub")
def _unique(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    source = args["self"]
    number = source.numel()
    return [
        Scratch("sorted, indices and places", 2 * nbytes(source) + 24 * number, bound=True),
        cub_sort(number, source.element_size(), 8),
    ]
