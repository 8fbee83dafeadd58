"""bitsandbytes: every storage each class keeps, against the real classes; what only CUDA does, against the code for it."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest import mock

import pytest

torch = pytest.importorskip("torch", reason="the oracle runs real optimizers")
if find_spec("bitsandbytes") is None:
    pytest.skip("the oracle is bitsandbytes' own optimizers", allow_module_level=True)

import memcalc.optimizers.bitsandbytes  # noqa: E402, F401  registers the entries
from memcalc.errors import InputError  # noqa: E402
from memcalc.optimizers.base import OPTIMIZERS, Param  # noqa: E402
from memcalc.optimizers.step import step_bytes  # noqa: E402
from tests.optimizers.arrays import assert_arrays_equal_scalars  # noqa: E402
from tests.optimizers.peak import dispatched_peak  # noqa: E402
from tests.optimizers.walk import assert_held_as_promised, described, held, parameters, take_steps  # noqa: E402

bnb: Any = None


@pytest.fixture(autouse=True, scope="module")
def _library() -> None:
    """Imported where its tests run: it brings the whole of torch's compiler with it."""
    globals()["bnb"] = import_module("bitsandbytes")


NAMES = sorted(name for name in OPTIMIZERS if name.startswith("bitsandbytes:"))
SHAPES = [(), (63,), (4095,), (64, 64), (4097,), (16, 17, 16), (2, 2, 32, 33)]
"""Below, at and above the threshold of 4096 elements, in whole and ragged blocks."""
HALF_BUILT = [name for name in NAMES if "AdEMAMix32bit" in name]
"""Their kernels read a doubled buffer that the class does not allocate: the CPU's one fails, so they are not stepped."""


def build(name, params, **arguments):
    entry = OPTIMIZERS.get(name)
    passed = {key: value for key, value in {**entry.preset, **arguments}.items() if key not in entry.own}
    return getattr(bnb.optim, name.split(":")[1])(params, lr=0.01, **passed)


def stepped(name, shapes, dtype=torch.float32, **arguments):
    """A real optimizer with its states: after two steps, or after init_state alone where the class cannot step."""
    params = parameters(shapes, dtype)
    optimizer = build(name, params, **arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        if name in HALF_BUILT:
            for index, param in enumerate(params):
                optimizer.init_state(optimizer.param_groups[0], param, 0, index)
        else:
            take_steps(optimizer, params)
    return optimizer, params


@pytest.mark.parametrize("name", NAMES)
def test_options_are_the_constructors(name):
    """An entry knows its constructor's arguments by name and default; only ``args``, an object of overrides, is refused."""
    entry = OPTIMIZERS.get(name)
    signature = inspect.signature(getattr(bnb.optim, name.split(":")[1]).__init__)
    real = {key: value.default for key, value in signature.parameters.items() if key not in ("self", "params", "args")}
    assert {*entry.options, *entry.ignored} - entry.own == set(real)
    known = [key for key in entry.options if key not in entry.own]
    assert {key: entry.options[key] for key in known} == {key: entry.preset.get(key, real[key]) for key in known}


def test_every_class_is_known():
    """No optimizer of the library built on its 8-bit base is missing."""
    base = bnb.optim.optimizer.Optimizer8bit
    real = {name for name, cls in vars(bnb.optim).items() if inspect.isclass(cls) and issubclass(cls, base)}
    assert {name.split(":")[1] for name in NAMES} == real


@pytest.mark.parametrize(
    ("dtype", "shapes"), [(torch.float32, SHAPES), (torch.bfloat16, [(64, 64), (9, 5)]), (torch.float16, [(4097,), (2,)])]
)
@pytest.mark.parametrize("name", NAMES)
def test_states_equal_the_real_ones(name, dtype, shapes):
    """Shapes on both sides of the threshold keep what the registry says, tables once for all; the CPU pages nothing."""
    optimizer, params = stepped(name, shapes, dtype)
    assert_held_as_promised(optimizer, params, OPTIMIZERS.get(name))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("bitsandbytes:AdamW", {"optim_bits": 8}),
        ("bitsandbytes:LAMB", {"optim_bits": 8, "max_unorm": 0.0}),
        ("bitsandbytes:AdEMAMix", {"optim_bits": 8, "t_alpha": 3}),
        ("bitsandbytes:AdamW8bit", {"min_8bit_size": 1}),
        ("bitsandbytes:AdamW8bit", {"min_8bit_size": 16384}),
        ("bitsandbytes:AdamW8bit", {"min_8bit_size": 10**9}),
        ("bitsandbytes:Lion8bit", {"min_8bit_size": 10**9}),
        ("bitsandbytes:AdamW32bit", {"optim_bits": 8}),
        ("bitsandbytes:LARS8bit", {"max_unorm": 0.0}),
    ],
)
def test_states_with_options(name, arguments):
    """Widths, thresholds and norms asked for are those kept; a class that hard-codes its width ignores the option."""
    optimizer, params = stepped(name, SHAPES, **arguments)
    assert_held_as_promised(optimizer, params, OPTIMIZERS.get(name), arguments)


