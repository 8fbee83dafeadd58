"""Libraries whose kernels need CUDA or an NPU: their source is the evidence, these counts are made from it by hand.

DeepSpeed's classes are also run, kernels left out, where deepspeed is installed.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from unittest import mock

import pytest

import memcalc.optimizers.apex
import memcalc.optimizers.deepspeed
import memcalc.optimizers.torch_npu
import memcalc.optimizers.transformer_engine  # noqa: F401  registers the entries
from memcalc.errors import InputError
from memcalc.optimizers.base import OPTIMIZERS, Param
from memcalc.optimizers.step import step_bytes
from tests.optimizers.arrays import assert_arrays_equal_scalars

LIBRARIES = ("apex:", "deepspeed:", "torch-npu:", "transformer-engine:")
NAMES = sorted(name for name in OPTIMIZERS if name.startswith(LIBRARIES))
N = 1000


def kept(name, params, **arguments):
    """(dtype, bytes, place) of everything kept for these parameters, sorted."""
    entry = OPTIMIZERS.get(name)
    options = entry.resolve(arguments)
    states = [state for param in params for state in entry.states(param, options)]
    states += entry.shared(params, options) if entry.shared else []
    return sorted((s.dtype, s.nbytes, s.place) for s in states for _ in range(s.count) if s.nbytes)


def need(name, params, **arguments):
    entry = OPTIMIZERS.get(name)
    return step_bytes(entry, params, entry.resolve(arguments))


def param(dtype, shape=(N,), **more):
    return Param(shape, dtype, dtype, **more)


FLAG = ("int32", 4, "device")
CASES = [
    # apex: fp32 moments whatever the parameter; masters, with a learning rate and a step on the device, if asked
    ("apex:FusedAdam", "bfloat16", {}, [("float32", 4 * N, "device")] * 2 + [FLAG]),
    (
        "apex:FusedAdam",
        "float16",
        {"capturable": True, "master_weights": True},
        [("float32", 4, "device"), ("float32", 4, "host"), FLAG, FLAG] + [("float32", 4 * N, "device")] * 3,
    ),
    ("apex:FusedLAMB", "float16", {}, [("float16", 2 * N, "device")] * 2 + [FLAG]),
    ("apex:FusedSGD", "float16", {}, [("float16", 2 * N, "device"), FLAG]),
    ("apex:FusedAdagrad", "float32", {}, [("float32", 4 * N, "device"), FLAG]),
    ("apex:FusedNovoGrad", "float16", {}, [("float16", 2 * N, "device"), ("float32", 4, "device"), FLAG]),
    (
        "apex:FusedMixedPrecisionLamb",
        "bfloat16",
        {"reduced_precision_dtype": "bfloat16"},
        [("float32", 4 * N, "device")] * 3
        + [("float32", 4, "device"), ("float32", 4, "host"), FLAG, FLAG, ("int32", 4, "host")],
    ),
    # DeepSpeed: the parameter's dtype on the device; fp32 on the host, and one buffer Lion never reads
    ("deepspeed:FusedAdam", "bfloat16", {}, [("bfloat16", 2 * N, "device")] * 2 + [FLAG]),
    ("deepspeed:FusedLion", "float32", {}, [("float32", 4 * N, "device"), FLAG]),
    ("deepspeed:FusedLamb", "float16", {}, [("float16", 2 * N, "device")] * 2 + [("float32", 4, "device")]),
    ("deepspeed:FusedLamb", "bfloat16", {}, [("bfloat16", 2 * N, "device")] * 2 + [("bfloat16", 2, "device")]),
    ("deepspeed:DeepSpeedCPUAdam", "bfloat16", {}, [("float32", 4 * N, "host")] * 2),
    ("deepspeed:DeepSpeedCPUAdam", "bfloat16", {"fp32_optimizer_states": False}, [("bfloat16", 2 * N, "host")] * 2),
    ("deepspeed:DeepSpeedCPUAdagrad", "float32", {}, [("float32", 4 * N, "host")]),
    ("deepspeed:DeepSpeedCPULion", "float32", {}, [("float32", 4 * N, "host")] * 2),
    # Transformer Engine: a range for fp16 and one for FP8 on the host, a scale beside every state that is not fp32
    (
        "transformer-engine:FusedAdam",
        "bfloat16",
        {"master_weights": True},
        [("float32", 4 * N, "device")] * 3 + [FLAG] + [("float32", 4, "host")] * 2,
    ),
    (
        "transformer-engine:FusedAdam",
        "bfloat16",
        {
            "master_weights": True,
            "store_param_remainders": True,
            "exp_avg_dtype": "bfloat16",
            "exp_avg_sq_dtype": "bfloat16",
        },
        [("bfloat16", 2 * N, "device")] * 2
        + [("int16", 2 * N, "device"), FLAG]
        + [("float32", 4, "device")] * 2
        + [("float32", 4, "host")] * 2,
    ),
    (
        "transformer-engine:FusedAdam",
        "bfloat16",
        {"exp_avg_dtype": "uint8", "fp8_transpose": False},
        [("uint8", N, "device"), ("float32", 4 * N, "device"), FLAG]
        + [("float32", 4, "device")] * 5
        + [("float32", 4, "host")] * 2,
    ),
    (
        "transformer-engine:FusedAdam",
        "bfloat16",
        {"exp_avg_dtype": "uint8"},
        [("uint8", N, "device")] * 2
        + [("float32", 4 * N, "device"), FLAG]
        + [("float32", 4, "device")] * 5
        + [("float32", 4, "host")] * 2,
    ),
    # torch_npu: flat buffers, and a mask where the fused clipping is used
    ("torch-npu:NpuFusedAdamW", "float16", {}, [("float16", 2 * N, "device")] * 2),
    ("torch-npu:NpuFusedAdamW", "float32", {"amsgrad": True}, [("float32", 4 * N, "device")] * 3),
    (
        "torch-npu:NpuFusedAdamW",
        "float16",
        {"clip_grad_norm_fused": True},
        [("float16", 2 * N, "device")] * 2 + [("float32", 4 * N, "device")],
    ),
    ("torch-npu:NpuFusedAdam", "float32", {}, [("float32", 4 * N, "device")] * 2),
    ("torch-npu:NpuFusedSGD", "float32", {}, []),
    ("torch-npu:NpuFusedSGD", "float32", {"momentum": 0.9}, [("float32", 4 * N, "device")]),
]


@pytest.mark.parametrize(("name", "dtype", "arguments", "expected"), CASES)
def test_hand_computed_counts(name, dtype, arguments, expected):
    """One parameter of 1000 elements keeps exactly the tensors that the library's source allocates."""
    assert kept(name, [param(dtype)], **arguments) == sorted(expected)


