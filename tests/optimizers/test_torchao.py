"""torchao: every storage inside each wrapped state, against the real classes, run without the compiler."""

from __future__ import annotations

import contextlib
import inspect
from unittest import mock

import pytest

torch = pytest.importorskip("torch", reason="the oracle runs real optimizers")
pytest.importorskip("torchao", reason="the oracle is torchao's own optimizers")

import torchao.optim  # noqa: E402

import memcalc.optimizers.torchao  # noqa: E402, F401  registers the entries
from memcalc.errors import InputError  # noqa: E402
from memcalc.optimizers.base import OPTIMIZERS, Param  # noqa: E402
from tests.optimizers.arrays import assert_arrays_equal_scalars  # noqa: E402
from tests.optimizers.walk import assert_held_as_promised, described, held, parameters, promised, take_steps  # noqa: E402

NAMES = sorted(name for name in OPTIMIZERS if name.startswith("torchao:"))
OFFLOADING = [name for name in NAMES if "CPUOffload" in name]
ADAMS = [name for name in NAMES if name not in OFFLOADING]
SHAPES = [(), (7,), (4095,), (64, 64), (4097,), (64, 66), (16, 17, 16), (2, 2, 32, 33)]
"""Below, at and above 4096 elements; multiples of 256, of 128 alone (4224), and of neither."""


def build(name, params, **arguments):
    return getattr(torchao.optim, name.split(":")[1])(params, **arguments)


def eager():
    """The step without torch.compile, which changes the kernels and not the states."""
    return mock.patch("torch.compile", lambda function, **_: function)


@pytest.mark.parametrize("name", ADAMS)
def test_options_are_the_constructors(name):
    """An entry knows exactly its constructor's arguments, by name and by default."""
    entry = OPTIMIZERS.get(name)
    signature = inspect.signature(getattr(torchao.optim, name.split(":")[1]).__init__)
    real = {key: value.default for key, value in signature.parameters.items() if key not in ("self", "params")}
    assert {*entry.options, *entry.ignored} == set(real)
    assert entry.options == {key: real[key] for key in entry.options}


def test_every_class_is_known():
    """No optimizer the library exports is missing."""
    assert {name.split(":")[1].split("+")[0] for name in NAMES} == set(torchao.optim.__all__)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ADAMS)
def test_states_equal_the_real_ones(name, dtype):
    """Codes, scales, tables and plain states are the registry's, tensor by tensor, with the learning rate once."""
    params = parameters(SHAPES, dtype)
    optimizer = build(name, params)
    with eager():
        take_steps(optimizer, params, 1)
    assert_held_as_promised(optimizer, params, OPTIMIZERS.get(name))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torchao:_AdamW", {"amsgrad": True}),
        ("torchao:AdamW8bit", {"block_size": 64}),
        ("torchao:AdamW8bit", {"block_size": 8192}),
        ("torchao:AdamW4bit", {"block_size": 66}),
        ("torchao:AdamFp8", {"block_size": 4096}),
        ("torchao:AdamW8bit", {"bf16_stochastic_round": True}),
    ],
)
def test_states_with_options(name, arguments):
    """Blocks of other sizes quantise other sizes; stochastic rounding keeps nothing."""
    params = parameters(SHAPES, torch.bfloat16)
    optimizer = build(name, params, **arguments)
    with eager():
        take_steps(optimizer, params)
    assert_held_as_promised(optimizer, params, OPTIMIZERS.get(name), arguments)


@pytest.mark.parametrize("name", ADAMS)
def test_places_follow_the_real_code(name):
    """With parameters on the meta device in CUDA's stead, step and learning rate stay on the host, all else goes along."""
    params = parameters([(64, 64), (65, 64), (9,)], device="meta")
    for param in params:
        param.grad = torch.empty_like(param)
    optimizer = build(name, params)
    with mock.patch("torch.compile", return_value=mock.Mock()):
        optimizer.step()
    found, entry = held(optimizer, params), OPTIMIZERS.get(name)
    options = entry.resolve({})
    for param, kept in zip(described(params), found.per_parameter, strict=True):
        seen = sorted((one.dtype, one.nbytes, "host" if one.device == "cpu" else "device") for one in kept)
        assert seen == sorted((s.dtype, s.nbytes, s.place) for s in entry.states(param, options) if s.count)
    assert [one.device for one in found.shared] == ["cpu"]
    assert [state.place for state in entry.shared(described(params), options)] == ["host"]