@pytest.mark.parametrize("name", ["bitsandbytes:AdamW8bit", "bitsandbytes:PagedAdamW", "bitsandbytes:PagedLion8bit"])
def test_states_past_the_paging_threshold(name):
    """At and above 100 000 elements the bytes are the same; on the CPU they are not paged."""
    optimizer, params = stepped(name, [(99_999,), (250, 400), (100_001,)])
    assert_held_as_promised(optimizer, params, OPTIMIZERS.get(name))


def test_embeddings_in_32_bit():
    """The Trainer's override keeps an embedding in float32 and leaves the other parameters in 8 bit."""
    params = parameters([(100, 64), (64, 100)])
    manager = bnb.optim.GlobalOptimManager.get_instance()
    optimizer = bnb.optim.AdamW(params, lr=0.01, optim_bits=8)
    module = torch.nn.Module()
    module.weight = params[0]
    with mock.patch.object(manager, "module_weight_config_triple", []), mock.patch.object(manager, "pid2config", {}):
        manager.register_module_override(module, "weight", {"optim_bits": 32})
        take_steps(optimizer, params)
    manager.index2config.clear()
    arguments = {"optim_bits": 8, "embeddings_32bit": True}
    assert_held_as_promised(optimizer, params, OPTIMIZERS.get("bitsandbytes:AdamW"), arguments, kinds=["embedding", "linear"])


@pytest.mark.parametrize("name", [name for name in NAMES if "Paged" in name or "is_paged" in OPTIMIZERS.get(name).options])
def test_places_follow_the_real_code(name):
    """Off the CPU, the library's own init_state pages from 100 000 elements and leaves an unused table on the host.

    Parameters on the meta device stand for CUDA; managed memory, which needs CUDA, is a marked stand-in.
    """
    entry = OPTIMIZERS.get(name)
    arguments = {"is_paged": True} if "is_paged" in entry.options else {}
    params = parameters([(99_999,), (100_000,), (64, 64), (9,)], device="meta")
    optimizer = build(name, params, **arguments)
    paged = []

    def managed(*shape, dtype, device):
        paged.append(torch.zeros(shape, dtype=dtype))
        return paged[-1]

    optimizer.page_mng = mock.Mock(paged_tensors=[])  # the library's list of all pages, of every optimizer
    with mock.patch("bitsandbytes.functional.get_paged", managed), mock.patch("bitsandbytes.functional.fill"):
        for index, param in enumerate(params):
            optimizer.init_state(optimizer.param_groups[0], param, 0, index)
    optimizer.page_mng = None
    assert bool(paged) == any(
        states.place == "managed" for states in entry.states(described(params)[1], entry.resolve(arguments))
    )

    found = held(optimizer, params)
    options = entry.resolve(arguments)
    for param, kept in zip(described(params), found.per_parameter, strict=True):
        seen = Counter((one.dtype, one.nbytes, {"meta": "device", "cpu": "managed"}[one.device]) for one in kept)
        said = Counter()
        for state in entry.states(param, options):
            said[state.dtype, state.nbytes, state.place] += state.count
        assert seen == +said
    tables = Counter((one.dtype, one.nbytes, {"meta": "device", "cpu": "host"}[one.device]) for one in found.shared)
    said = Counter()
    for state in entry.shared(described(params), options):
        said[state.dtype, state.nbytes, state.place] += state.count
    assert tables == +said


