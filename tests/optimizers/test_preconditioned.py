"""SOAP, distributed Shampoo and Sana's 8-bit CAME: counts made by hand from their source, and the classes where they are.

None of the three is a package of an index. The tests of the real classes run where the project's own files are importable
(``soap.py``; ``distributed_shampoo``; ``diffusion.utils.optimizer`` with what it imports), and are skipped elsewhere.
"""

from __future__ import annotations

import importlib
import inspect

import pytest

from memcalc.errors import InputError
from memcalc.optimizers.base import Param
from memcalc.optimizers.names import find_optimizer
from memcalc.optimizers.nikhilvyas_soap import merged as soap_merged
from memcalc.optimizers.torch_shampoo import CHOICES
from memcalc.optimizers.torch_shampoo import merged as shampoo_merged
from tests.optimizers.arrays import assert_arrays_equal_scalars

SOAP, SHAMPOO, SANA = "nikhilvyas-soap:SOAP", "torch-shampoo:DistributedShampoo", "nvlabs-sana:CAME8BitWrapper"
EIGEN, CORRECTED = "EigendecomposedShampooPreconditionerConfig", "EigenvalueCorrectedShampooPreconditionerConfig"
SCALE = ("float32", 4)


def kept(name, shape, dtype="float32", **arguments):
    """(dtype, bytes) of everything one parameter keeps, sorted; its gradient has its own dtype."""
    entry = find_optimizer(name)
    states = entry.states(Param(shape, dtype, dtype), entry.resolve(arguments))
    return sorted((state.dtype, state.nbytes) for state in states for _ in range(state.count) if state.nbytes)


def fp32(*numels):
    return sorted(("float32", 4 * numel) for numel in numels)


@pytest.mark.parametrize(
    ("shape", "arguments", "numels"),
    [
        ((), {}, [1, 1]),
        ((500,), {}, [500, 500]),  # soap.py:222: a vector has no factor unless asked
        ((500,), {"precondition_1d": True}, [500, 500, 500**2, 500**2]),
        ((10001,), {"precondition_1d": True}, [10001, 10001]),
        ((1024, 512), {}, [1024 * 512] * 2 + [1024**2] * 2 + [512**2] * 2),
        ((10000, 4), {}, [40000] * 2 + [10**8] * 2 + [16] * 2),  # soap.py:231: at the limit, still a factor
        ((10001, 4), {}, [40004] * 2 + [16] * 2),
        ((8, 3, 5, 5), {}, [600] * 2 + [64] * 2 + [9] * 2 + [25] * 4),
        # merge_dims of at most 100: 8 * 3 = 24, then 24 * 5 = 120 is too many, 5 * 5 = 25
        ((8, 3, 5, 5), {"merge_dims": True, "max_precond_dim": 100}, [600] * 2 + [24**2] * 2 + [25**2] * 2),
        # channels last: (8, 5, 3, 5) is seen as (8, 5, 5, 3)'s permutation (0, 3, 1, 2): 8, 3, 5, 5
        (
            (8, 5, 5, 3),
            {"merge_dims": True, "max_precond_dim": 100, "data_format": "channels_last"},
            [600] * 2 + [24**2] * 2 + [25**2] * 2,
        ),
        # 7 closes nothing; 200 exceeds the limit of 100 and closes 7; 3 follows it and 200 is closed in turn without a factor
        ((7, 200, 3), {"merge_dims": True, "max_precond_dim": 100}, [4200] * 2 + [49] * 2 + [9] * 2),
    ],
)
def test_soap_counts(shape, arguments, numels):
    """Two moments, and for each axis within the limit a factor and its eigenbasis, counted by hand."""
    assert kept(SOAP, shape, **arguments) == fp32(*numels)


def test_soap_takes_float32_gradients_for_matrices():
    """Half gradients of vectors keep half moments; those of matrices are refused, as the class fails on them."""
    assert kept(SOAP, (500,), "bfloat16") == [("bfloat16", 1000)] * 2
    accepts = find_optimizer(SOAP).accepts
    assert accepts(Param((4, 4), "bfloat16", "float32"))
    assert not accepts(Param((4, 4), "bfloat16", "bfloat16"))
    assert not accepts(Param((4, 4), "float32", "float16"))


