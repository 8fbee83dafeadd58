"""Scratch inside operators: hand-computed sizes, and the CPU's own allocations where both devices run the same code."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from memcalc.engines.trace.cuda import scratch as module  # noqa: E402
from memcalc.engines.trace.cuda.checked import CHECKED  # noqa: E402
from memcalc.engines.trace.cuda.scratch import Scratch, load, scratch_of  # noqa: E402
from memcalc.engines.trace.cuda.scratch_attention import flash_splits  # noqa: E402
from memcalc.engines.trace.cuda.scratch_reduce import layout  # noqa: E402
from memcalc.kernels.behaviour import Behaviour, multiprocessors_of  # noqa: E402

aten = torch.ops.aten
H100, A100 = Behaviour(), Behaviour(capability=(8, 0), multiprocessors=108)
BF16 = torch.bfloat16


def sizes(func: Any, *args: Any, behaviour: Behaviour = H100, out: Any = None, **kwargs: Any) -> dict[str, int]:
    """Scratch by name, called on meta tensors."""
    result = func(*args, **kwargs) if out is None else out
    found = scratch_of(func, args, kwargs, result, behaviour)
    assert found is not None
    return {buffer.name: buffer.nbytes for buffer in found}


def meta(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_every_name_is_an_operator() -> None:
    """A misspelt operator would never be found: each name in the registry and in the list of checked ones exists in aten."""
    have = {name.partition("::")[2].partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    assert (set(load()) | CHECKED) <= have
    assert not set(load()) & CHECKED
    assert all(entry.source for entry in load().values())


def test_what_was_never_looked_at_is_told_apart() -> None:
    """None is not an empty list."""
    assert scratch_of(aten.relu.default, (meta(2),), {}, meta(2), H100) == []
    assert scratch_of(aten.linalg_svdvals.default, (meta(2, 2),), {}, meta(2), H100) is None


def test_a_formula_is_registered_once() -> None:
    """A second formula, or one for an operator said to need none, is an error of ours."""
    load()
    for name in ("sum", "relu"):
        with pytest.raises(ValueError, match="has a formula already, or is listed"):
            module.scratch(name, source="nowhere")(lambda *_: [])


def test_embedding_backward_of_a_large_vocabulary() -> None:
    """8192 tokens into 128256 rows of 4096: 819 + 8192 partial rows of fp32, by hand; up to 3072 tokens there is none."""
    args = (meta(4, 2048, 4096, dtype=BF16), meta(4, 2048, dtype=torch.long), 128256, -1, False)
    found = sizes(aten.embedding_dense_backward.default, *args)
    assert found["grad_weight_per_segment"] == (8192 // 10 + 8192) * 4096 * 4 == 147_636_224
    assert found["sorted_indices"] == found["segment_offsets"] == 8192 * 8
    assert found["partial_segment_offset"] == 9011 * 8
    small = (meta(3072, 64), meta(3072, dtype=torch.long), 100, -1, False)
    assert sizes(aten.embedding_dense_backward.default, *small) == {}


def test_flash_backward() -> None:
    """Dq in fp32 with rows rounded to 128, one row sum, and with grouped heads dk and dv of every query head."""
    q, k, lse = meta(2, 32, 1000, 128, dtype=BF16), meta(2, 8, 1000, 128, dtype=BF16), meta(2, 32, 1000)
    seed = meta(2, dtype=torch.uint64)
    grad = q.transpose(1, 2).contiguous().transpose(1, 2)
    args = (grad, q, k, k, grad, lse, None, None, 1000, 1000, 0.0, True, seed, seed)
    found = sizes(aten._scaled_dot_product_flash_attention_backward.default, *args)
    assert found == {
        "softmax_d": 4 * 2 * 32 * 1024,
        "dq_accum": 4 * 2 * 32 * 1024 * 128,
        "dk_expanded": 2 * 2 * 1000 * 32 * 128,
        "dv_expanded": 2 * 2 * 1000 * 32 * 128,
    }
    strided = sizes(aten._scaled_dot_product_flash_attention_backward.default, q, *args[1:4], q, *args[5:])
    assert strided["contiguous grad_out"] == strided["contiguous out"] == q.numel() * 2
    fixed = Behaviour(deterministic=True)
    assert sizes(aten._scaled_dot_product_flash_attention_backward.default, *args, behaviour=fixed)["dq_accum"] == (
        3 * found["dq_accum"]  # ceil(132 / 64) splits
    )


def test_flash_forward_splits_only_few_queries() -> None:
    """A training batch is not split; one query against 16384 keys is."""
    many, one, keys = meta(8, 32, 2048, 128, dtype=BF16), meta(1, 8, 1, 128, dtype=BF16), meta(1, 8, 16384, 128, dtype=BF16)
    func = aten._scaled_dot_product_flash_attention.default
    assert sizes(func, many, many, many) == {}
    splits = flash_splits(8, 132, 128)
    assert sizes(func, one, keys, keys) == {"softmax_lse_accum": 4 * splits * 8, "out_accum": 4 * splits * 8 * 128}


def test_cudnn_backward_is_a_bound() -> None:
    """What cuDNN asks for is its own to know, and the entry says so."""
    q = meta(2, 8, 64, 64, dtype=BF16)
    args = (q, q, q, q, q, meta(2, 8, 64, 1), meta(), meta(), None, None, None, 64, 64, 0.0, True)
    found = scratch_of(aten._scaled_dot_product_cudnn_attention_backward.default, args, {}, (q, q, q), H100)
    assert found == [Scratch("cuDNN workspace", 4 * 2 * 8 * 64 * (1 + 64), bound=True)]


def test_a_sum_over_rows_is_staged() -> None:
    """The gradient of a bias, (8192, 4096) in bf16 summed over rows, by hand from setReduceConfig.

    Columns are fastest: 4 outputs a thread, so dim0 = 1024, at most 128 threads; block 32 x 4; 4 warps take 2048 rows each
    (over 64, so split); grid = 1024 / 32 = 32; target = 132 * 2048 / 128 = 2112; ceil(2112 / 32) = 66 blocks, 128 by the least
    of 16 values a thread, 8 by the most of 256: 66. Staging = 4 bytes * 4096 * 66 * (32 * 4): 132 MiB, as global_memory_size
    has it.
    """
    found = sizes(aten.sum.dim_IntList, meta(8192, 4096, dtype=BF16), [0])
    assert found == {"partial results": 4 * 4096 * 66 * 128, "semaphores": 4 * 32}


def test_a_loss_is_staged_and_a_row_sum_is_not() -> None:
    """A full sum of 2**24 floats is one output over many blocks; rows of 4096 fit a block each."""
    found = sizes(aten.sum.default, meta(4096, 4096))
    # dim0 = 2**24 / 4 by vectorised input, block 512 x 1, 32768 values a thread; target = 132 * 4 = 528 blocks of one output
    assert found == {"partial results": 4 * 528, "semaphores": 4}
    assert sizes(aten.sum.dim_IntList, meta(4096, 4096), [1]) == {}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.data())
def test_reductions_keep_their_elements(shape: list[int], data: st.DataObject) -> None:
    """Whatever is reduced, inputs times outputs is the tensor, and there are partial results where there are semaphores."""
    dims = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1))
    tensor = meta(*shape)
    form = layout(shape, tensor.stride(), dims)
    assert form.inputs * form.outputs == tensor.numel()
    found = sizes(aten.sum.dim_IntList, tensor, dims)
    assert set(found) in (set(), {"partial results", "semaphores"})
    assert all(size % (4 * form.outputs) == 0 for name, size in found.items() if name == "partial results")


def test_matrix_products_copy_what_blas_cannot_read() -> None:
    """A transposed operand is read as it lies; an expanded gradient is copied."""
    a, w = meta(64, 32, dtype=BF16), meta(16, 32, dtype=BF16)
    assert sizes(aten.mm.default, a, w.t()) == {}
    assert sizes(aten.mm.default, meta(1, 1).expand(64, 32), w.float().t()) == {"contiguous self": 64 * 32 * 4}
    assert sizes(aten.bmm.default, meta(4, 8, 6).transpose(0, 1), meta(8, 12, 8)[:, ::2][:, :6]) == {}


def test_index_put_with_accumulation_sorts() -> None:
    """The backward of x[index]: four arrays of int64 and cub's own, a bound; without accumulation nothing."""
    x, index, values = meta(1000, 64), meta(500, dtype=torch.long), meta(500, 64)
    found = sizes(aten.index_put.default, x, [index], values, True)
    assert found["linearIndex"] == found["orig_indices"] == 4000
    assert sizes(aten.index_put.default, x, [index], values, False) == {}