def test_tables_stay_on_the_host_until_needed():
    """An 8-bit optimizer over small parameters alone keeps both tables on the host; Lion's second one always."""
    for name, size, expected in [
        ("bitsandbytes:AdamW8bit", 100, ["host", "host"]),
        ("bitsandbytes:AdamW8bit", 5000, ["device", "device"]),
        ("bitsandbytes:Lion8bit", 5000, ["device", "host"]),
    ]:
        entry = OPTIMIZERS.get(name)
        tables = entry.shared([Param((size,))], entry.resolve({}))
        assert [table.place for table in tables if table.count] == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["bitsandbytes:LAMB", "bitsandbytes:LAMB8bit", "bitsandbytes:LARS", "bitsandbytes:AdamW8bit"])
def test_step_temporaries_outside_the_kernels(name, dtype):
    """With the kernels left out, a step allocates a float32 copy for the norm of a 32-bit-state half-precision parameter."""
    params = parameters([(50, 60), (64, 64), (70, 80)], dtype)
    optimizer = build(name, params)
    take_steps(optimizer, params, 1)
    ops = torch.ops.bitsandbytes
    with (
        mock.patch.object(ops, "optimizer_update_32bit", create=True),
        mock.patch.object(ops, "optimizer_update_8bit_blockwise", create=True),
    ):
        seen = dispatched_peak(optimizer.step)
    entry = OPTIMIZERS.get(name)
    assert seen == step_bytes(entry, described(params), entry.resolve({}))


def test_history_of_the_layout():
    """Hand-computed: 5000 elements in blocks of 2048 as before 0.44.0, and the two layouts that 0.50 removed."""
    entry = OPTIMIZERS.get("bitsandbytes:Adam8bit")

    def bytes_of(**arguments):
        return sum(state.nbytes * state.count for state in entry.states(Param((5000,)), entry.resolve(arguments)))

    assert bytes_of() == 2 * 5000 + 2 * 20 * 4
    assert bytes_of(block_size=2048) == 2 * 5000 + 2 * 3 * 4
    assert bytes_of(block_wise=False) == 2 * 5000 + 4 * 4
    assert bytes_of(percentile_clipping=5) == 2 * 5000 + 2 * 20 * 4 + 400


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("bitsandbytes:AdamW8bit", {"amsgrad": True}),
        ("bitsandbytes:AdamW8bit", {"optim_bits": 8}),
        ("bitsandbytes:Adagrad8bit", {"optim_bits": 32}),
        ("bitsandbytes:LAMB8bit", {"max_unorm": 0.5}),
        ("bitsandbytes:SGD8bit", {"momentum": 0.0}),
        ("bitsandbytes:LARS", {"momentum": 0.0}),
        ("bitsandbytes:RMSprop", {"centered": True}),
        ("bitsandbytes:RMSprop32bit", {"alpha": 0.0}),
        ("bitsandbytes:Adagrad", {"lr_decay": 0.1}),
    ],
)
def test_refusals_are_the_constructors(name, arguments):
    """What the registry refuses, the real constructor refuses too."""
    with pytest.raises(InputError, match=r"training\.optimizer_args"):
        OPTIMIZERS.get(name).resolve(arguments)
    with pytest.raises((ValueError, NotImplementedError)):
        build(name, parameters([(2, 2)]), **arguments)


@pytest.mark.parametrize("bits", [4, 16])
def test_other_widths_are_refused(bits):
    """A width that is not 8 or 32 fails in the real first step, and in the registry at once."""
    with pytest.raises(InputError, match=r"optim_bits: .* is not 8 or 32"):
        OPTIMIZERS.get("bitsandbytes:AdamW").resolve({"optim_bits": bits})
    params = parameters([(2, 2)])
    optimizer = bnb.optim.AdamW(params, optim_bits=bits)
    with pytest.raises(NotImplementedError):
        take_steps(optimizer, params)


@pytest.mark.parametrize("name", NAMES)
def test_arrays_equal_scalars(name):
    """Every entry over int64 arrays of sizes equals the same entry over each size, in both widths and for embeddings."""
    entry = OPTIMIZERS.get(name)
    assert_arrays_equal_scalars(entry, {})
    assert_arrays_equal_scalars(entry, {"embeddings_32bit": True}, kind="embedding")
    if "optim_bits" in entry.options and "8bit" not in name:
        assert_arrays_equal_scalars(entry, {"optim_bits": 8})