def triangle(length):
    return length * (length + 1) // 2


@pytest.mark.parametrize(
    ("shape", "arguments", "numels"),
    [
        ((), {}, [1, 1, 1]),
        # a vector's factor is as long as its side: 4 kB for each element of a bias of 1024
        ((1024,), {}, [triangle(1024)] * 2 + [1024]),
        # joined while they fit: 30 * 20 = 600, a vector
        ((30, 20), {}, [triangle(600)] * 2 + [600]),
        ((1024, 512), {}, [triangle(1024)] * 2 + [triangle(512)] * 2 + [1024 * 512]),
        ((1025, 4), {}, [triangle(1024), triangle(4)] * 2 + [1, triangle(4)] * 2 + [4096, 4]),
        # (32, 3, 64, 64) at 8192: 64 * 64 fits, 3 more does not, 32 * 3 does
        ((32, 3, 64, 64), {"max_preconditioner_dim": 8192}, [triangle(4096), triangle(96)] * 2 + [96 * 4096]),
        # the same kept at two axes: 64 * 64 * 3 exceeds 8192, so nothing changes; at four axes nothing is joined
        (
            (32, 3, 64, 64),
            {"max_preconditioner_dim": 8192, "target_parameter_dimensionality": 4},
            ([triangle(64)] * 2 + [triangle(3), triangle(32)]) * 2 + [96 * 4096],
        ),
        # blocks of 4 of a 6 x 9: 4x4 4x4 4x1 2x4 2x4 2x1
        (
            (6, 9),
            {"max_preconditioner_dim": 4},
            [triangle(4)] * 8
            + [triangle(4), triangle(1)] * 2
            + [triangle(2), triangle(4)] * 4
            + [triangle(2), 1] * 2
            + [16, 16, 4, 8, 8, 2],
        ),
        ((6, 9), {"use_symmetric_packing": False, "max_preconditioner_dim": 16}, [36, 81] * 2 + [54]),
        ((64, 40), {"betas": (0.0, 1.0)}, [triangle(64), triangle(40)] * 2),
        ((64, 40), {"grafting_config": "AdamPreconditionerConfig"}, [triangle(64), triangle(40)] * 2 + [2560] * 2),
        ((64, 40), {"iterate_averaging_config": "ScheduleFreeConfig"}, [triangle(64), triangle(40)] * 2 + [2560] * 2),
        ((64, 40), {"preconditioner_config": EIGEN}, [triangle(64), triangle(40), 64**2, 40**2, 64, 40, 2560]),
        ((64, 40), {"preconditioner_config": CORRECTED}, [triangle(64), triangle(40), 64**2, 40**2, 2560, 2560]),
        ((64, 40), {"preconditioner_config": "SignDescentPreconditionerConfig"}, [2560]),
    ],
)
def test_shampoo_counts(shape, arguments, numels):
    """Factors and inverse roots of every axis of every block, and the block's own buffers, counted by hand."""
    assert kept(SHAMPOO, shape, **arguments) == fp32(*numels)


def test_shampoo_factors_are_float32_whatever_the_parameter():
    """A bfloat16 parameter halves its filtered gradient alone."""
    assert kept(SHAMPOO, (64, 40), "bfloat16") == sorted([("bfloat16", 5120), *fp32(triangle(64), triangle(40)) * 2])