def test_norms() -> None:
    """Group norm's a and b; layer norm's partial sums only for very many narrow rows."""
    x, w = meta(8, 64, 16, 16, dtype=BF16), meta(64, dtype=BF16)
    assert sizes(aten.native_group_norm.default, x, w, w, 8, 64, 256, 8, 1e-5) == {"a": 8 * 64 * 4, "b": 8 * 64 * 4}
    func = aten.native_layer_norm_backward.default
    for rows, want in ((8192, {}), (2**17, 4096)):
        y, g, s = meta(rows, 64), meta(64), meta(rows, 1)
        found = sizes(func, y, y, [64], s, s, g, g, [True, True, True])
        if want:
            assert found["dgamma_blocks"] == found["dbeta_blocks"] == want * 64 * 4
        else:
            assert found == {}


def test_layer_norm_copies_what_is_strided() -> None:
    """A transposed input and a strided weight are copied, on a CPU as on CUDA; what lies densely is not."""
    x, w = meta(100, 64), meta(100, 2)[:, 0]
    assert sizes(aten.native_layer_norm.default, x.t(), [100], w, None, 1e-5) == {
        "contiguous input": 64 * 100 * 4, "contiguous weight": 100 * 4,
    }  # fmt: skip
    assert sizes(aten.native_layer_norm.default, x, [64], None, None, 1e-5) == {}
    real = torch.randn(100, 64).t()
    assert {25600, 400} <= set(allocated(lambda: torch.nn.functional.layer_norm(real, (100,), torch.randn(100, 2)[:, 0])))


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float16, [2]), (torch.complex64, [4, 1]), (torch.int32, []), (torch.float32, [4])]
)
def test_isinf_looks_at_magnitudes(dtype: Any, expected: list[int]) -> None:
    """A magnitude for each element while the answer is made, as on a CPU; of complex numbers beside the other part's answer."""
    number = 64 * 100
    found = sizes(aten.isinf.default, meta(64, 100, dtype=dtype))
    assert list(found.values()) == [size * number for size in expected]
    real = [size for size in allocated(lambda: torch.zeros(64, 100, dtype=dtype).isinf())[1:] if abs(size) >= number]
    live = [sum(real[: place + 1]) for place in range(len(real))]
    assert max(live) == number + sum(found.values())  # the answer, a byte each


