"""Composite functions take CUDA's road: what each calls, keeps and allocates."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from memcalc.engines.trace.cuda.modes import WHERE_CUDA_DIFFERS, kernels  # noqa: E402
from memcalc.engines.trace.cuda.results import instead  # noqa: E402
from memcalc.kernels.behaviour import Behaviour  # noqa: E402
from tests.trace.cuda.seen import Seen, on_cpu_too, on_gpu, saved_by  # noqa: E402

FP16, BF16 = torch.float16, torch.bfloat16


def test_every_difference_listed_is_restated() -> None:
    """The list with sources and the kernels are the same set."""
    assert set(WHERE_CUDA_DIFFERS) == set(kernels(Behaviour()))


def test_dropout_keeps_a_mask_of_bytes() -> None:
    """F.dropout in training keeps one byte an element; p of 0, and evaluation, keep nothing."""
    x = torch.ones(3, 4, requires_grad=True)
    with on_cpu_too():
        with saved_by() as saved:
            y = F.dropout(x, 0.5)
        assert [(t.dtype, t.numel()) for t in saved] == [(torch.bool, 12)]
        assert set(y.unique().tolist()) <= {0.0, 2.0}
        with saved_by() as saved:
            F.dropout(x, 0.0)
            F.dropout(x, 0.5, training=False)
        assert not saved


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax, torch.softmax, torch.Tensor.softmax, torch.Tensor.log_softmax])
def test_softmax_of_halves_to_float_makes_no_copy(function: Any) -> None:
    """One operator from fp16 to fp32; from bf16 a cast comes first, on CUDA too."""
    with FakeTensorMode(), on_cpu_too():
        for dtype, casts in ((FP16, 0), (BF16, 1)):
            seen, x = Seen(), torch.empty(2, 3, dtype=dtype, requires_grad=True)
            with seen:
                y = function(x, dim=-1, dtype=torch.float32)
                y.sum().backward()
            assert y.dtype is torch.float32
            assert x.grad.dtype is dtype
            assert seen.count("_to_copy") == 2 * casts


def test_batch_norm_takes_cudnn_or_the_native_kernel() -> None:
    """fp16 with fp32 weights and fp32 go to cuDNN, bf16 and two dimensions do not; the numbers stay right in evaluation."""
    w, m, v = (torch.ones(8) for _ in range(3))
    for shape, dtype, kernel in (
        ((2, 8, 4, 4), FP16, "cudnn_batch_norm"),
        ((2, 8, 4, 4), torch.float32, "cudnn_batch_norm"),
        ((2, 8, 4, 4), BF16, "native_batch_norm"),
        ((2, 8), torch.float32, "native_batch_norm"),
    ):
        with FakeTensorMode(allow_non_fake_inputs=True), on_cpu_too(), Seen() as seen:
            x = torch.empty(shape, dtype=dtype, requires_grad=True)
            F.batch_norm(x, m, v, w, w, training=True).float().sum().backward()
        assert seen.count(kernel) == seen.count(kernel + "_backward") == 1
    with FakeTensorMode(allow_non_fake_inputs=True), on_cpu_too(), Seen() as seen:
        torch.nn.InstanceNorm2d(8, affine=True)(torch.empty(2, 8, 4, 4))
    assert seen.count("cudnn_batch_norm") == 1


def test_group_norm_copies_a_channels_last_input() -> None:
    """CUDA's kernel wants contiguous input: one copy, which is what is kept."""
    with FakeTensorMode(), on_cpu_too():
        x = torch.empty(2, 8, 4, 4, requires_grad=True).to(memory_format=torch.channels_last)
        with Seen() as seen, saved_by() as saved:
            F.group_norm(x, 2, torch.ones(8), torch.ones(8))
    assert seen.count("clone") == 1
    assert saved[0].is_contiguous()