def test_shampoo_keeps_one_counter_for_a_group():
    """The counter is int64 on the host; of the rates and coefficients three are on the device."""
    entry = find_optimizer(SHAMPOO)
    shared = list(entry.shared([Param((4, 4))] * 3, entry.resolve({})))
    assert sorted((s.dtype, s.nbytes, s.place) for s in shared) == [
        *[("float32", 4, "device")] * 3,
        *[("float32", 4, "host")] * 2,
        ("int64", 8, "host"),
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "arguments", "expected"),
    [
        ((), {}, fp32(1, 1)),
        ((20000,), {}, fp32(20000, 20000)),
        ((128, 128), {}, fp32(16384, *[128] * 4)),  # the threshold itself stays in float32
        ((129, 128), {}, [*fp32(*[129] * 2, *[128] * 2), ("uint8", 129 * 128), *[SCALE] * 2]),
        ((2048, 16), {}, [*fp32(*[2048] * 2, *[16] * 2), ("uint8", 32768), *[SCALE] * 2]),
        # blocks are 2048 rows, so three here, the last of 4
        ((4100, 8), {}, [*fp32(*[4100] * 2, *[8] * 2), *[("uint8", 16384)] * 2, ("uint8", 32), *[SCALE] * 6]),
        ((130, 130, 1, 1), {}, [*fp32(*[130] * 4), ("uint8", 16900), *[SCALE] * 2]),
        ((8, 8, 1, 1), {}, fp32(64, *[8] * 4)),
        ((130, 130, 3, 3), {}, fp32(152100, 152100)),
        ((30, 30, 30), {}, fp32(27000, 27000)),
        (
            (10, 10),
            {"min_8bit_size": 50, "block_size": 4},
            [*fp32(*[10] * 4), ("uint8", 40), ("uint8", 40), ("uint8", 20)] + [SCALE] * 6,
        ),
        ((1, 1), {"min_8bit_size": 0}, fp32(*[1] * 5)),  # a single element is never quantised
    ],
)
def test_sana_counts(shape, dtype, arguments, expected):
    """8-bit momentum in blocks of rows, factors in float32 whatever the parameter, and an RMS in its dtype: by hand."""
    rms = (dtype, 4 if dtype == "float32" else 2)
    assert kept(SANA, shape, dtype, **arguments) == sorted([*expected, rms])


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        (SOAP, {"data_format": "NHWC"}, "x.data_format: NHWC is not a data format; use channels_first or channels_last"),
        (SHAMPOO, {"grafting_config": "adam"}, "x.grafting_config: adam is not one of SGDPreconditionerConfig, AdaGrad"),
        (SHAMPOO, {"preconditioner_config": "Kronecker"}, "x.preconditioner_config: Kronecker is not one of RootInvShampoo"),
        (SANA, {"percentile": 1}, "x.percentile: 1 is not an option of nvlabs-sana:CAME8BitWrapper"),
    ],
)
def test_what_cannot_be_counted_is_refused(name, arguments, sentence):
    """A word no library knows is an error that names the option."""
    with pytest.raises(InputError, match=sentence.replace(".", r"\.")):
        find_optimizer(name).resolve(arguments, "x")


def test_joined_axes():
    """Both libraries' own documented examples of joining axes, and axes of 1, by hand."""
    assert [length for length, there in shampoo_merged((1, 2, 5, 1), 10, 1) if there] == [10]
    assert [length for length, there in shampoo_merged((1, 2, 5, 1), 1, 1) if there] == [5, 2]
    assert [length for length, there in shampoo_merged((32, 3, 64, 64), 10**6, 2) if there] == [12288, 32]
    assert [length for length, there in shampoo_merged((1, 1), 10, 1) if there] == [1]
    assert [length for length, there in soap_merged((1, 1), 10) if there] == [1]
    assert [length for length, there in soap_merged((20, 1, 30), 10) if there] == [20, 30]


ARRAYS = [
    (SOAP, {}),
    (SOAP, {"merge_dims": True, "max_precond_dim": 300}),
    (SOAP, {"merge_dims": True, "max_precond_dim": 300, "data_format": "channels_last", "precondition_1d": True}),
    (SHAMPOO, {}),
    (SHAMPOO, {"max_preconditioner_dim": 100, "target_parameter_dimensionality": 2, "preconditioner_config": EIGEN}),
    (SHAMPOO, {"max_preconditioner_dim": 64, "grafting_config": "AdaGradPreconditionerConfig", "betas": (0.0, 1.0)}),
    (SHAMPOO, {"preconditioner_config": CORRECTED, "iterate_averaging_config": "ScheduleFreeConfig"}),
    (SANA, {}),
    (SANA, {"block_size": 100, "min_8bit_size": 64}),
]


@pytest.mark.parametrize(("name", "arguments"), ARRAYS)
def test_arrays_equal_scalars(name, arguments):
    """A sweep over shapes gives element by element what each shape gives alone."""
    assert_arrays_equal_scalars(find_optimizer(name), arguments)


