"""CUDA's autocast on fake CUDA tensors."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop  # noqa: E402

from memcalc.engines.trace.cuda.autocast import cuda_autocast, registered  # noqa: E402
from memcalc.engines.trace.cuda.autocast_lists import lists  # noqa: E402
from tests.trace.cuda.seen import on_gpu  # noqa: E402

INSTALLED = tuple(int(part) for part in torch.__version__.split(".")[:2])


@pytest.fixture(autouse=True)
def gpu(request):
    """Everything is made on a GPU that is not there, but where a test looks at PyTorch itself."""
    if "lists" in request.node.name:
        yield
        return
    with on_gpu():
        yield


def test_the_lists_are_those_this_torch_registers_for_cuda() -> None:
    """A CPU wheel holds CUDA's autocast kernels, all but cuDNN's: ours name the same operators, none more, none less."""
    ours = {op for ops in lists(INSTALLED).values() for op in ops}
    ours |= {"_cudnn_rnn"} & registered("AutocastCUDA")  # a CUDA build's; ours is a kernel of its own
    theirs = {op for op in registered("AutocastCUDA") if "Dimname" not in op and "dimname" not in op and "names" not in op}
    assert ours == theirs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_each_policy_casts_as_cuda_does(dtype: torch.dtype) -> None:
    """Matrix products go low, softmax, norms and sums go to fp32, mixed arguments are promoted, doubles are left alone."""
    x, low = torch.randn(2, 4), torch.randn(2, 4, dtype=dtype)
    with cuda_autocast(), torch.autocast("cuda", dtype=dtype):
        assert torch.mm(x, x.t()).dtype is dtype
        assert F.conv2d(torch.randn(1, 1, 4, 4), torch.randn(1, 1, 2, 2)).dtype is dtype
        assert F.prelu(low, torch.ones(1)).dtype is dtype
        for fp32 in (
            low.exp(),
            low.softmax(-1),
            torch.log_softmax(low, -1),
            low.sum(),
            low.cumsum(0),
            low.norm(),
            low.norm(2, -1),
        ):
            assert fp32.dtype is torch.float32
        assert F.layer_norm(low, (4,)).dtype is torch.float32
        assert torch.softmax(low, -1, dtype=dtype).dtype is dtype
        assert torch.addcmul(x, low, low).dtype is torch.float32
        assert torch.addcmul(low, low, low).dtype is dtype
        assert torch.mm(x.double(), x.double().t()).dtype is torch.float64
        assert F.gelu(x).dtype is torch.float32


def test_what_only_the_cpu_casts_is_left_alone() -> None:
    """``grid_sampler_2d`` and ``view_as_complex`` are on the CPU's fp32 list and on none of CUDA's."""
    low = torch.randn(2, 2, dtype=torch.float16)
    assert "trace" in registered("AutocastCPU")
    with cuda_autocast(), FakeTensorMode() as fake, torch.autocast("cuda", dtype=torch.float16):
        assert torch.trace(fake.from_tensor(low)).dtype is torch.float16


def test_binary_cross_entropy_is_refused() -> None:
    """As CUDA refuses it, and the CPU does not."""
    with cuda_autocast(), torch.autocast("cuda"), pytest.raises(RuntimeError, match="unsafe to autocast"):
        F.binary_cross_entropy(torch.rand(2), torch.rand(2))


def test_the_weight_cache() -> None:
    """One copy of a trainable fp32 leaf per region; none of a frozen one, a view, an activation; dropped at the outer exit."""
    layer, frozen, x = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4).requires_grad_(False), torch.randn(2, 4)
    with cuda_autocast() as caster:
        with torch.autocast("cuda"):
            layer(x)
            assert sorted(copy.shape for copy in caster.cached_weights()) == [(4,), (4, 4)]
            kept = caster.cached_weights()[0]
            layer(layer(x))
            assert caster.cached_weights()[0] is kept
            frozen(x)
            torch.mm(x, layer.weight.t())
            assert len(caster.cached_weights()) == 2
            with torch.autocast("cuda", enabled=False):
                assert layer(x).dtype is torch.float32
            assert len(caster.cached_weights()) == 2
        assert not caster.cached_weights()
        with torch.autocast("cuda", cache_enabled=False):
            layer(x)
            assert not caster.cached_weights()


class Products(TorchDispatchMode):
    """The dtypes of the matrix products that were really called."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
            self.dtypes.add(out.dtype)
        return out


def test_gradients_flow_to_fp32_on_fake_tensors() -> None:
    """A loss through composite C++ functions gives fp32 gradients, and the parameters' own."""
    mixer, head = torch.nn.Parameter(torch.randn(3, 7)), torch.nn.Linear(8, 5)
    products = Products()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        with products:
            hidden = torch.einsum("bti,tj->bji", torch.randn(2, 3, 8), mixer)  # composite: at::bmm, in C++
        logits = head(hidden)
        loss = F.cross_entropy(logits.flatten(0, 1), torch.zeros(14, dtype=torch.long))
    assert products.dtypes == {torch.bfloat16}
    assert logits.dtype is torch.bfloat16
    assert loss.dtype is torch.float32
    loss.backward()
    assert {p.grad.dtype for p in (mixer, *head.parameters())} == {torch.float32}


def test_host_tensors_are_left_alone() -> None:
    """CUDA's autocast passes by what lives on the CPU."""
    with torch.autocast("cuda"):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype is torch.float16
        assert torch.mm(torch.ones(3, 3, device="cpu"), torch.ones(3, 3, device="cpu")).dtype is torch.float32


def test_the_ways_to_ask_for_it() -> None:
    """Each spelling enables it, silently; the state reads as on a machine with CUDA, and the CPU's state is not touched."""
    spellings = [
        lambda: torch.autocast("cuda", torch.bfloat16),
        lambda: torch.amp.autocast("cuda", dtype=torch.bfloat16),
        lambda: torch.cuda.amp.autocast(dtype=torch.bfloat16),
    ]
    with cuda_autocast():
        for spelling in spellings:
            with spelling():
                assert torch.is_autocast_enabled("cuda")
                assert torch.is_autocast_enabled()
                assert not torch.is_autocast_enabled("cpu")
                assert torch.get_autocast_dtype("cuda") is torch.bfloat16
                assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype is torch.bfloat16
            assert not torch.is_autocast_enabled("cuda")
        assert torch.amp.GradScaler("cuda").is_enabled()


def test_checkpointed_layers_are_recomputed_under_the_same_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.utils.checkpoint stores and restores CUDA's state and the CPU's; the recomputed product is low precision too."""
    seen = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        y = torch.mm(x, x)
        seen.append(y.dtype)
        return y

    monkeypatch.setattr(torch.utils.checkpoint, "_infer_device_type", lambda *_: "cuda")  # as a trace's tensors make it say
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    x = torch.ones(2, 2, requires_grad=True)
    with cuda_autocast(), set_checkpoint_early_stop(False):
        with torch.autocast("cuda"):
            y = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
        y.float().sum().backward()
    assert seen == [torch.float16, torch.float16]


def test_everything_is_put_back_lists_and_all() -> None:
    """After two uses the autocasts of CPU and CUDA, their lists and what was patched are what they were."""
    before = torch.clear_autocast_cache, registered("AutocastCPU"), registered("AutocastCUDA")
    for _ in range(2):
        with on_gpu(), torch.autocast("cuda"):
            assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype is torch.float16
    assert (torch.clear_autocast_cache, registered("AutocastCPU"), registered("AutocastCUDA")) == before
    with torch.autocast("cpu"):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype is torch.bfloat16
    assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype is torch.float32
