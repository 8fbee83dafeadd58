"""Results as CUDA makes them, and the workspaces that stay."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses import FakeTensorMode  # noqa: E402

from memcalc.engines.trace.cuda.results import corrected, host_results, instead  # noqa: E402
from memcalc.kernels.behaviour import Behaviour  # noqa: E402
from memcalc.kernels.workspaces import Workspaces, cublas_workspace, cublaslt_workspace, goes_to_lt  # noqa: E402

aten = torch.ops.aten
BF16, FP32 = torch.bfloat16, torch.float32
MIB = 2**20


def as_cuda(func: Any, *args: Any, behaviour: Behaviour | None = None) -> Any:
    return corrected(func, args, {}, func(*args), behaviour or Behaviour())


def test_statistics_are_of_the_accumulation_dtype() -> None:
    """Layer and batch norm of bf16 keep fp32 means, where the meta function says bf16; cuDNN's are of the weight's dtype."""
    with FakeTensorMode():
        x, w = torch.empty(2, 8, 4, 4, dtype=BF16), torch.ones(8)
        out = as_cuda(aten.native_layer_norm.default, torch.empty(2, 8, dtype=BF16), [8], None, None, 1e-5)
        assert [t.dtype for t in out] == [BF16, FP32, FP32]
        out = as_cuda(aten.native_batch_norm.default, x, w, w, None, None, True, 0.1, 1e-5)
        assert [t.dtype for t in out] == [BF16, FP32, FP32]
        out = as_cuda(aten.cudnn_batch_norm.default, x.half(), w, w, w, w, True, 0.1, 1e-5)
        assert [(t.dtype, t.numel()) for t in out[1:3]] == [(FP32, 8), (FP32, 8)]
        out = as_cuda(aten.cudnn_batch_norm.default, x.half(), w, w, w, w, False, 0.1, 1e-5)
        assert [t.numel() for t in out[1:3]] == [0, 0]
        out = as_cuda(aten.native_group_norm.default, x, w, w, 2, 8, 16, 2, 1e-5)
        assert [t.dtype for t in out] == [BF16, FP32, FP32]
        out = as_cuda(aten.native_group_norm.default, x, w.bfloat16(), w.bfloat16(), 2, 8, 16, 2, 1e-5)
        assert [t.dtype for t in out] == [BF16, BF16, BF16]


def test_buffers_only_the_cpu_needs_are_empty() -> None:
    """log_sigmoid's buffer, and cuDNN attention's statistics where no gradient is wanted."""
    with FakeTensorMode():
        assert as_cuda(aten.log_sigmoid_forward.default, torch.empty(3, 4))[1].numel() == 0
        q = torch.empty(2, 4, 16, 64, dtype=BF16)
        for wanted, rows in ((True, 2 * 4 * 16), (False, 0)):
            assert as_cuda(aten._scaled_dot_product_cudnn_attention.default, q, q, q, None, wanted)[1].numel() == rows


def test_the_gradient_of_a_bias_has_whole_rows() -> None:
    """Efficient attention's, (2, 3, 20, 33) in rows of 48, in memory to the end of the last: 15 elements of 2 bytes beyond."""
    func = aten._scaled_dot_product_efficient_attention_backward.default
    with FakeTensorMode():
        q, k = torch.empty(2, 3, 20, 16, dtype=BF16), torch.empty(2, 3, 33, 16, dtype=BF16)
        bias, statistics = torch.empty(2, 3, 20, 33, dtype=BF16), torch.empty(2, 3, 32)
        seed = torch.empty((), dtype=torch.long)
        for _ in range(2):  # the second time it is found in a cache
            out = as_cuda(func, q, q, k, k, bias, q, statistics, seed, seed, 0.0, [True, True, True, True])
            assert out[3].shape == bias.shape
            assert out[3].untyped_storage().nbytes() == 2 * 3 * 20 * 48 * 2
        assert as_cuda(func, q, q, k, k, None, q, statistics, seed, seed, 0.0, [True, True, True, False])[3] is None


def test_an_embedding_bag_keeps_a_bag_for_every_index() -> None:
    """offset2bag is as long as the indices on CUDA; the CPU's sum leaves it empty."""
    with FakeTensorMode():
        index, offsets = torch.empty(6, dtype=torch.long), torch.empty(2, dtype=torch.long)
        out = as_cuda(aten._embedding_bag.default, torch.empty(10, 4), index, offsets)
    assert [tuple(t.shape) for t in out] == [(2, 4), (6,), (2,), (0,)]