def test_rms_norm_is_one_operator() -> None:
    """Kept: input, weight and one fp32 scalar a row; composite up to 2.8, and where dtypes differ."""
    for behaviour, weight_dtype, fused in (
        (Behaviour(), BF16, 1),
        (Behaviour(torch=(2, 8)), BF16, 0),
        (Behaviour(), torch.float32, 0),
    ):
        with FakeTensorMode(), on_cpu_too(behaviour):
            x, w = (
                torch.empty(2, 3, 16, dtype=BF16, requires_grad=True),
                torch.empty(16, dtype=weight_dtype, requires_grad=True),
            )
            with Seen() as seen, saved_by() as saved:
                y = F.rms_norm(x, (16,), w)
            y.sum().backward()
        assert seen.count("_fused_rms_norm") == fused
        if fused:
            assert [(tuple(t.shape), t.dtype) for t in saved] == [((2, 3, 16), BF16), ((16,), BF16), ((2, 3, 1), torch.float32)]
        assert x.grad.shape == x.shape
        assert w.grad.dtype is weight_dtype


def test_a_bias_is_added_in_place() -> None:
    """A transposed input to a linear layer costs no second output."""
    with FakeTensorMode(), on_cpu_too(), Seen() as seen:
        F.linear(torch.empty(5, 2, 8).transpose(0, 1), torch.empty(4, 8), torch.empty(4))
        F.linear(torch.empty(5, 2, 8), torch.empty(4, 8), torch.empty(4))
    assert (seen.count("add_"), seen.count("add"), seen.count("addmm")) == (1, 0, 1)


def test_one_hot_writes_into_zeros() -> None:
    """The same numbers, without a comparison of every class."""
    index = torch.tensor([[0, 2], [1, 1]])
    want = F.one_hot(index, 3)
    with on_cpu_too(), Seen() as seen:
        assert torch.equal(F.one_hot(index, 3), want)
    assert seen.count("scatter_") == 1
    assert seen.count("eq") == 0


class Engine(Seen):
    """As the engine calls: operators CUDA runs and the meta functions do not are made up instead."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = instead(func, args, kwargs or {}, Behaviour())
        if made is NotImplemented:
            return super().__torch_dispatch__(func, types, args, kwargs)
        self.calls[func._schema.name.removeprefix("aten::")] += 1
        return made


@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent_layers_are_one_operator(layer: Any) -> None:
    """One call forward and one backward for all layers; kept: input, output and a reserve; every weight gets a gradient."""
    with FakeTensorMode(), on_cpu_too(), Engine() as seen:
        module = layer(8, 16, 2, batch_first=True, dropout=0.5, bidirectional=True)
        x = torch.empty(3, 5, 8, requires_grad=True)
        with saved_by() as saved:
            out = module(x)[0]
        out.sum().backward()
    assert tuple(out.shape) == (3, 5, 32)
    assert seen.count("_cudnn_rnn") == seen.count("_cudnn_rnn_backward") == 1
    assert any(t.dtype is torch.uint8 and t.numel() > 0 for t in saved)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in module.parameters())


def test_recurrent_layers_under_autocast() -> None:
    """fp16 whatever was asked for; the weights are copied into one half buffer, and their gradients are fp32."""
    with on_gpu(), Engine():
        module = torch.nn.LSTM(8, 16, 2)
        with torch.autocast("cuda", dtype=FP16), saved_by() as saved:
            out = module(torch.empty(5, 3, 8))[0]
        out.float().sum().backward()
        weights = sum(p.numel() for p in module.parameters())
        assert 2 * weights in {t.untyped_storage().nbytes() for t in saved}
    assert out.dtype is FP16
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}


def test_a_layer_of_a_transformer_under_autocast() -> None:
    """Autocast, attention and dropout meet in one C++ and Python mixture, forward and backward, on fake tensors."""
    with on_gpu("a100-80gb"), Seen() as seen:
        layer = torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
        x = torch.empty(2, 16, 64, requires_grad=True)
        with torch.autocast("cuda", dtype=BF16):
            layer(x).float().sum().backward()
    assert seen.count("_scaled_dot_product_flash_attention") == 1
    assert seen.count("native_dropout") == seen.count("native_dropout_backward") == 3
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in layer.parameters())


def test_the_cpus_road_comes_back() -> None:
    """After the block, dropout and softmax are the CPU's again."""
    with on_cpu_too():
        pass
    with Seen() as seen:
        F.dropout(torch.ones(3, requires_grad=True), 0.5)
        F.softmax(torch.ones(3, dtype=FP16), -1, dtype=torch.float32)
    assert seen.count("native_dropout") == 0
    assert seen.count("_to_copy") == 1