def test_every_entry_is_counted_by_hand():
    """No entry of these libraries goes without a count."""
    assert {name for name, *_ in CASES} == set(NAMES)


def test_npu_buffers_are_one_for_all_parameters():
    """Two parameters of one dtype and three of another make four buffers, not ten."""
    params = [param("float16", (10, 10), count=2), param("float32", (7,), count=3)]
    assert kept("torch-npu:NpuFusedAdamW", params) == [("float16", 400, "device")] * 2 + [("float32", 84, "device")] * 2


def test_npu_gradients_live_on():
    """torch_npu refuses set_to_none, so its entries alone keep gradients from step to step."""
    assert {name for name in NAMES if OPTIMIZERS.get(name).keeps_gradients} == {n for n in NAMES if n.startswith("torch-npu:")}


def test_novograd_keeps_a_number_for_each_tensor():
    """Three half-precision tensors and one of single precision: two vectors of three and of one."""
    params = [param("float16", count=3), param("float32")]
    vectors = [row for row in kept("apex:FusedNovoGrad", params) if row[0] == "float32" and row[1] < 4 * N]
    assert vectors == [("float32", 4, "device"), ("float32", 12, "device")]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("apex:FusedAdam", {}, 0),
        ("apex:FusedLAMB", {}, None),
        ("deepspeed:FusedAdam", {}, 0),
        ("deepspeed:FusedLamb", {}, 2 * 512 * 4),
        ("transformer-engine:FusedAdam", {}, 0),
        # both moments as fp32 copies of the whole group (1000 and 500 elements), and one tensor rounded back at a time
        ("transformer-engine:FusedAdam", {"exp_avg_dtype": "float16", "exp_avg_sq_dtype": "uint8"}, 2 * 4 * 1500),
        ("transformer-engine:FusedAdam", {"exp_avg_dtype": "bfloat16"}, 4 * 1500 + 2 * 1000),
        ("transformer-engine:FusedAdam", {"exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"}, 0),
        ("torch-npu:NpuFusedAdamW", {}, 2 * 2 * 1500),
        ("torch-npu:NpuFusedAdam", {"weight_decay": 0.1}, 3 * 2 * 1500),
        ("torch-npu:NpuFusedSGD", {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True}, 2 * 2 * 1500),
    ],
)
def test_hand_computed_step(name, arguments, expected):
    """What a step of two half-precision parameters, 1000 and 500 elements, allocates for a moment; None is not modelled."""
    assert need(name, [param("float16"), param("float16", (500,))], **arguments) == expected


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("apex:FusedLAMB", "bfloat16"),
        ("apex:FusedSGD", "bfloat16"),
        ("torch-npu:NpuFusedAdamW", "bfloat16"),
        ("deepspeed:FusedAdam", "float64"),
        ("transformer-engine:FusedAdam", "float64"),
    ],
)
def test_dtypes_that_are_not_taken(name, dtype):
    """The kernels' own refusals of a dtype are the rule of acceptance."""
    assert not OPTIMIZERS.get(name).accepts(param(dtype))
    assert OPTIMIZERS.get(name).accepts(param("float32"))