def real_class(name):
    """The project's own class, where its files can be imported."""
    module, _, attribute = find_optimizer(name).cls.rpartition(".")
    pytest.importorskip("torch", reason="the oracle runs real optimizers")
    pytest.importorskip(module, reason="the project's files are no package: put them on the path to run its class")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", [SOAP, SHAMPOO, SANA])
def test_options_are_the_constructors(name):
    """An entry knows exactly its constructor's arguments, and by default what they are by default."""
    entry = find_optimizer(name)
    signature = inspect.signature(real_class(name).__init__)
    real = {key: value.default for key, value in signature.parameters.items() if key not in ("self", "params")}
    assert {*entry.options, *entry.ignored} - entry.own == set(real)
    for key, value in entry.options.items():
        if key == "preconditioner_config":
            assert type(real[key]).__name__ == value
        elif key not in entry.own:
            assert real[key] == value


def configured(arguments):
    """The same options with the library's configuration objects in place of their names."""
    library = importlib.import_module("distributed_shampoo")
    given = dict(arguments)
    packing = given.pop("use_symmetric_packing", True)
    if "target_parameter_dimensionality" in given:
        target = given.pop("target_parameter_dimensionality")
        given["distributed_config"] = library.SingleDeviceDistributedConfig(target_parameter_dimensionality=target)
    for key in CHOICES:
        if given.get(key):
            more = {} if packing or key != "preconditioner_config" else {"use_symmetric_packing": False}
            module = importlib.import_module("distributed_shampoo.shampoo_types")
            given[key] = getattr(module, given[key])(**more)
    return given


SHAPES = [(), (1,), (7,), (300,), (4, 5), (40, 24), (24, 40), (130, 129), (4100, 6), (2, 3, 4), (5, 4, 3, 3), (9, 20, 1, 1)]
REAL = [
    *[(SOAP, arguments) for arguments in ({}, {"merge_dims": True, "max_precond_dim": 60}, {"precondition_1d": True})],
    (SOAP, {"merge_dims": True, "max_precond_dim": 100, "data_format": "channels_last"}),
    (SOAP, {"max_precond_dim": 24}),
    *[(SANA, arguments) for arguments in ({}, {"block_size": 7, "min_8bit_size": 20}, {"min_8bit_size": 0})],
    *[(SHAMPOO, {"max_preconditioner_dim": limit}) for limit in (32, 500)],
    (SHAMPOO, {"max_preconditioner_dim": 64, "target_parameter_dimensionality": 2, "betas": (0.0, 1.0)}),
    (SHAMPOO, {"max_preconditioner_dim": 64, "target_parameter_dimensionality": 3}),
    *[
        (SHAMPOO, {"max_preconditioner_dim": 32, key: choice})
        for key, choices in CHOICES.items()
        for choice in choices
        if choice is not None
    ],
    (
        SHAMPOO,
        {
            "max_preconditioner_dim": 32,
            "preconditioner_config": next(iter(CHOICES["preconditioner_config"])),
            "use_symmetric_packing": False,
        },
    ),
]


@pytest.mark.parametrize(("name", "arguments"), REAL)
def test_states_equal_the_real_ones(name, arguments):
    """After real steps each parameter, alone in an optimizer, holds what the registry says, tensor by tensor."""
    cls = real_class(name)
    walk = importlib.import_module("tests.optimizers.walk")
    entry = find_optimizer(name)
    given = configured(arguments) if name == SHAMPOO else dict(arguments)
    given |= {SOAP: {"precondition_frequency": 2}, SANA: {"lr": 1e-3}}.get(name, {})
    for shape in SHAPES:
        if max(shape, default=0) > 1000 and name != SANA:
            continue
        params = walk.parameters([shape])
        optimizer = cls(params, **given)
        walk.take_steps(optimizer, params, 1 if name == SHAMPOO else 4)
        # Shampoo reaches the same tensors through lists of its own, so what is whose is told by having one parameter
        found = walk.held(optimizer, params)
        states, shared = walk.promised(entry, walk.described(params), arguments)
        assert walk.multiset([*found.per_parameter[0], *found.shared]) == states[0] + shared, shape