def allocated(function: Any) -> list[int]:
    """What a CPU allocates and frees in a call, in order."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        held = function()
    del held
    return [event.nbytes() for event in profile.kineto_results.events() if event.name() == "[memory]"]


def test_foreach_norm_matches_the_facts() -> None:
    """One fp32 for each tensor and each chunk of 65536 elements of the largest tensor."""
    tensors = [meta(65537, dtype=BF16), meta(10, dtype=BF16)]
    assert sizes(aten._foreach_norm.Scalar, tensors, 2.0, out=[meta(), meta()]) == {"output_per_tensor": 2 * 2 * 4}


def test_convolutions_copy_into_channels_last() -> None:
    """A planar weight meets a channels-last input: a copy of the weight; the workspace is flagged as a bound."""
    x = meta(2, 8, 16, 16, dtype=BF16).to(memory_format=torch.channels_last)
    w = meta(8, 8, 3, 3, dtype=BF16)
    args = (x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    found = scratch_of(aten.convolution.default, args, {}, x, H100)
    assert found is not None
    assert {b.name: b.bound for b in found} == {"weight in the kernel's layout": False, "cuDNN workspace": True}


def peak_inside(call: Any) -> int:
    """The most bytes a call holds on the CPU beyond what it returns, by the profiler's allocation events."""
    call()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        kept = call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = top = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        top = max(top, live)
    results = kept if isinstance(kept, tuple) else (kept,)
    return top - sum(t.numel() * t.element_size() for t in results)


COMPOSITE = [
    (aten.mse_loss.default, (torch.randn(4096), torch.randn(4096)), 0),
    (aten.mse_loss.default, (torch.randn(4096), torch.randn(4096), 0), 0),
    (aten.huber_loss.default, (torch.randn(4096), torch.randn(4096)), 0),
    (aten.smooth_l1_loss.default, (torch.randn(4096), torch.randn(4096)), 0),
    (aten._safe_softmax.default, (torch.randn(64, 64), -1), 64),
    (aten.logsumexp.default, (torch.randn(64, 64), [1]), 4 * 64),
]


@pytest.mark.parametrize(("func", "args", "slack"), COMPOSITE, ids=lambda value: str(value) if "aten" in str(value) else "")
def test_composite_kernels_against_the_cpus_allocations(func: Any, args: tuple[Any, ...], slack: int) -> None:
    """The code is one for both devices: what the CPU allocates inside is what the formula says, but for scalars and a row."""
    mine = scratch_of(func, args, {}, func(*args), H100)
    assert mine is not None
    assert abs(sum(b.nbytes for b in mine) - peak_inside(lambda: func(*args))) <= slack + 16


def test_multiprocessors_by_name() -> None:
    """The number of multiprocessors decides how reductions are split."""
    assert multiprocessors_of("h100-80gb") == 132
    assert multiprocessors_of("a100-40gb") == 108
    narrow = sizes(aten.sum.dim_IntList, meta(8192, 4096, dtype=BF16), [0], behaviour=A100)
    assert narrow["partial results"] == 4 * 4096 * 54 * 128  # ceil(108 * 16 / 32)