@pytest.mark.parametrize(
    ("name", "arguments", "rule"),
    [
        ("apex:FusedAdam", {"amsgrad": True}, "amsgrad: True is not supported"),
        ("apex:FusedAdam", {"master_weights": True}, "master_weights: True needs capturable=true"),
        ("apex:FusedSGD", {"nesterov": True}, "nesterov: True needs momentum"),
        (
            "transformer-engine:FusedAdam",
            {"exp_avg_dtype": "float8_e5m2"},
            "exp_avg_dtype: float8_e5m2 is not float32, float16",
        ),
        (
            "transformer-engine:FusedAdam",
            {"capturable": True, "exp_avg_dtype": "bfloat16"},
            "exp_avg_dtype: bfloat16 is not, as exp_avg_sq_dtype",
        ),
        (
            "transformer-engine:FusedAdam",
            {"capturable": True, "master_weights": True, "store_param_remainders": True},
            "store_param_remainders: True cannot be used with capturable",
        ),
        ("torch-npu:NpuFusedSGD", {"nesterov": True}, "nesterov: True needs momentum"),
        ("deepspeed:FusedAdam", {"maximize": True}, "maximize: True is not an option of deepspeed:FusedAdam"),
    ],
)
def test_refusals(name, arguments, rule):
    """What the constructors raise for, and options they lack, are errors that name the option."""
    with pytest.raises(InputError, match=rule):
        OPTIMIZERS.get(name).resolve(arguments)


@pytest.mark.parametrize("name", NAMES)
def test_arrays_equal_scalars(name):
    """Every entry over int64 arrays of sizes equals the same entry over each size."""
    assert_arrays_equal_scalars(OPTIMIZERS.get(name), {})


class NoKernels:
    """Stands for a compiled extension: every function does nothing, LAMB's returns a coefficient as the kernel does."""

    def __getattr__(self, name):
        if name == "lamb":
            return lambda p, *_: p.new_empty(1, dtype=p.float().dtype if p.element_size() == 2 else p.dtype)
        return lambda *_: None


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("deepspeed:")])
def test_deepspeed_states_equal_the_real_ones(name, dtype):
    """The real Python of each class, kernels left out, keeps the bytes the registry says; skipped without deepspeed."""
    torch = pytest.importorskip("torch", reason="the oracle runs real optimizers")
    pytest.importorskip("deepspeed", reason="DeepSpeed's own classes are run where it is installed")
    from tests.optimizers.walk import described, held, multiset, parameters, promised, take_steps

    entry = OPTIMIZERS.get(name)
    module, _, cls = entry.cls.rpartition(".")
    real = getattr(importlib.import_module(module), cls)
    builders = [value for key, value in vars(inspect.getmodule(real)).items() if key.endswith("Builder")]
    with contextlib.ExitStack() as stack:
        for builder in builders:
            stack.enter_context(mock.patch.object(builder, "load", return_value=NoKernels()))
        params = parameters([(4, 5), (7,), (2, 3, 4)], getattr(torch, dtype))
        optimizer = real(params)
        take_steps(optimizer, params)
    found = held(optimizer, params)
    states, shared = promised(entry, described(params), {})
    # LAMB's coefficients are a list of the optimizer's, so what is kept is compared as a whole
    assert sum((multiset(kept) for kept in found.per_parameter), multiset(found.shared)) == sum(states, shared)
