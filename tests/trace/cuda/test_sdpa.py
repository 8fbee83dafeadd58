"""The backend CUDA's attention takes, and what each keeps and calls."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from memcalc.engines.trace.cuda.attention import attention, switched_on  # noqa: E402
from memcalc.engines.trace.cuda.sdpa import choose  # noqa: E402
from memcalc.kernels.behaviour import Behaviour  # noqa: E402
from tests.trace.cuda.seen import Seen, on_cpu_too, saved_by  # noqa: E402

A100, H100, T4, RTX = (Behaviour(capability=c) for c in ((8, 0), (9, 0), (7, 5), (8, 9)))
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def tensors(heads: int = 8, kv: int | None = None, dim: int = 64, length: int = 32, keys: int | None = None, dtype: Any = BF16):
    """Query, key and value on the meta device."""
    q = torch.empty(2, heads, length, dim, dtype=dtype, device="meta")
    k = torch.empty(2, kv or heads, keys or length, dim, dtype=dtype, device="meta")
    return q, k, k


MASK = torch.ones(2, 1, 32, 32, dtype=torch.bool, device="meta")
CASES = [
    ("flash on Ampere", A100, tensors(), {}, "flash"),
    ("cuDNN first on Hopper", H100, tensors(), {}, "cudnn"),
    ("not with the cuDNN of CUDA 12's wheels", Behaviour(torch=(2, 10), cuda=(12, 8)), tensors(), {}, "flash"),
    ("but with that of CUDA 13's", Behaviour(torch=(2, 10)), tensors(), {}, "cudnn"),
    ("nor in 2.9's, built against an older one", Behaviour(torch=(2, 9), cuda=(12, 8)), tensors(), {}, "flash"),
    ("nor in 2.8", Behaviour(torch=(2, 8)), tensors(), {}, "flash"),
    ("a mask rules flash out", A100, tensors(), {"attn_mask": MASK}, "efficient"),
    ("but not cuDNN", H100, tensors(), {"attn_mask": MASK}, "cudnn"),
    ("fp32 has only the efficient kernel", A100, tensors(dtype=FP32), {}, "efficient"),
    ("an odd head dimension is padded for flash", H100, tensors(dim=20), {}, "flash"),
    ("and has only math with a mask", A100, tensors(dim=20), {"attn_mask": MASK}, "math"),
    ("bf16 before Ampere", T4, tensors(), {}, "math"),
    ("fp16 before Ampere", T4, tensors(dtype=FP16), {}, "efficient"),
    ("grouped heads in flash", A100, tensors(kv=2), {"enable_gqa": True}, "flash"),
    ("grouped heads with a mask", A100, tensors(kv=2), {"enable_gqa": True, "attn_mask": MASK}, "math"),
    ("grouped heads with a mask on Hopper", H100, tensors(kv=2), {"enable_gqa": True, "attn_mask": MASK}, "cudnn"),
    ("unequal lengths and causal", A100, tensors(keys=64), {"is_causal": True}, "efficient"),
    ("head dimension 256 trains on Hopper's cuDNN", H100, tensors(dim=256), {}, "cudnn"),
    ("head dimension 224 does not train with flash on Ada", RTX, tensors(dim=224), {}, "efficient"),
    ("but infers", RTX, tensors(dim=224), {"requires_grad": False}, "flash"),
    ("head dimension over 256", A100, tensors(dim=288), {}, "efficient"),
    ("dropout of no sixteenth", H100, tensors(), {"dropout_p": 0.1}, "flash"),
    ("dropout of two sixteenths", H100, tensors(), {"dropout_p": 0.125}, "cudnn"),
    ("three dimensions", A100, tuple(t[0] for t in tensors()), {}, "math"),
    ("deterministic", Behaviour(deterministic=True), tensors(), {}, "flash"),
]


@pytest.mark.parametrize(("why", "behaviour", "qkv", "options", "backend"), CASES, ids=[case[0] for case in CASES])
def test_the_backend(why: str, behaviour: Behaviour, qkv: Any, options: dict[str, Any], backend: str) -> None:
    """Each check of sdp_utils.cpp sends a call where it would go."""
    chosen = choose(*qkv, **options, behaviour=behaviour)
    assert chosen.backend == backend, chosen.reasons


def test_reasons_are_given() -> None:
    """Whoever asks why a backend was passed over is told, by the name of the check."""
    assert "check_for_attn_mask" in choose(*tensors(), MASK, behaviour=A100).reasons["flash"]


def test_none_enabled_is_an_error() -> None:
    """As PyTorch: no available kernel."""
    with pytest.raises(RuntimeError, match="No available kernel"):
        choose(*tensors(), MASK, behaviour=A100, enabled=["flash"])


def test_the_programs_own_switches_are_heeded() -> None:
    """sdpa_kernel and enable_flash_sdp change the choice, with no CUDA about."""
    assert switched_on(A100) is None
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert switched_on(A100) == ("math",)
    backends = [torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION, torch.nn.attention.SDPBackend.FLASH_ATTENTION]
    with torch.nn.attention.sdpa_kernel(backends, set_priority=True):
        assert switched_on(H100) == ("efficient", "flash")


def run(behaviour: Behaviour, q: Any, k: Any, v: Any, **options: Any) -> tuple[Any, list[Any], Seen, Seen]:
    """Output, what was saved, and the operators of forward and backward."""
    forward, backward = Seen(), Seen()
    with on_cpu_too(behaviour):
        with forward, saved_by() as saved:
            out = F.scaled_dot_product_attention(q, k, v, **options)
        with backward:
            out.backward(torch.empty_like(out))
    return out, saved, forward, backward


def real(*shape: int, dtype: Any = BF16) -> Any:
    """A leaf as transformers makes it: (batch, length, heads, dim), transposed."""
    return torch.empty(*shape, dtype=dtype, requires_grad=True).transpose(1, 2)


def sizes(saved: list[Any]) -> list[tuple[tuple[int, ...], Any]]:
    return [(tuple(t.shape), t.dtype) for t in saved]


def test_flash_keeps_its_padded_inputs_and_an_fp32_row() -> None:
    """q, k, v and the output, head dimension 20 padded to 24; logsumexp of 4 bytes a row; the generator's state."""
    with FakeTensorMode():
        out, saved, forward, backward = run(A100, real(2, 10, 4, 20), real(2, 10, 2, 20), real(2, 10, 2, 20), enable_gqa=True)
    q, kv = ((2, 4, 10, 24), BF16), ((2, 2, 10, 24), BF16)
    want = [q, kv, kv, ((2, 4, 10), FP32), q, ((2,), torch.uint64), ((), torch.uint64)]
    assert sorted(map(str, sizes(saved))) == sorted(map(str, want))
    assert tuple(out.shape) == (2, 4, 10, 20)
    assert forward.count("constant_pad_nd") == 3
    assert backward.count("_scaled_dot_product_flash_attention_backward") == 1


