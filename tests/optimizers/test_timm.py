"""timm.optim: every storage each class keeps, where it lives and what a step needs, against the real classes."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import types
from pathlib import Path
from unittest import mock

import pytest

torch = pytest.importorskip("torch", reason="the oracle runs real optimizers")

from memcalc.errors import InputError  # noqa: E402
from memcalc.optimizers.base import Param  # noqa: E402
from memcalc.optimizers.names import all_optimizers, find_optimizer  # noqa: E402
from memcalc.optimizers.step import step_bytes  # noqa: E402
from tests.optimizers.arrays import assert_arrays_equal_scalars  # noqa: E402
from tests.optimizers.peak import SCALARS, dispatched_peak  # noqa: E402
from tests.optimizers.walk import assert_held_as_promised, described, held, parameters, take_steps  # noqa: E402

if importlib.util.find_spec("timm") is None:
    pytest.skip("the oracle is timm's own optimizers", allow_module_level=True)

NAMES = sorted(name for name in all_optimizers() if name.startswith("timm:"))
HESSIAN = "timm:Adahessian"
STEPPING = [name for name in NAMES if name != HESSIAN]
MEASURED = [name for name in STEPPING if find_optimizer(name).temporaries is not None]
SHAPES = [(), (1,), (3,), (4, 5), (16, 17), (64, 64), (17, 17), (2, 3, 4), (20, 18, 3, 3), (5, 4, 17, 18), (1, 300), (4097,)]
"""Sides below, at and above 16, channels and kernels alike; shapes Muon takes and refuses."""
SMALL = [(4, 5), (7,), (5, 5), (2, 3, 2), (3, 2, 2, 2), (3, 20), (), (9,)]
"""For options, and for Kron, whose einsum over nine operands grows out of hand with the sides."""
UNEQUAL = {
    "vectors": [(100,), (3500,), (750,), (2000,)],
    "matrices": [(20, 35), (60, 40), (20, 80), (81, 34)],
    "kernels": [(20, 18, 3, 3), (30, 20, 3, 3), (17, 18, 7, 7)],
}
DTYPES = [torch.float32, torch.bfloat16]


def real_class(name):
    """The real class, from its own file: importing timm whole would need torchvision, so its packages are stood in for."""
    origin = Path(importlib.util.find_spec("numpy").origin).parents[1] / "timm"
    if not origin.exists():
        origin = Path(importlib.util.find_spec("timm").submodule_search_locations[0])
    for package, path in (("timm", origin), ("timm.optim", origin / "optim")):
        if package not in sys.modules:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(path)]
    module, _, attribute = find_optimizer(name).cls.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.fixture(autouse=True, scope="module")
def _leave_timm_as_it_was():
    """The stand-ins go when the module's tests are done, so that no other test meets half a package."""
    yield
    for module in [key for key in sys.modules if key.split(".")[0] == "timm"]:
        del sys.modules[module]


def build(name, params, **arguments):
    required = {"timm:SGDP": {"lr": 0.1}, "timm:SGDP+caution": {"lr": 0.1}}.get(name, {})
    dtypes = {k: getattr(torch, v) for k, v in arguments.items() if k in ("mu_dtype", "precond_dtype")}
    with mock.patch("torch.compile", lambda function, **_: function):  # Kron would compile its four functions for each shape
        return real_class(name)(params, **{**required, **find_optimizer(name).preset, **arguments, **dtypes})


def large(nbytes):
    """A buffer counts if it is no 0-dim constant."""
    return nbytes if nbytes > SCALARS else 0


@pytest.mark.parametrize("name", NAMES)
def test_options_are_the_constructors(name):
    """An entry knows exactly its constructor's arguments, by name and by default."""
    entry = find_optimizer(name)
    signature = inspect.signature(real_class(name).__init__)
    real = {key: value.default for key, value in signature.parameters.items() if key not in ("self", "params")}
    assert {*entry.options, *entry.ignored} == set(real)
    spelled = {k: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v for k, v in real.items()}
    assert entry.options == {key: entry.preset.get(key, spelled[key]) for key in entry.options}


def test_every_class_is_known():
    """No optimizer of timm.optim is missing, but the wrapper of another one."""
    folder = Path(inspect.getfile(real_class("timm:Lamb"))).parent
    found = set()
    for file in folder.glob("[a-z]*.py"):
        module = importlib.import_module(f"timm.optim.{file.stem}") if file.stem != "optim_factory" else types.ModuleType("x")
        found |= {
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value.__module__ == module.__name__
        }
    assert {name.split(":")[1].split("+")[0] for name in NAMES} == found - {"Lookahead"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STEPPING)