def test_convolutions_give_channels_last_where_either_operand_is() -> None:
    """Whatever the CPU's backend would choose for that dtype."""
    with FakeTensorMode():
        for dtype in (torch.float16, FP32):
            x, w = torch.empty(2, 8, 6, 6, dtype=dtype), torch.empty(8, 8, 3, 3, dtype=dtype)
            for a, b, last in ((x, w, False), (x.to(memory_format=torch.channels_last), w, True)):
                out = as_cuda(aten.convolution.default, a, b, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
                assert out.is_contiguous(memory_format=torch.channels_last) == last


def test_results_that_need_no_correction_are_themselves() -> None:
    """No copy, no new tensor: the engine's storages stay the ones it tracks."""
    x = torch.ones(2)
    assert corrected(aten.relu.default, (x,), {}, x, Behaviour()) is x
    y = (x, torch.ones(2, 1), torch.ones(2, 1))
    assert all(a is b for a, b in zip(corrected(aten.native_layer_norm.default, (x, [2]), {}, y, Behaviour()), y, strict=True))


def test_grouped_products_of_any_float() -> None:
    """fp16 and fp32 go where the meta function refuses them; the shapes and padded rows are those it gives for bf16."""
    offsets = torch.empty(4, dtype=torch.int32, device="meta")
    cases = [((32, 8), (4, 8, 20)), ((32, 8), (8, 20)), ((4, 32, 8), (8, 20)), ((4, 32, 8), (4, 8, 20))]
    for left, right in cases:
        flat = len(left) == 2 or len(right) == 2
        low = [torch.empty((*shape[:-1], 24), dtype=BF16, device="meta")[..., : shape[-1]] for shape in (left, right)]
        want = aten._grouped_mm.default(*low, offsets if flat else None)
        made = instead(aten._grouped_mm.default, [t.half() for t in low] + [offsets if flat else None], {}, Behaviour())
        assert made.shape == want.shape
        assert made.dtype is torch.float16
        assert made.stride()[-2] == 24  # 20 halves, to 16 bytes
    assert instead(aten._grouped_mm.default, low, {"offs": None}, Behaviour()) is NotImplemented
    assert instead(aten.relu.default, low[:1], {}, Behaviour()) is NotImplemented


def test_seeds_on_the_host() -> None:
    """Memory-efficient attention's seed and offset are host scalars; flash's were, up to 2.6."""
    assert host_results("_scaled_dot_product_efficient_attention", Behaviour()) == (2, 3)
    assert host_results("_scaled_dot_product_flash_attention", Behaviour()) == ()
    assert host_results("_scaled_dot_product_flash_attention", Behaviour(torch=(2, 6))) == (6, 7)


@pytest.mark.parametrize(
    ("capability", "version", "size"),
    [
        ((9, 0), (2, 6), 32 * MIB),
        ((8, 0), (2, 13), 8_519_680),
        ((10, 0), (2, 11), 8_519_680),
        ((10, 0), (2, 12), 32 * MIB),
        ((12, 0), (2, 13), 32 * MIB),
        ((7, 5), (2, 13), 8_519_680),
    ],
)
def test_cublas_workspace(capability: tuple[int, int], version: tuple[int, int], size: int) -> None:
    """32 MiB on Hopper, on Blackwell since 2.12, else the 8519680 bytes an A10G was seen to keep (pytorch#95668)."""
    assert cublas_workspace(Behaviour(capability=capability, torch=version)) == size


def test_cublas_workspace_config() -> None:
    """The variable's sizes are KiB times counts, added up; what cannot be parsed leaves the default."""
    assert cublas_workspace(Behaviour(), ":4096:2:16:8") == 8_519_680
    assert cublas_workspace(Behaviour(), ":16:8") == 131_072
    assert cublas_workspace(Behaviour(), "nonsense") == 32 * MIB


def test_one_workspace_a_thread_and_stream() -> None:
    """Forward and backward threads each get one at their first product, then none; another stream gets its own."""
    live = Workspaces(Behaviour())
    assert live.first_use("add", thread="forward") == []
    assert live.first_use("addmm", thread="forward", lt=True) == [("cublas", 32 * MIB)]
    assert live.first_use("mm", thread="forward") == []
    assert live.first_use("mm", thread="autograd") == [("cublas", 32 * MIB)]
    assert live.first_use("mm", thread="forward", stream=1) == [("cublas", 32 * MIB)]


def test_cublaslt_by_version() -> None:
    """A temporary up to 2.6, its own persistent MiB from 2.7 to 2.11, shared since 2.12; all temporary in 2.14."""
    for version, born, during in (
        ((2, 6), [("cublas", 32 * MIB)], [("cublaslt", MIB)]),
        ((2, 10), [("cublas", 32 * MIB), ("cublaslt", MIB)], []),
        ((2, 13), [("cublas", 32 * MIB)], []),
        ((2, 14), [], [("cublaslt", MIB)]),
    ):
        live = Workspaces(Behaviour(torch=version))
        assert live.first_use("addmm", thread="forward", lt=True) == born
        assert live.transient("addmm", lt=True) == during
    assert cublaslt_workspace(Behaviour(torch=(2, 10)), unified=True) == 0
    assert cublaslt_workspace(Behaviour(torch=(2, 10)), kib=512) == 512 * 1024


def test_which_products_go_to_lt() -> None:
    """A linear layer with a bias does; one with a matrix to add, or a single row, does not."""
    bias, x, w = torch.ones(4), torch.ones(8, 3), torch.ones(3, 4)
    assert goes_to_lt("addmm", {"self": bias, "mat1": x, "mat2": w})
    assert not goes_to_lt("addmm", {"self": torch.ones(8, 4), "mat1": x, "mat2": w})
    assert not goes_to_lt("addmm", {"self": bias, "mat1": x[:1], "mat2": w})
    assert not goes_to_lt("mm", {})