def test_efficient_takes_an_additive_mask_with_aligned_rows() -> None:
    """A boolean mask becomes one of the query's dtype, its rows padded from 10 to 16; logsumexp's rows are padded to 32."""
    with FakeTensorMode():
        mask = torch.ones(2, 1, 10, 10, dtype=torch.bool)
        _, saved, forward, _ = run(A100, real(2, 10, 4, 16), real(2, 10, 4, 16), real(2, 10, 4, 16), attn_mask=mask)
        bias = next(t for t in saved if tuple(t.shape) == (2, 4, 10, 10))
        assert bias.untyped_storage().nbytes() == 2 * 10 * 16 * 2
        assert ((2, 4, 32), FP32) in sizes(saved)
        assert forward.count("where") == 1


def test_an_aligned_mask_is_not_copied() -> None:
    """An additive mask of 16 keys goes in as a view."""
    with FakeTensorMode():
        mask = torch.zeros(2, 1, 16, 16, dtype=BF16)
        _, saved, forward, _ = run(A100, real(2, 16, 4, 16), real(2, 16, 4, 16), real(2, 16, 4, 16), attn_mask=mask)
        assert forward.count("constant_pad_nd") == forward.count("where") == 0
        assert any(t.untyped_storage()._cdata == mask.untyped_storage()._cdata for t in saved)


def test_cudnn_keeps_the_same_as_flash() -> None:
    """Inputs, output, a row of fp32 and two scalars; no copy of grouped keys."""
    with FakeTensorMode():
        _, saved, forward, backward = run(H100, real(2, 16, 4, 64), real(2, 16, 2, 64), real(2, 16, 2, 64), enable_gqa=True)
    assert forward.count("_scaled_dot_product_cudnn_attention") == 1
    assert backward.count("_scaled_dot_product_cudnn_attention_backward") == 1
    assert sum(t.numel() * t.element_size() for t in saved if t.dtype is BF16) == 2 * 16 * 64 * 2 * (4 + 2 + 2 + 4)


def test_math_is_the_right_sum() -> None:
    """The restated math path gives PyTorch's own numbers, causal and masked, and adds the mask in place."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 7, requires_grad=True) for _ in range(3))
    mask = torch.randn(5, 5)
    for options in ({"is_causal": True}, {"attn_mask": mask}, {"attn_mask": mask > 0}, {"scale": 0.3}, {}):
        seen = Seen()
        with seen:
            mine = attention(q, k, v, **options, enabled=["math"])
        torch.testing.assert_close(mine, F.scaled_dot_product_attention(q, k, v, **options))
        assert seen.count("add_") == (0 if options.keys() <= {"scale"} else 1)


def test_math_in_half_precision_works_in_fp32() -> None:
    """Three fp32 copies, and fp32 scores (attention.cpp: unless allow_fp16_bf16_reduction_math_sdp)."""
    with FakeTensorMode():
        _, saved, _, _ = run(T4, real(2, 10, 4, 16), real(2, 10, 4, 16), real(2, 10, 4, 16), is_causal=True)
    assert {t.dtype for t in saved} == {FP32}
    assert math.isclose(sum(t.numel() for t in saved if t.shape[-2:] == (10, 10)), 2 * 2 * 4 * 10 * 10)