def without_cuda():
    """Stand-ins for what CPUOffloadOptimizer asks of CUDA: a stream, an event, and pinned pages."""
    empty_like = torch.empty_like
    stack = contextlib.ExitStack()
    for target, stand_in in [
        ("torchao.optim.cpu_offload.get_available_devices", lambda: ["cuda"]),
        ("torch.cuda.Stream", mock.Mock()),
        ("torch.cuda.current_stream", mock.Mock()),
        ("torch.cuda.stream", lambda stream: contextlib.nullcontext()),
        ("torch.empty_like", lambda tensor, pin_memory=False, **more: empty_like(tensor, **more)),
    ]:
        stack.enter_context(mock.patch(target, stand_in))
    return stack


@pytest.mark.parametrize("arguments", [{}, {"amsgrad": True}, {"minimal_size": 0}, {"minimal_size": 4097}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_states_equal_the_real_ones(arguments, dtype):
    """Real backward hooks and steps, with stand-ins for CUDA's streams, keep the bytes the registry says."""
    params = parameters([(64, 64), (4095,), (3, 5, 7), (65, 64)], dtype)
    with without_cuda():
        optimizer = torchao.optim.CPUOffloadOptimizer(params, **arguments)
        for _ in range(2):
            sum(param.square().sum() for param in params).backward()
            optimizer.step()
            held_now = held(optimizer, params)
            optimizer.zero_grad()
    states, shared = promised(OPTIMIZERS.get("torchao:CPUOffloadOptimizer"), described(params), arguments)
    for kept, said in zip(held_now.per_parameter, states, strict=True):
        assert sorted(one[:2] for one in kept) == sorted(said.elements())
    assert held_now.shared == []
    assert not shared


def test_offloading_frees_gradients_only_where_it_says():
    """With offload_gradients the real hook leaves no gradient behind; without it, it does."""
    for name in OFFLOADING:
        entry = OPTIMIZERS.get(name)
        params = parameters([(64, 64)])
        with without_cuda(), mock.patch("torch.Tensor.record_stream"):
            optimizer = torchao.optim.CPUOffloadOptimizer(params, **entry.preset)
            params[0].square().sum().backward()
        assert (params[0].grad is None) == entry.frees_gradients
        assert optimizer.param_d2h_map


def test_offloaded_bytes_by_hand():
    """4096 float32 elements leave the device: 4 copies and a counter on the host; 4095 stay: 2 and a counter."""
    entry = OPTIMIZERS.get("torchao:CPUOffloadOptimizer")
    for size, host, device in [(4096, 4 * 16384 + 4, 0), (4095, 0, 2 * 16380 + 4)]:
        states = list(entry.states(Param((size,)), entry.resolve({})))
        assert sum(s.nbytes * s.count for s in states if s.place == "host") == host
        assert sum(s.nbytes * s.count for s in states if s.place == "device") == device


@pytest.mark.parametrize("name", [name for name in ADAMS if "_AdamW" not in name])
def test_amsgrad_fails_with_quantised_states(name):
    """The library has no maximum for its quantised states: the real step raises, so the registry refuses the option."""
    with pytest.raises(InputError, match="amsgrad: True fails in the step"):
        OPTIMIZERS.get(name).resolve({"amsgrad": True})
    params = parameters([(64, 64)])
    optimizer = build(name, params, amsgrad=True)
    with eager(), pytest.raises(NotImplementedError, match="maximum"):
        take_steps(optimizer, params, 1)


def test_gradient_offload_is_its_own_entry():
    """The option that changes when gradients die is answered with the entry that knows it."""
    with pytest.raises(InputError, match=r"offload_gradients: True is an entry of its own; use torchao:CPUOffload.*\+offload"):
        OPTIMIZERS.get("torchao:CPUOffloadOptimizer").resolve({"offload_gradients": True})


@pytest.mark.parametrize("name", NAMES)
def test_arrays_equal_scalars(name):
    """Every entry over int64 arrays of sizes equals the same entry over each size."""
    assert_arrays_equal_scalars(OPTIMIZERS.get(name), {})