def test_states_equal_the_real_ones(name, dtype):
    """Shapes of 0 to 4 dimensions keep what the registry says, tensor by tensor."""
    params = parameters(SMALL if "Kron" in name else SHAPES, dtype)
    optimizer = build(name, params)
    take_steps(optimizer, params)
    assert_held_as_promised(optimizer, params, find_optimizer(name))


OPTIONS = [
    ("timm:AdaBelief", {"amsgrad": True}),
    ("timm:AdamWLegacy", {"amsgrad": True}),
    ("timm:Adafactor", {"betas": (0.9, 0.99), "min_dim_size_to_factor": 4}),
    ("timm:AdafactorBigVision", {"momentum": None}),
    ("timm:AdafactorBigVision", {"momentum_dtype": "float32", "min_dim_size_to_factor": 4}),
    ("timm:Lars", {"momentum": 0.9, "weight_decay": 0.1}),
    ("timm:MADGRAD", {"momentum": 0.0}),
    ("timm:Mars", {"mars_type": "lion", "optimize_1d": True}),
    ("timm:Muon+adamuon", {"nesterov": True}),
    ("timm:NvNovoGrad", {"amsgrad": True}),
    ("timm:RMSpropTF", {"momentum": 0.9, "centered": True}),
    ("timm:SGDW", {"momentum": 0.9, "nesterov": True}),
    ("timm:Kron", {"max_size_triangular": 4}),
    ("timm:Kron", {"min_ndim_triangular": 3}),
    ("timm:Kron", {"memory_save_mode": "one_diag"}),
    ("timm:Kron", {"memory_save_mode": "smart_one_diag"}),
    ("timm:Kron", {"memory_save_mode": "all_diag", "mu_dtype": "bfloat16"}),
    ("timm:Kron", {"flatten": True, "precond_dtype": "float64"}),
    ("timm:Kron", {"flatten": True, "flatten_start_dim": 1, "flatten_end_dim": 2}),
]


@pytest.mark.parametrize(("name", "arguments"), OPTIONS)
def test_states_with_options(name, arguments):
    """Each option that adds, drops, widens or reshapes a state does so as the registry says."""
    params = parameters(SMALL)
    optimizer = build(name, params, **arguments)
    take_steps(optimizer, params)
    assert_held_as_promised(optimizer, params, find_optimizer(name), arguments)


def test_adahessian_keeps_its_diagonal_on_the_parameter():
    """Two moments in the optimizer's state and a third, in float32, in an attribute of each parameter."""
    for dtype in DTYPES:
        params = parameters([(4, 5), (7,)], dtype)
        optimizer = build(HESSIAN, params)
        for _ in range(2):
            optimizer.zero_grad()
            sum((param**3).sum() for param in params).backward(create_graph=True)
            optimizer.step()
        entry = find_optimizer(HESSIAN)
        for param, told, kept in zip(params, described(params), held(optimizer, params).per_parameter, strict=True):
            hess = (str(param.hess.dtype)[6:], param.hess.untyped_storage().nbytes())
            states = entry.states(told, entry.resolve({}))
            assert sorted([*(one[:2] for one in kept), hess]) == sorted((state.dtype, state.nbytes) for state in states)


ON_META = [name for name in STEPPING if "Kron" not in name and "Adafactor" not in name.replace("BigVision", "")]
"""Kron draws numbers and Adafactor reads a norm's value, which meta tensors cannot give; both make states from the gradient."""


@pytest.mark.parametrize("name", ON_META)
def test_scalars_live_where_the_registry_says(name):
    """With parameters on a device that is not the host, each state is where the registry puts it."""
    for arguments in ({}, {"capturable": True})[: 1 + ("capturable" in find_optimizer(name).options)]:
        params = parameters([(8, 8), (8,)], device="meta")
        optimizer = build(name, params, **arguments)
        for param in params:
            param.grad = torch.empty_like(param)
        try:
            optimizer.step()
        except (RuntimeError, AssertionError, NotImplementedError):
            assert optimizer.state, "the states are made before the update that meta tensors or capturable refuse"
        entry = find_optimizer(name)
        for param, kept in zip(described(params), held(optimizer, params).per_parameter, strict=True):
            if not kept:
                continue  # the update was refused before this parameter's turn
            found = sorted((one.dtype, one.nbytes, "host" if one.device == "cpu" else "device") for one in kept)
            states = entry.states(param, entry.resolve(arguments))
            assert found == sorted((s.dtype, s.nbytes, s.place) for s in states if s.count and s.nbytes)


SWITCHES = {
    "Lamb": [{"max_grad_norm": None}, {"weight_decay": 0.0}],
    "AdamWLegacy": [{"maximize": True}, {"amsgrad": True}, {"weight_decay": 0.0}],
    "NAdamW": [{"maximize": True}],
    "Adopt": [
        {"weight_decay": 0.1},
        {"maximize": True},
        {"weight_decay": 0.1, "maximize": True},
        {"weight_decay": 0.1, "decoupled": True},
    ],
    "Lion": [{"maximize": True}, {"weight_decay": 0.1}],
    "Adan": [{"weight_decay": 0.1}],
    "Lars": [{"weight_decay": 0.1}, {"always_adapt": True}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "RMSpropTF": [{"weight_decay": 0.1}, {"centered": True, "weight_decay": 0.1}, {"momentum": 0.9}],
    "SGDW": [{"momentum": 0.9, "nesterov": True}, {"maximize": True}, {"momentum": 0.9, "nesterov": True, "maximize": True}],
    "MADGRAD": [{"weight_decay": 0.1}, {"momentum": 0.0}, {"weight_decay": 0.1, "decoupled_decay": True}],
    "Mars": [{"mars_type": "lion"}, {"optimize_1d": True}],
    "NAdamLegacy": [{"weight_decay": 0.1}],
    "Muon": [{"nesterov": True}, {"conv_mode": "batched"}],
    "Adafactor": [{"betas": (0.9, 0.99)}],
    "AdaBelief": [{"amsgrad": True}],
}
STEPS = [(name, switch) for name in MEASURED for switch in [{}, *SWITCHES.get(name.split(":")[1], [])]]


@pytest.mark.parametrize(
    ("name", "arguments", "dtype"),
    [*[(*step, torch.float32) for step in STEPS], *[(name, {}, torch.bfloat16) for name in MEASURED]],
)
def test_step_temporaries_equal_the_real_ones(name, arguments, dtype):
    """In each form of the step the operators' results alive at the worst moment are the registry's to the byte."""
    entry = find_optimizer(name)
    for form in [{"foreach": True}, {"foreach": False}] if "foreach" in entry.options else [{}]:
        for shapes in UNEQUAL.values():
            params = parameters(shapes, dtype)
            optimizer = build(name, params, **arguments, **form)
            take_steps(optimizer, params, 7 if name in ("timm:RAdamLegacy", "timm:AdaBelief") else 2)  # past rectification
            options = entry.resolve({key: value for key, value in {**arguments, **form}.items() if key in entry.options})
            assert dispatched_peak(optimizer.step) == step_bytes(entry, described(params), options, large), (form, shapes)


@pytest.mark.parametrize("name", ["timm:AdamWLegacy", "timm:NAdamW"])
def test_clipping_the_update_copies_it_in_lists(name):
    """clipping_threshold adds one more copy of every tensor to the step over lists."""
    entry = find_optimizer(name)
    params = parameters(UNEQUAL["vectors"])
    arguments = {"foreach": True, "clipping_threshold": 1.0}
    optimizer = build(name, params, **arguments)
    take_steps(optimizer, params)
    assert dispatched_peak(optimizer.step) == step_bytes(entry, described(params), entry.resolve(arguments), large)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        (
            "timm:Lamb",
            {"caution": True},
            "o.caution: True changes what the step needs",
        ),
        ("timm:Muon", {"algo": "adamuon"}, "o.algo: adamuon is not muon"),
        ("timm:Kron", {"memory_save_mode": "some"}, "o.memory_save_mode: some is none of"),
        ("timm:Kron", {"flatten_start_dim": -2}, "o.flatten_start_dim: -2 is negative"),
    ],
)
def test_what_is_not_modelled_is_refused(name, arguments, sentence):
    """A switch whose step has not been measured, and words no constructor takes, are errors that name the option."""
    with pytest.raises(InputError, match=sentence):
        find_optimizer(name).resolve(arguments, "o")


def test_a_cautious_step_is_not_claimed_to_be_known():
    """A +caution variant keeps the same states and says None of its step."""
    for name in [name for name in NAMES if name.endswith("+caution")]:
        entry, plain = find_optimizer(name), find_optimizer(name.removesuffix("+caution"))
        params = [Param((20, 30)), Param((7,))]
        assert step_bytes(entry, params, entry.resolve({})) is None
        for param in params:
            assert list(entry.states(param, entry.resolve({}))) == list(plain.states(param, plain.resolve({})))


BY_SIZE = ("timm:Kron", "timm:Muon+adamuon", "timm:Adafactor", "timm:AdafactorBigVision")


@pytest.mark.parametrize(
    ("name", "arguments"), [*[(name, {}) for name in NAMES], *[case for case in OPTIONS if case[0] in BY_SIZE]]
)
def test_arrays_equal_scalars(name, arguments):
    """A sweep over shapes gives element by element what each shape gives alone, with every option that reads a size."""
    assert_arrays_equal_scalars(find_optimizer(name), arguments)
